"""Data sets: what they read, what they refuse, and in which order their batches come."""

import gzip
import hashlib
import importlib.util
import logging
import pickle
import socket
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor

from glr_lightning.config import build
from glr_lightning.data import MNIST, Digits, FashionMNIST, ImageDataModule, base, batches, digits, mnist, resident
from glr_lightning.data.batches import Shuffled
from glr_lightning.errors import DataError
from glr_lightning.training import LightningImages
from tests.checks.refusals import refused

CONF = Path(__file__).parents[2] / "conf" / "data"
TRAIN, TEST = 20, 10  # images in the small files written here


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a test wanted to download something")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)


@final
class Toy(ImageDataModule):
    """Image i is filled with the number i, so that a batch tells which images it holds."""

    name = "toy"
    classes = 10
    native_shape = (1, 2, 2)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        number = torch.arange(20 if train else 8, dtype=torch.uint8)
        return number.view(-1, 1, 1, 1).repeat(1, 1, 2, 2), number.long() % 10


def toy(**options: Any) -> Toy:
    return Toy(**{"batch_size": 4, **options})


def trainer_on(device: str, **facts: Any) -> Any:
    """What `LightningImages` reads of a Trainer."""
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(**{"global_rank": 0, "world_size": 1, "overfit_batches": 0} | facts, strategy=strategy)


def numbers(images: Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * (1 if images.dtype == torch.uint8 else 255)).round().int().tolist()


# --- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("validation", 1.0),
        ("validation", -0.1),
        ("validation", float("nan")),
        ("validation", "a tenth"),
        ("split_seed", -1),
        ("seed", 2**32),
        ("seed", None),
        ("resize", 0),
        ("resize", 8.0),
        ("resize", 1025),
        ("root", 3),
        ("root", ""),
    ],
)
def test_refuses_an_argument_out_of_range(option: str, value: object) -> None:
    with refused(option):
        toy(**{option: value})
    with refused(f"data.{option}"):
        build({"_target_": "glr_lightning.data.Digits", "batch_size": 4, option: value}, where="data")


def test_an_unknown_option_is_refused_by_name() -> None:
    with refused("data.colour"):
        build({"_target_": "glr_lightning.data.Digits", "batch_size": 4, "colour": 1}, where="data")
    with refused("data", "'colour'"):  # it is Python's own refusal
        build({"_target_": "glr_lightning.data.MNIST", "root": "x", "batch_size": 4, "colour": 1}, where="data")


def test_refuses_a_share_that_leaves_nothing() -> None:
    for share in (0.001, 0.999):
        with refused("data.validation", f"={share} of 20 training images", "Choose a share"):
            toy(validation=share).setup("fit")


def test_refuses_an_unknown_split_and_a_validation_split_that_is_not_there() -> None:
    with refused("split"):
        toy().split("dev")  # type: ignore[arg-type]
    with refused("data.validation", "Set data.validation=0.1"):
        toy().split("val")


def test_mnist_refuses_no_root_and_an_unclear_download() -> None:
    with refused("root", "Set data.root=DIR"):
        MNIST(root=None, batch_size=4)
    with refused("download"):
        MNIST(root="data", batch_size=4, download="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds_its_data_module(path: Path) -> None:
    config = OmegaConf.merge(OmegaConf.load(path), {"batch_size": 7, "seed": 3})
    module = instantiate(config.data)
    assert isinstance(module, ImageDataModule)
    assert (module.name, module.batch_size, module.seed) == (path.stem, 7, 3)


# --- what read() returns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 1, 2, 2), torch.zeros(3).long(), r"uint8 \[N, 1, 2, 2\], found torch.float32 \[3, 1, 2, 2\]"),
        (torch.zeros(3, 1, 2, 3).byte(), torch.zeros(3).long(), r"found torch.uint8 \[3, 1, 2, 3\]"),
        (torch.zeros(3, 2, 2).byte(), torch.zeros(3).long(), r"found torch.uint8 \[3, 2, 2\]"),
        (torch.zeros(3, 1, 2, 2).byte(), torch.zeros(3), r"found torch.float32 \[3\]"),
        (torch.zeros(3, 1, 2, 2).byte(), torch.zeros(2).long(), r"each of the 3 images .* found torch.int64 \[2\]"),
        (torch.zeros(0, 1, 2, 2).byte(), torch.zeros(0).long(), "at least one image"),
        (torch.zeros(3, 1, 2, 2).byte(), torch.tensor([0, 10, 11]), "labels 0..9, found 10 at index 1 "),
        (torch.zeros(3, 1, 2, 2).byte(), torch.tensor([0, 1, -1]), "found -1 at index 2 "),
    ],
)
def test_refuses_what_read_must_not_return(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, labels: Tensor, message: str
) -> None:
    monkeypatch.setattr(Toy, "read", lambda self, train: (images, labels))
    with pytest.raises(DataError, match=f"toy, test set: expected .*{message}"):
        toy().setup("test")


