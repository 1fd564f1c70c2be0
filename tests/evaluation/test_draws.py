"""Random numbers that the levels of a threat share: drawn once, and the same as if drawn each time."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from glr_lightning.evaluation.draws import KeptDraws
from glr_lightning.evaluation.named_threats import named_threats
from glr_lightning.threats import Corruption, ImageRandom, Threat
from tests.checks.harness_cases import evaluate, images, linear

CORRUPTIONS = ["gaussian_noise", "impulse_noise", "shot_noise", "glass_blur", "elastic_transform"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the random bits of each stream were computed."""
    count: Counter[int] = Counter()
    bits = ImageRandom._bits

    def counted(self: ImageRandom, shape: Sequence[int], stream: int, skip: int = 0) -> Tensor:
        count[stream] += 1
        return bits(self, shape, stream, skip)

    monkeypatch.setattr(ImageRandom, "_bits", counted)
    return count


def fields(threats: dict[str, Threat]) -> list[tuple[object, ...]]:
    x, y = images()
    rows = evaluate(linear((1, 8, 8)), x, y, threats, seed=3, batch_size=25)
    return [(row.threat, row.level, row.correct, row.mean_l2, row.max_linf) for row in rows]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_kept_draws_change_no_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threats = named_threats([name])
    kept = fields(threats)
    monkeypatch.setattr(ImageRandom, "once", lambda self, draw, *what: draw(self, *what))
    assert kept == fields(threats)


def test_all_levels_share_one_draw_a_batch(drawn: Counter[int]) -> None:
    threats = named_threats(["gaussian_noise"])
    assert isinstance(threats["gaussian_noise"], Corruption)
    assert len(threats["gaussian_noise"].levels) == 5
    assert len(fields(threats)) == 5
    assert drawn == {0: 3}  # 60 images in batches of 25


def test_further_passes_of_glass_blur_go_on_from_the_first(drawn: Counter[int]) -> None:
    levels = named_threats(["glass_blur"])["glass_blur"].levels
    assert [parameters["iterations"] for _, parameters in levels] == [1, 1, 1, 2, 2]
    fields(named_threats(["glass_blur"]))
    assert drawn == {0: 2 * 3}  # two passes for each of three batches


def test_without_a_keeper_it_draws_each_time(drawn: Counter[int]) -> None:
    random = ImageRandom(0, torch.arange(2))
    first, second = (random.once(ImageRandom.uniform, (3,), 4) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, random.uniform((3,), 4))
    assert drawn == {4: 3}


def test_another_threat_starts_afresh(drawn: Counter[int]) -> None:
    draws = KeptDraws()
    random = ImageRandom(0, torch.arange(2), draws.of(0))
    for owner in ("a", "a", "b"):
        draws.keep_for(owner)
        random.once(ImageRandom.uniform, (3,), 0)
    assert drawn == {0: 2}


def test_batches_do_not_share() -> None:
    draws = KeptDraws()
    first, second = (
        ImageRandom(0, torch.arange(i, i + 2), draws.of(i)).once(ImageRandom.uniform, (3,), 0) for i in (0, 2)
    )
    assert not torch.equal(first, second)


def test_what_does_not_fit_is_drawn_again(drawn: Counter[int]) -> None:
    draws = KeptDraws(most=30)
    one, two = (ImageRandom(0, torch.arange(2), draws.of(batch)) for batch in range(2))
    for random in (one, two, one, two):
        random.once(ImageRandom.uniform, (3,), 0)  # 24 bytes
    assert drawn == {0: 3}
