"""Adversarial images made once: the same for every network, and refused for other images."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.evaluation.attempts import Attempt, attempts
from glr_lightning.evaluation.fingerprints import attack_fingerprint
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.surrogates import with_kept_images
from glr_lightning.runs.trained_run import TrainedRun
from glr_lightning.storage import write_arrays
from glr_lightning.threats import Attack, attack
from glr_lightning.threats.attacks.adversarial_set import adversarial_set, image_checksums, load_set
from glr_lightning.threats.attacks.fgsm import fgsm
from tests.checks.harness_cases import run

SHAPE = (1, 4, 4)


def linear(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def images(n: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator), torch.randint(3, (n,), generator=generator)


def inputs(seed: int = 0, batch_size: int = 7, **settings: Any) -> Inputs:
    x, y = images()
    return Inputs(linear(seed), x, y, 0, batch_size=batch_size, **settings)


def twin(folder: Path = Path(), seed: int = 9) -> TrainedRun:
    """The surrogate, as a run that keeps its images in a folder."""
    return TrainedRun(folder, {}, linear(seed), None, {})  # type: ignore[arg-type]


def transfer(**settings: Any) -> Attempt:
    (attempt,) = attempts({"fgsm": attack(fgsm, epsilon=0.1, gradient_source="transfer", **settings)}, ["twin"])
    return attempt


@pytest.mark.parametrize("targeted", [False, True])
def test_a_kept_set_gives_the_row_that_the_attack_gives_and_is_made_once(tmp_path: Path, targeted: bool) -> None:
    calls = []
    for seed in (0, 1):  # two networks, one surrogate
        exam, attempt = inputs(seed), transfer(targeted=targeted)
        direct = run(attempt, exam, linear(9))
        kept = run(with_kept_images(exam, attempt, twin(tmp_path), lambda: calls.append(1)), exam)
        assert kept.row == replace(direct.row, seconds=kept.row.seconds, fingerprint=kept.row.fingerprint)
        assert np.array_equal(direct.per_image.examples, kept.per_image.examples)
        assert kept.row.zero_gradient_fraction == 0
    assert len(calls) == 5  # batches of the first
    assert len(list((tmp_path / "adversarial").glob("*.npz"))) == 1


def test_other_parameters_surrogates_images_and_seeds_make_another_set(tmp_path: Path) -> None:
    x, y = images()
    own = Inputs(linear(0), x, y)
    found = {attack_fingerprint(own, transfer(targeted=targeted), linear(9)) for targeted in (False, True)}
    found.add(attack_fingerprint(Inputs(linear(0), x, y, 1), transfer(), linear(9)))
    found.add(attack_fingerprint(own, transfer(), linear(8)))
    found.add(attack_fingerprint(Inputs(linear(0), x.flip(0), y), transfer(), linear(9)))
    assert len(found) == 5
    assert attack_fingerprint(inputs(batch_size=30, run="elsewhere"), transfer(), linear(9)) in found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    exam = inputs()
    with_kept_images(exam, transfer(), twin(tmp_path))
    (path,) = (tmp_path / "adversarial").glob("*.npz")
    return path


def test_a_named_set_is_a_threat_of_its_own(path: Path) -> None:
    threat = adversarial_set(str(path))
    (attempt,) = attempts({"mine": threat})  # no surrogate is needed any more
    row, direct = run(attempt, inputs()).row, run(transfer(), inputs(), linear(9)).row
    assert (row.threat, row.norm, row.level, row.surrogate) == ("mine", "linf", 0.1, "twin")
    assert row.correct == direct.correct
    assert row.gradient_source == "transfer"
    x, y = images()
    some = torch.tensor([3, 11])
    assert run(attempt, Inputs(linear(0), x[some], y[some], 0, index=some)).row.n == 2


@pytest.mark.parametrize("what", ["other images", "other labels", "more images", "another shape"])
def test_a_set_for_other_data_is_refused(path: Path, what: str) -> None:
    x, y = images(40 if what == "more images" else 30, seed=5 if what == "other images" else 0)
    y = (y + 1) % 3 if what == "other labels" else y
    x = x.reshape(30, 1, 2, 8) if what == "another shape" else x
    (attempt,) = attempts({"mine": adversarial_set(str(path))})
    with pytest.raises(ConfigurationError, match=r"was made from other images|the shape it was given"):
        run(attempt, Inputs(linear(0), x, y, 0))


def test_checksums_tell_pixels_places_and_labels_apart() -> None:
    x, y = images()
    sums = image_checksums(x, y)
    swapped = x.clone()
    swapped[:, 0, 0, [0, 1]] = x[:, 0, 0, [1, 0]]
    nudged = x.clone()
    nudged[:, 0, 3, 3] += 1e-6
    for other in (image_checksums(swapped, y), image_checksums(nudged, y), image_checksums(x, y + 1)):
        assert not (other == sums).any()


class TestDamage:
    def test_of_any_kind_is_refused(self, path: Path) -> None:
        whole = path.read_bytes()
        with np.load(path) as file:
            arrays = {key: file[key] for key in ("images", "checksums", "zero_gradient", "facts")}
        for content in (b"", whole[: len(whole) // 2], b"\x80\x04N."):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="cannot be read"):
                load_set(path)
        for change in (
            {"images": arrays["images"][:3]},
            {"facts": np.frombuffer(b"{}", np.uint8)},
            {"facts": np.frombuffer(b"[", np.uint8)},
            {"images": arrays["images"].astype("float64")},
            {"more": arrays["facts"]},
        ):
            write_arrays(path, arrays | change)
            with pytest.raises(CheckpointError, match="cannot be read"):
                load_set(path)

    def test_nobody_is_told_to_remove_a_file_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "best.ckpt"
        torch.save({"state_dict": {}}, path)  # a .zip, which numpy opens
        with pytest.raises(CheckpointError, match=r"no \.npz file of arrays\. Name a file"):
            adversarial_set(str(path))

    def test_pickled_objects_are_never_loaded(self, path: Path, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "exploded",))

        np.savez(path, images=np.array([Bomb()], dtype=object))
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_set(path)
        assert not (tmp_path / "exploded").exists()

    def test_nothing_is_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            with_kept_images(inputs(), transfer(), twin(tmp_path))
        assert not list(tmp_path.iterdir())


def test_a_threat_without_levels_and_norm_can_be_kept(tmp_path: Path) -> None:
    def halve(model: Any, x: Tensor, y: Tensor, *, random: Any) -> Tensor:
        model.gradient(x, y)
        return x / 2

    (attempt,) = attempts({"half": Attack(function=halve, gradient_sources=("transfer",))}, ["twin"])
    exam = inputs()
    kept = run(with_kept_images(exam, attempt, twin(tmp_path)), exam)
    assert (kept.row.norm, kept.row.level) == ("", None)
    assert kept.row.max_linf == pytest.approx(float(exam.images.max()) / 2)


@pytest.mark.parametrize("shape", [(10**12,), (10**30,)])
def test_files_that_numpy_stumbles_over_are_refused_too(path: Path, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    contents = {"images.npy": header.getvalue()}, {"images.npy": b"no array"}, {"read.me": b"no array"}
    for content in contents:
        with zipfile.ZipFile(path, "w") as file:
            for name, data in content.items():
                file.writestr(name, data)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_set(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_set(path)
    np.savez_compressed(path, images=np.zeros(1000))
    damaged = bytearray(path.read_bytes())
    damaged[45:60] = bytes([255] * 15)
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_set(path)