def test_reads_each_part_once_and_only_what_the_stage_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = Toy.read

    def counted(self: Toy, train: bool) -> tuple[Tensor, Tensor]:
        calls.append(train)
        return read(self, train)

    monkeypatch.setattr(Toy, "read", counted)
    module = toy(validation=0.2)
    module.setup("fit")
    module.setup("validate")
    assert calls == [True]
    module.setup("test")
    module.setup()
    assert calls == [True, False]


# --- splits and pixels ----------------------------------------------------------------------------------------------


def test_the_split_is_disjoint_complete_and_depends_on_split_seed_alone() -> None:
    def held_out(**options: Any) -> list[int]:
        return numbers(toy(validation=0.3, **options).split("val")[0])

    module = toy(validation=0.3)
    train, val = numbers(module.split("train")[0]), numbers(module.split("val")[0])
    assert len(val) == 6
    assert sorted(train + val) == list(range(20))
    assert held_out(seed=5, batch_size=2, resize=3) == val
    assert held_out(split_seed=1) != val


def test_without_validation_there_is_no_loader() -> None:
    assert toy().val_dataloader() == []
    assert numbers(toy().split("train")[0]) == list(range(20))


def test_pixels_are_scaled_once() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    batch = LightningImages(toy()).on_after_batch_transfer((images, torch.zeros(3)), 0)
    assert batch[0].dtype == torch.float32
    torch.testing.assert_close(batch[0].flatten(), torch.tensor([0.0, 0.2, 1.0]))
    assert LightningImages(toy()).on_after_batch_transfer(batch, 0)[0] is batch[0]


def test_a_size_that_memory_does_not_hold_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(images: Tensor, side: int) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't\nallocate memory")

    monkeypatch.setattr(base, "resized", exhausted)
    with pytest.raises(DataError, match=r"can't allocate memory\). Set a smaller data\.resize\."):
        toy(resize=1024).setup()


def test_resize_keeps_mean_and_range() -> None:
    plain, large = Digits(batch_size=4), Digits(batch_size=4, resize=16)
    assert (plain.image_shape, large.image_shape) == ((1, 8, 8), (1, 16, 16))
    images, resized = plain.split("test")[0], large.split("test")[0]
    assert resized.shape == (len(images), 1, 16, 16)
    assert float(resized.max()) <= 1
    assert abs(float(resized.mean() - images.mean())) < 0.01
    assert torch.equal(Digits(batch_size=4, resize=8).split("test")[0], images)


def test_digits_are_those_that_scikit_learn_reads() -> None:
    pixels, labels = load_digits(return_X_y=True)
    assert np.array_equal(digits._rows(), np.column_stack([pixels, labels]))
    expected = torch.from_numpy(pixels).view(-1, 1, 8, 8).mul(255 / 16).round().div(255).float()
    ours = torch.cat([Digits(batch_size=4).split(part)[0] for part in ("train", "test")])
    torch.testing.assert_close(ours.sum(0), expected.sum(0))


def test_digits_without_scikit_learn_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._rows.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="Install scikit-learn"):
        Digits(batch_size=4).setup()


def test_digits_has_a_fixed_stratified_test_set() -> None:
    module = Digits(batch_size=4, validation=0.1)
    parts = [module.split(which) for which in ("train", "val", "test")]
    assert [len(labels) for _, labels in parts] == [1294, 144, 359]
    for images, labels in parts:
        assert images.shape[1:] == (1, 8, 8)
        assert images.dtype == torch.float32
        assert (float(images.min()), float(images.max())) == (0, 1)
        assert labels.bincount(minlength=10).min() > 0.5 * len(labels) / 10
    assert len({tuple(image.flatten().tolist()) for images, _ in parts for image in images}) == 1797
    assert torch.equal(Digits(batch_size=4, split_seed=9, seed=9).split("test")[0], parts[2][0])
    shares = parts[2][1].bincount() / torch.cat([labels for _, labels in parts]).bincount()
    torch.testing.assert_close(shares, torch.full((10,), 0.2), rtol=0, atol=0.004)


