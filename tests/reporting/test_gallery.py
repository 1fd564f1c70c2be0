"""Attacked images: what was changed, who was fooled, and nothing where nothing was kept."""

from pathlib import Path

import numpy as np
import pytest

from glr_lightning.errors import CheckpointError
from glr_lightning.evaluation.per_image import PerImage, write_per_image
from glr_lightning.reporting.gallery import blocks, chosen, galleries, gallery, signed, strip
from glr_lightning.reporting.runs import read_runs
from tests.checks.gallery import evidence, looked_at
from tests.checks.reports import make_run, row, standard, written


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gallery_shows_the_change_and_who_was_fooled(channels: int, tmp_path: Path) -> None:
    (run,) = read_runs([looked_at(tmp_path / "a", channels)])
    (block,) = blocks(run)  # the largest budget
    assert block.title == "pgd, epsilon 0.2 (linf), gradient: none †"
    assert block.scale == pytest.approx(0.2)
    (axes,) = gallery([block]).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0", "1", "0", "7, not 1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", "±0.2", "attacked"]
    (picture,) = galleries([run])
    assert picture.name == "gallery/a.png"
    assert picture.png.startswith(b"\x89PNG")


def test_a_gallery_shows_the_strongest_way_of_each_threat_first(tmp_path: Path) -> None:
    ways = [("fgsm", source, 100 - place) for place, source in enumerate(("autograd", "transfer", "straight_through"))]
    ways += [(name, "none", 90) for name in ("a", "b", "c", "d")]
    rows = [row("clean", 180, fingerprint="c")]
    rows += [
        row(name, hits, 0.1, "attack", gradient_source=source, fingerprint=f"{name}{source}")
        for name, source, hits in ways
    ]
    folder = make_run(tmp_path / "a", rows=rows)
    same = evidence(np.full((2, 1, 4, 4), 100), [0, 1])
    write_per_image(folder / "robustness.npz", {each.fingerprint: same for each in rows})
    (run,) = read_runs([folder])
    shown = [(block.threat, block.title.rsplit(" ", 1)[1]) for block in chosen(blocks(run))]
    sources = ("transfer", "straight_through")  # of fgsm, in the order of the table
    assert shown == [*(("fgsm", source) for source in sources), *((name, "none") for name in ("a", "b", "c", "d"))]
    (picture,) = galleries([run])
    assert ", 6 of 7 attacks, of each kind the strongest first" in picture.caption


def test_signed_colours() -> None:
    change = np.array([-0.2, -0.1, 0, 0.1, 0.2]).reshape(1, 1, 1, 5)
    red, _, blue = signed(change, 0.2)[0, :, 0]
    assert (red[3:] > blue[3:]).all()
    assert (red[:2] < blue[:2]).all()
    assert red[2] == pytest.approx(blue[2], abs=0.01)
    assert red[2] > 0.95
    each = signed(change.repeat(3, axis=1), 0.2)[0, 0, 0]
    assert each == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_strips_hold_every_pixel() -> None:
    images = np.random.default_rng(0).random((3, 3, 4, 5))
    found = strip(images)
    assert found.shape == (6, 3 * 7, 3)
    for place in range(3):
        inner = found[1:-1, 7 * place + 1 : 7 * place + 6]
        assert (inner == images[place].transpose(1, 2, 0)).all()
    assert (found[0] == 1).all()


def test_no_gallery_without_kept_images_and_damage_is_refused(tmp_path: Path) -> None:
    assert galleries(read_runs([make_run(tmp_path / "a", rows=standard())])) == []
    folder = looked_at(tmp_path / "b")
    (folder / "robustness.npz").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"robustness\.npz"):
        written([folder], tmp_path / "out")
    other = looked_at(tmp_path / "c")
    kept = {"c": evidence(np.zeros((1, 1, 4, 4)), [0]), "p0.2": evidence(np.zeros((2, 1, 4, 4)), [0, 1])}
    write_per_image(other / "robustness.npz", kept)  # not of the same images
    assert galleries(read_runs([other])) == []
    image, hit = np.zeros((1, 1, 4, 4), np.uint8), np.ones(1, bool)
    one, two = (PerImage(hit, image, np.array([label]), np.array([label])) for label in (1, 2))
    write_per_image(other / "robustness.npz", {"c": one, "p0.2": two})  # other labels
    assert galleries(read_runs([other])) == []
    odd = PerImage(np.ones(2, bool), np.zeros((2, 1, 4, 4), np.uint8), np.arange(2), np.arange(1))
    write_per_image(other / "robustness.npz", {"c": odd, "p0.2": odd})
    assert galleries(read_runs([other])) == []
