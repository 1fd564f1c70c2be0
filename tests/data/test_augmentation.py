"""Augmentation: exact against a slow reference, the right law, training batches only, the same after a resumption."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from glr_lightning.config import compose
from glr_lightning.data import ImageDataModule
from glr_lightning.data.augmentation import Augmentation, moved
from glr_lightning.evaluation.surrogate_options import SurrogateOptions
from glr_lightning.evaluation.surrogates import load_surrogate
from glr_lightning.randomness import step_generator
from glr_lightning.runs.trained_run import load_run
from glr_lightning.training import LightningImages
from glr_lightning.training.fit import train
from tests.checks.groups import options
from tests.checks.refusals import refused
from tests.checks.zscores import assert_mean


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, shape: tuple[int, int, int] = (1, 4, 4)) -> Tensor:
    return torch.randint(1, 256, (count, *shape), generator=generator(1), dtype=torch.uint8)


# --- the functions --------------------------------------------------------------------------------------------------


def moved_slowly(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """The same, pixel by pixel."""
    out = torch.zeros_like(images)
    n, _, height, width = images.shape
    for k in range(n):
        for i in range(height):
            for j in range(width):
                row = i - int(down[k])
                column = (width - 1 - j if mirrored[k] else j) - int(right[k])
                if 0 <= row < height and 0 <= column < width:
                    out[k, :, i, j] = images[k, :, row, column]
    return out


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 4), (2, 4, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_the_reference_pixel_by_pixel(most: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    images = pictures(40, shape).to(dtype)
    down, right = torch.randint(-most, most + 1, (2, 40), generator=generator())
    mirrored = torch.rand(40, generator=generator()) < 0.5
    result = moved(images, down, right, mirrored, most)
    assert result.dtype == dtype
    assert torch.equal(result, moved_slowly(images, down, right, mirrored))


def test_a_flip_twice_and_a_shift_of_nothing_are_the_image() -> None:
    images, nothing, all_ = pictures(5, (3, 4, 6)), torch.zeros(5).long(), torch.ones(5).bool()
    assert torch.equal(moved(images, nothing, nothing, ~all_, 2), images)
    mirrored = moved(images, nothing, nothing, all_, 0)
    assert torch.equal(mirrored, images.flip(3))
    assert torch.equal(moved(mirrored, nothing, nothing, all_, 0), images)


def test_every_flip_and_shift_is_equally_likely() -> None:
    n, crop, side = 20_000, 1, 3
    image = torch.arange(1, side * side + 1, dtype=torch.uint8).view(1, 1, side, side)
    results = Augmentation(flip=True, crop=crop)(image.expand(n, 1, side, side), generator=generator()).flatten(1)
    choices = [(down, right, flip) for down in (-1, 0, 1) for right in (-1, 0, 1) for flip in (False, True)]
    possible = torch.cat([moved_slowly(image, *map(torch.tensor, ([d], [r], [f]))) for d, r, f in choices]).flatten(1)
    is_which = (results[:, None] == possible).all(2)
    assert is_which.sum(1).eq(1).all()  # the 18 pictures are different, and there are no others
    assert_mean(is_which, 1 / 18, what="share of each flip and shift")
    flipped = torch.tensor([flip for _, _, flip in choices])
    assert_mean((is_which & flipped).any(1), 0.5, what="share of flips")


def test_what_is_off_changes_nothing() -> None:
    images = pictures(50)
    assert not Augmentation()
    assert torch.equal(Augmentation()(images, generator=generator()), images)
    flipped = Augmentation(flip=True)(images, generator=generator())
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True))
    assert not torch.equal(flipped, images)


def test_a_generator_draws_the_same_again_and_another_stream_does_not() -> None:
    images, augmentation = pictures(50), Augmentation(flip=True, crop=2)
    device = images.device
    first = augmentation(images, generator=step_generator(3, 7, 1, device, "augmentation"))
    assert torch.equal(augmentation(images, generator=step_generator(3, 7, 1, device, "augmentation")), first)
    for place in ((4, 7, 1), (3, 8, 1), (3, 7, 0)):
        assert not torch.equal(augmentation(images, generator=step_generator(*place, device, "augmentation")), first)
    assert not torch.equal(augmentation(images, generator=step_generator(3, 7, 1, device)), first)  # the noise's


# --- the data modules -----------------------------------------------------------------------------------------------


@final
class Toy(ImageDataModule):
    """Twelve training and four test images; the labels are their numbers."""

    name = "toy"
    classes = 12
    native_shape = (1, 4, 4)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        return pictures(12)[: 12 if train else 4], torch.arange(12 if train else 4)


def toy(**chosen: Any) -> Toy:
    return Toy(**{"batch_size": 3, "validation": 0.25, "flip": True, "crop": 1, **chosen})


@pytest.mark.parametrize("name", options("data"))
def test_every_data_set_has_it_and_leaves_it_off(name: str) -> None:
    section = compose([f"data={name}"])["data"]
    assert (section["flip"], section["crop"]) == (False, 0)


@pytest.mark.parametrize(("option", "value"), [("flip", 1), ("flip", None), ("crop", -1), ("crop", 4), ("crop", True)])
def test_refuses_an_option_out_of_range(option: str, value: object) -> None:
    with refused(option):
        toy(**{option: value})


def test_refuses_a_crop_of_the_whole_resized_image() -> None:
    with refused("crop", "less than the 2 pixels"):
        toy(resize=2, crop=2)


def test_is_done_before_pixels_are_scaled_and_ranks_differ() -> None:
    def batch(rank: int) -> Tensor:
        module = LightningImages(toy())
        module.trainer = SimpleNamespace(training=True, global_step=5, global_rank=rank)
        return module.on_after_batch_transfer((pictures(12), torch.arange(12)), 0)[0]

    device = torch.device("cpu")
    drawn = Augmentation(flip=True, crop=1)(pictures(12), generator=step_generator(0, 5, 0, device, "augmentation"))
    torch.testing.assert_close(batch(0), drawn.float() / 255, rtol=0, atol=0)
    assert not torch.equal(batch(0), batch(1))


def test_a_surrogate_is_trained_without_that_of_the_run(tmp_path: Path) -> None:
    config = compose(["experiment=bp", "epochs=1", "progress=false", "data.flip=true", "data.crop=1"])
    train(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.data.augmentation == Augmentation(flip=True, crop=1)
    surrogate = load_surrogate(run, "surrogate/relu", SurrogateOptions(dir=str(tmp_path / "surrogates"), epochs=1))
    assert surrogate.data.augmentation == Augmentation()


class Recorder(pl.LightningModule):
    """Keeps every batch that it gets; may write a checkpoint behind one of them."""

    def __init__(self, checkpoint: Path | None = None, after: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.checkpoint, self.after = checkpoint, after
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.judged: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen.append(batch)
        self.optimizers().step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.checkpoint is not None and len(self.seen) == self.after:
            self.trainer.save_checkpoint(self.checkpoint)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.judged.append(batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_for(**chosen: Any) -> pl.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(off, False)
    return pl.Trainer(max_epochs=3, accelerator="cpu", use_distributed_sampler=False, **quiet, **chosen)


def fit(recorder: Recorder, resume: Path | None = None, data: Toy | None = None, **chosen: Any) -> Recorder:
    trainer_for(**chosen).fit(recorder, datamodule=LightningImages(data or toy()), ckpt_path=resume)
    return recorder


def originals(batches: list[tuple[Tensor, Tensor]]) -> list[bool]:
    """Whether all images are as they were read, by batch."""
    return [torch.equal(images, pictures(12)[labels].float() / 255) for images, labels in batches]


def test_training_batches_alone_are_changed() -> None:
    recorder = fit(Recorder(), num_sanity_val_steps=2)
    assert len(recorder.seen) == 9
    assert not any(originals(recorder.seen))
    assert len(recorder.judged) == 4  # the sanity check, and once an epoch
    assert all(originals(recorder.judged))
    recorder.judged.clear()
    trainer_for().test(recorder, datamodule=LightningImages(toy()), verbose=False)
    assert originals(recorder.judged) == [True]
    for which in ("train", "val", "test"):
        assert originals([toy().split(which)]) == [True]
    assert all(originals(fit(Recorder(), data=toy(flip=False, crop=0)).seen))


def test_an_epoch_has_other_flips_and_shifts_than_the_one_before() -> None:
    seen = fit(Recorder(), data=toy(batch_size=9)).seen
    by_label = [images[labels.argsort()] for images, labels in seen]
    assert not torch.equal(by_label[0], by_label[1])
    assert not torch.equal(by_label[1], by_label[2])


def test_overfitting_sees_the_same_images_changed_anew() -> None:
    seen = fit(Recorder(), overfit_batches=1).seen
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[0][0], seen[1][0])


@pytest.mark.parametrize("after", [2, 3, 4], ids=["middle of epoch 0", "end of epoch 0", "middle of epoch 1"])
def test_a_resumed_run_sees_the_images_it_would_have_seen(tmp_path: Path, after: int) -> None:
    straight = fit(Recorder(tmp_path / "run.ckpt", after)).seen
    resumed = fit(Recorder(), tmp_path / "run.ckpt").seen
    assert len(resumed) == len(straight) - after
    for (images, labels), (expected, labels_expected) in zip(resumed, straight[after:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, labels_expected)