# --- order of the batches -------------------------------------------------------------------------------------------


def epoch_of(sampler: Shuffled, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [index.tolist() for index in sampler]


def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch() -> None:
    first = epoch_of(Shuffled(21, 4, seed=1), 0)
    assert [len(batch) for batch in first] == [4, 4, 4, 4, 4, 1]
    assert len(Shuffled(21, 4, seed=1)) == 6
    assert sorted(chain.from_iterable(first)) == list(range(21))
    sampler = Shuffled(21, 4, seed=1)
    third = epoch_of(sampler, 2)
    assert epoch_of(sampler, 0) == first  # no memory of earlier epochs
    assert epoch_of(Shuffled(21, 4, seed=1), 2) == third
    assert len({str(batches) for batches in (first, third, epoch_of(Shuffled(21, 4, seed=2), 0))}) == 3


def test_the_place_in_an_epoch_can_be_taken_up_again() -> None:
    sampler = Shuffled(21, 4, seed=1)
    whole, following = epoch_of(sampler, 3), epoch_of(sampler, 4)
    sampler.set_epoch(3)
    assert sampler.state_dict()["taken"] == 0  # a new epoch begins at its start, even before the first batch
    iterator = iter(sampler)
    taken = [next(iterator).tolist() for _ in range(2)]
    resumed = Shuffled(21, 4, seed=1)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.state_dict() == sampler.state_dict()
    assert taken + epoch_of(resumed, 3) == whole
    assert epoch_of(resumed, 3) == whole  # once
    resumed.load_state_dict(sampler.state_dict())
    assert epoch_of(resumed, 4) == following


@pytest.mark.parametrize("size", [1, 3, 21, 22, 24, 25])
def test_processes_share_each_batch_equally(size: int) -> None:
    alone = epoch_of(Shuffled(size, 6, seed=1), 4)
    shares = [epoch_of(Shuffled(size, 6, seed=1, rank=rank, world_size=3), 4) for rank in range(3)]
    assert {len(share) for share in shares} == {len(alone)}
    for whole, *parts in zip(alone, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        together = list(chain.from_iterable(parts))
        assert set(whole) <= set(together)
        assert len(together) - len(whole) == -len(whole) % 3  # only the last batch is filled up


def test_refuses_a_batch_that_cannot_be_shared() -> None:
    module = LightningImages(toy(batch_size=5))
    module.trainer = trainer_on("cpu", global_rank=1, world_size=2)
    with refused("data.batch_size", "Choose a multiple of 2"):
        module.train_dataloader()


def test_the_loader_looks_a_batch_up_once_and_draws_nothing_global() -> None:
    loader = toy().train_dataloader()
    before = torch.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(batches) == len(loader) == 5
    assert [(images.dtype, images.shape) for images, _ in batches] == [(torch.uint8, (4, 1, 2, 2))] * 5
    for images, labels in batches:
        assert [number % 10 for number in numbers(images)] == labels.tolist()


@pytest.mark.parametrize(("limit", "lookups"), [(2**20, 1), (4 * 4 * 2, 3), (1, 5)])
def test_training_batches_are_gathered_together(limit: int, lookups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    item = batches.ImageSet.__getitem__
    monkeypatch.setattr(
        batches.ImageSet, "__getitem__", lambda self, index: seen.append(len(index)) or item(self, index)
    )
    monkeypatch.setattr(batches, "GATHERED", limit)
    loader = toy().train_dataloader()
    iterator = iter(loader)
    taken = [numbers(next(iterator)[0]) for _ in range(2)]
    assert loader.state_dict()["taken"] == 2  # not what was gathered
    taken += [numbers(images) for images, _ in iterator]
    assert len(seen) == lookups
    assert taken == [(index % 256).tolist() for index in toy().train_dataloader().sampler]


def test_evaluation_batches_are_large_and_in_order() -> None:
    (images, _), *rest = toy(validation=0.3).test_dataloader()
    assert not rest
    assert numbers(images) == list(range(8))
    assert [len(images) for images, _ in Digits(batch_size=4, validation=0.9).val_dataloader()] == [1000, 294]
    assert [len(images) for images, _ in Digits(batch_size=1200, validation=0.9).val_dataloader()] == [1200, 94]


# --- on an accelerator: the meta device stands for one ---------------------------------------------------------------


def on_meta(**options: Any) -> LightningImages:
    module = LightningImages(toy(**options))
    module.trainer = trainer_on("meta")
    return module


def test_an_accelerator_gathers_its_batches_from_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    module, copied = on_meta(validation=0.3), []
    to = Tensor.to
    monkeypatch.setattr(Tensor, "to", lambda self, *a, **k: copied.append(self.dtype) or to(self, *a, **k))
    loaders = module.train_dataloader(), module.val_dataloader()
    assert copied.count(torch.uint8) == 1  # training and validation images are rows of the same
    copied.clear()
    for loader in loaders:
        for images, labels in loader:
            assert images.device.type == labels.device.type == "meta"
    assert copied == [torch.int64]  # the order of an epoch
    assert [len(images) for images, _ in loaders[0]] == [4, 4, 4, 2]


def test_the_copy_on_an_accelerator_is_dropped_and_never_sent() -> None:
    module = on_meta(validation=0.3)
    copy = module.train_dataloader().dataset.images
    assert module.val_dataloader().dataset.images is copy
    assert pickle.loads(pickle.dumps(module)).data.part("train").images.device.type == "cpu"
    assert module.data.split("train")[0].device.type == "cpu"
    module.teardown("fit")
    assert module.train_dataloader().dataset.images is not copy


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError], ids=["larger than the limit", "out of memory"])
def test_images_that_do_not_fit_are_copied_by_the_batch(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Tensor, *_: Any) -> Tensor:
        raise error

    if error is None:
        monkeypatch.setattr(resident, "LARGEST", 20 * 4 - 1)
    else:
        monkeypatch.setattr(Tensor, "to", refuse)
    module = on_meta()
    loader = module.train_dataloader()
    monkeypatch.undo()
    batch = next(iter(loader))
    assert batch[0].device.type == "cpu"
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert [part.device.type for part in moved] == ["meta", "meta"]


# --- under a Trainer ------------------------------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """Records (epoch, numbers of the images) of every training batch; may write a checkpoint behind one of them."""

    def __init__(self, checkpoint: Path | None = None, after: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.checkpoint, self.after = checkpoint, after

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        assert batch[0].dtype == torch.float32
        self.seen.append((self.current_epoch, numbers(batch[0])))
        self.optimizers().step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.checkpoint is not None and len(self.seen) == self.after:
            self.trainer.save_checkpoint(self.checkpoint)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        assert batch[0].dtype == torch.float32
        assert float(batch[0].max()) <= 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(recorder: Recorder, resume: Path | None = None, batch_size: int = 4, **options: Any) -> list[Any]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", use_distributed_sampler=False, **quiet, **options)
    data = LightningImages(toy(validation=0.1, batch_size=batch_size))
    trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    return recorder.seen


def with_epoch(module: ImageDataModule, epoch: int) -> Any:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return loader


def test_a_trainer_gets_a_new_order_every_epoch() -> None:
    seen = fit(Recorder())
    train = set(numbers(toy(validation=0.1).split("train")[0]))
    assert [epoch for epoch, _ in seen] == [0] * 5 + [1] * 5 + [2] * 5
    epochs = [[batch for epoch, batch in seen if epoch == wanted] for wanted in range(3)]
    assert [set(chain.from_iterable(batches)) for batches in epochs] == [train] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[2] == [numbers(images) for images, _ in with_epoch(toy(validation=0.1), 2)]


@pytest.mark.parametrize("after", [2, 5, 7], ids=["middle of epoch 0", "end of epoch 0", "middle of epoch 1"])
@pytest.mark.parametrize("limit", [1.0, 3], ids=["whole epochs", "3 batches an epoch"])
def test_a_resumed_run_sees_the_batches_it_would_have_seen(tmp_path: Path, after: int, limit: float) -> None:
    checkpoint = tmp_path / "run.ckpt"
    straight = fit(Recorder(checkpoint, after), limit_train_batches=limit)
    assert fit(Recorder(), checkpoint, limit_train_batches=limit) == straight[after:]


def test_resuming_in_the_middle_of_an_epoch_needs_the_same_batches(tmp_path: Path) -> None:
    fit(Recorder(tmp_path / "run.ckpt", 2))
    with refused(None, "after batch 2 of 5 of epoch 0", "Resume with the batch_size and data.validation"):
        fit(Recorder(), tmp_path / "run.ckpt", batch_size=2)


def test_overfitting_gets_the_same_few_batches(tmp_path: Path) -> None:
    seen = fit(Recorder(), overfit_batches=2)
    assert len(seen) == 6
    assert seen[0][1] == seen[2][1] == seen[4][1]
    assert len(seen[0][1]) == 4


# --- the files of MNIST ---------------------------------------------------------------------------------------------


def idx(tensor: Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes((0, 0, 8, tensor.ndim)) + sizes + tensor.numpy().tobytes()


def contents() -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> bytes:
        return idx(torch.randint(0, 256, (count, 28, 28), generator=generator).byte())

    labels = {count: idx(torch.arange(count).byte() % 10) for count in (TRAIN, TEST)}
    return {
        "train-images-idx3-ubyte": images(TRAIN),
        "train-labels-idx1-ubyte": labels[TRAIN],
        "t10k-images-idx3-ubyte": images(TEST),
        "t10k-labels-idx1-ubyte": labels[TEST],
    }


def write(folder: Path, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)


def module_at(root: Path, kind: type[MNIST] | type[FashionMNIST] = MNIST, **options: Any) -> MNIST | FashionMNIST:
    return kind(**{"root": root, "batch_size": 4, "download": False, **options})


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
@pytest.mark.parametrize("layout", ["{name}/raw", "raw", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_reads_every_layout_packed_or_not(tmp_path: Path, kind: Any, layout: str, packed: bool) -> None:
    write(tmp_path / layout.format(name=kind.__name__), packed)
    before = sorted(tmp_path.rglob("*"))
    module = module_at(tmp_path, kind, download=packed)
    images, labels = module.split("train")
    expected = torch.frombuffer(bytearray(contents()["train-images-idx3-ubyte"][16:]), dtype=torch.uint8)
    assert torch.equal((images * 255).round().byte().flatten(), expected)
    assert images.shape == (TRAIN, *module.image_shape)
    assert labels.tolist() == [number % 10 for number in range(TRAIN)]
    assert module.split("test")[0].shape == (TEST, 1, 28, 28)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked to disk


def test_one_split_is_enough_to_read_that_split(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.glob("train-*"):
        path.unlink()
    assert len(module_at(tmp_path).split("test")[1]) == TEST
    with pytest.raises(DataError, match=r"missing train-images-idx3-ubyte\.gz .* and train-labels-idx1-ubyte\.gz"):
        module_at(tmp_path).split("train")


@pytest.mark.parametrize("there", [True, False])
def test_says_what_is_missing_and_how_to_get_it(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "none"
    if there:
        write(root / "raw")
        (root / "raw" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        module_at(root, FashionMNIST).setup("fit")
    message = str(caught.value)
    assert "train-labels-idx1-ubyte.gz (md5 25c81989df183df01b3e8a0aad5dffbe)" in message
    assert ("train-images" in message) is not there
    for place in (root / "FashionMNIST" / "raw", root / "raw", root):
        assert str(place) in message
    for words in ("data.download is false", "data.root=DIR", "data.download=true", "http://fashion-mnist.s3-website"):
        assert words in message
    assert "\n" not in message


DAMAGE = {
    "not gzip": ("train-images-idx3-ubyte.gz", lambda packed: b"<html>", "a complete gzip file, found Not a gzipped"),
    "cut gzip": ("train-images-idx3-ubyte.gz", lambda packed: packed[:-100], "a complete gzip file, found Compressed"),
    "bad gzip": (
        "train-images-idx3-ubyte.gz",
        lambda packed: packed[:200] + bytes(50) + packed[250:],
        "a complete gzip file, found",
    ),
    "magic": ("train-labels-idx1-ubyte", lambda raw: b"\0\0\x08\3" + raw[4:], "number 00000801, found 00000803"),
    "empty": ("train-labels-idx1-ubyte", lambda raw: b"", "number 00000801, found an empty file"),
    "header": ("train-images-idx3-ubyte", lambda raw: raw[:9], "a header of 16 bytes, found 9 bytes"),
    "cut": (
        "train-images-idx3-ubyte",
        lambda raw: raw[:-1],
        "15680 bytes of data for the shape 20 x 28 x 28, found 15679",
    ),
    "trailing": ("train-labels-idx1-ubyte", lambda raw: raw + b"\0", "20 bytes of data for the shape 20, found 21"),
    "size": ("train-images-idx3-ubyte", lambda raw: idx(torch.zeros(20, 27, 28).byte()), "N x 28 x 28 .* 20 x 27 x 28"),
    "none": ("train-images-idx3-ubyte", lambda raw: idx(torch.zeros(0, 28, 28).byte()), "N > 0, found 0 x 28 x 28"),
    "label": (
        "train-labels-idx1-ubyte",
        lambda raw: raw[:11] + b"\x0b" + raw[12:],
        "labels 0..9, found 11 at index 3 ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_names_the_damaged_file(tmp_path: Path, case: str) -> None:
    name, spoil, message = DAMAGE[case]
    write(tmp_path, packed=name.endswith(".gz"))
    (tmp_path / name).write_bytes(spoil((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=f"{name} is damaged: expected .*{message}.*Delete this file and get it again"):
        module_at(tmp_path).setup("fit")


def test_names_two_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(torch.zeros(19).byte()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte and .*train-labels.*20 images and 19 labels"):
        module_at(tmp_path).setup("fit")


def test_refuses_the_files_of_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    md5 = hashlib.md5(contents()["train-labels-idx1-ubyte"][8:]).hexdigest()
    monkeypatch.setitem(mnist.LABELS_OF, md5, "FashionMNIST")
    module_at(tmp_path, FashionMNIST).setup("fit")
    with pytest.raises(DataError, match="holds the labels of FashionMNIST, but MNIST was asked for"):
        module_at(tmp_path).setup("fit")


# --- the download ---------------------------------------------------------------------------------------------------


class Mirror:
    """Stands in for torchvision's downloader: writes what it is told to, then perhaps fails."""

    def __init__(self, failure: BaseException | None = None, fails_at: str = "") -> None:
        self.failure, self.fails_at = failure, fails_at
        self.asked: list[str] = []

    def __call__(self, url: str, root: str, filename: str, md5: str) -> None:
        self.asked.append(url)
        assert socket.getdefaulttimeout() is not None
        content = gzip.compress(contents()[url.rsplit("/", 1)[1].removesuffix(".gz")])
        failing = self.failure is not None and self.fails_at in url
        Path(root, filename).write_bytes(content[: 10 if failing else None])
        if self.failure is not None and failing:
            raise self.failure


def test_downloads_what_is_missing_to_the_place_torchvision_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror()
    monkeypatch.setattr("torchvision.datasets.utils.download_url", mirror)
    root = tmp_path / "not" / "yet"
    module = module_at(root, download=True)
    assert len(module.split("train")[1]) == TRAIN
    names = list(MNIST.published.md5)
    assert sorted(path.name for path in (root / "MNIST" / "raw").iterdir()) == sorted(names)
    assert mirror.asked == [MNIST.published.mirrors[0] + name for name in names]
    assert not list(tmp_path.rglob(".*"))
    (root / "MNIST" / "raw" / names[3]).unlink()
    module_at(root, download=True).prepare_data()
    assert mirror.asked[4:] == [MNIST.published.mirrors[0] + names[3]]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_the_addresses_and_checksums_are_those_of_torchvision(kind: type[MNIST] | type[FashionMNIST]) -> None:
    theirs = getattr(torchvision.datasets, kind.published.name)
    assert list(kind.published.mirrors) == theirs.mirrors
    assert list(kind.published.md5.items()) == theirs.resources


def test_goes_on_to_the_next_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(OSError("no route"), fails_at=MNIST.published.mirrors[0])
    monkeypatch.setattr("torchvision.datasets.utils.download_url", mirror)
    assert len(module_at(tmp_path, download=True).split("test")[1]) == TEST
    assert len(mirror.asked) == 8


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), RuntimeError("File not found or corrupted."), OSError("down")]
)
def test_a_download_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_url", Mirror(failure))
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else DataError
    with pytest.raises(expected) as caught:
        module_at(tmp_path / "new", download=True).prepare_data()
    assert list(tmp_path.iterdir()) == []
    if expected is DataError:
        message = str(caught.value)
        assert (
            f"the download failed (https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz: {failure}"
            in message
        )
        assert "data.root=DIR" in message
        assert "data.download=true" not in message  # it was
        assert str(tmp_path / "new" / "MNIST" / "raw") in message


def test_keeps_the_files_that_arrived_before_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_url", Mirror(KeyboardInterrupt(), fails_at="t10k"))
    with pytest.raises(KeyboardInterrupt):
        module_at(tmp_path, download=True).prepare_data()
    assert len(module_at(tmp_path).split("train")[1]) == TRAIN
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
