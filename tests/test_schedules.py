"""Schedules: pure functions of how much of the training is done."""

import itertools
import math

import pytest

from glr_lightning.errors import ConfigurationError
from glr_lightning.schedules import Geometric, Schedule

SCHEDULES = [Geometric(0.1), Geometric(30)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_begins_at_its_start_and_is_monotone(schedule: Schedule) -> None:
    values = [schedule(3.0, epoch / 10) for epoch in range(11)]
    assert values[0] == 3.0
    assert values in (sorted(values), sorted(values, reverse=True))


def test_a_geometric_one_ends_at_its_end_with_equal_factors() -> None:
    values = [Geometric(0.1)(2.0, epoch / 4) for epoch in range(5)]
    assert values[-1] == pytest.approx(0.1)
    assert [b / a for a, b in itertools.pairwise(values)] == pytest.approx([(0.05) ** 0.25] * 4)


@pytest.mark.parametrize("end", [0, -1, math.inf, math.nan, "big", True])
def test_an_end_that_is_no_positive_number_is_refused(end: object) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Geometric(end)  # type: ignore[arg-type]
    assert refusal.value.option == "end"
