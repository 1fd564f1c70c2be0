"""Which units are moved: any or by weight, and how much each counts."""

from typing import Literal

import pytest
import torch

from glr_lightning.estimators.unit_choice import by_weight, draw_choice

Z = torch.zeros(2, 3, 4, 2)  # two copies of three samples of 8 units


def test_uniform_units_are_without_repetition_and_all_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([draw_choice("uniform", Z, 3, generator) for _ in range(2000)])
    assert chosen.shape == (2000, 2, 3, 3)
    assert all(len(set(units)) == 3 for units in chosen[:50].flatten(0, 2).tolist())
    torch.testing.assert_close(chosen.flatten().bincount() / chosen.numel(), torch.full((8,), 0.125), atol=0.01, rtol=0)


@pytest.mark.parametrize("choice", ["uniform", "weighted"])
@pytest.mark.parametrize("units", [None, 8, 9])
def test_where_all_units_are_moved_each_is_moved_once(
    choice: Literal["uniform", "weighted"], units: int | None
) -> None:
    chosen = draw_choice(choice, Z, units, torch.Generator().manual_seed(0))
    assert torch.equal(chosen.sort(2).values, torch.arange(8).expand(2, 3, 8))


def test_units_chosen_by_weight_count_the_inverse_of_their_share() -> None:
    generator, weight = torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, 2.0, 0.0, 4.0, 1.0, 0.0, 0.0])
    z = torch.zeros(500, 3, 4, 2, dtype=torch.float64)
    chosen, counts = by_weight(draw_choice("weighted", z, 2, generator), weight.double().expand(500, 3, 8))
    frequency = chosen.flatten().bincount(minlength=8) / chosen.numel()
    torch.testing.assert_close(frequency.float(), weight / 8, atol=0.03, rtol=0)
    torch.testing.assert_close(counts, 8 / (2 * weight.double()[chosen]))
    # what the units say, 1 each, adds up to the number of units with a weight
    assert float(counts.sum(2).mean()) == pytest.approx(4, rel=0.05)


def test_a_sample_without_any_weight_has_its_units_chosen_alike() -> None:
    points = draw_choice("weighted", Z, 4, torch.Generator().manual_seed(0))
    chosen, counts = by_weight(points, torch.zeros(2, 3, 8))
    assert torch.equal(counts, torch.full_like(counts, 2.0))
    assert all(len(set(units)) == 4 for units in chosen.flatten(0, 1).tolist())


def test_a_point_beyond_the_rounded_sum_falls_on_a_unit_with_weight() -> None:
    weight = torch.tensor([100.0 / 3] * 11 + [0.0])
    assert (weight / weight.sum()).cumsum(0)[-1] < 1  # else there is no such point
    chosen, counts = by_weight(torch.full((1, 1, 1), 1 - 2.0**-24), weight.expand(1, 1, 12))
    assert chosen.item() == 10
    assert counts.item() == pytest.approx(11)
