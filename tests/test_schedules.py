"""Schedules: pure functions of the epoch, refused before anything is written, and seen by the training."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from glr_lightning.config import compose
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Backprop, Estimate, LikelihoodRatio, LocalExpectation, NoisyBackprop
from glr_lightning.reporting.results import read_metrics
from glr_lightning.schedules import Constant, Geometric, Schedule
from glr_lightning.training.callbacks.annealing import Annealing
from glr_lightning.training.fit import train
from tests.checks.groups import member, options
from tests.checks.interruption import assert_same_training, train_in_two_parts

SCHEDULES = [member(group, option) for group in ("sigma_schedule", "copies_schedule") for option in options(group)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_begins_at_its_start_and_is_monotone(schedule: Schedule) -> None:
    values = [schedule(3.0, epoch / 10) for epoch in range(11)]
    assert values[0] == 3.0
    assert values in (sorted(values), sorted(values, reverse=True))


def test_a_geometric_one_ends_at_its_end_with_equal_factors() -> None:
    values = [Geometric(0.1)(2.0, epoch / 4) for epoch in range(5)]
    assert values[-1] == pytest.approx(0.1)
    assert [b / a for a, b in itertools.pairwise(values)] == pytest.approx([(0.05) ** 0.25] * 4)


def test_sigma_is_multiplied_and_copies_are_whole_pairs() -> None:
    annealing = Annealing(LikelihoodRatio(sigma=(2.0, 1.0), copies=4), Geometric(0.25), Geometric(64), epochs=5)
    found = [annealing.at(epoch) for epoch in range(5)]
    assert [e.copies for e in found] == [4, 8, 16, 32, 64]  # type: ignore[attr-defined]
    assert [e.sigma[0] for e in found] == pytest.approx([2.0 * 0.25 ** (n / 4) for n in range(5)])  # type: ignore[attr-defined]
    assert found[-1].sigma == pytest.approx((0.5, 0.25))  # type: ignore[attr-defined]
    rounded = Annealing(LikelihoodRatio(copies=4), Constant(), Geometric(30), epochs=7)
    copies = [rounded.at(epoch).copies for epoch in range(7)]  # type: ignore[attr-defined]
    assert (copies[0], copies[-1]) == (4, 30)
    assert all(number % 2 == 0 for number in copies)
    assert Annealing(NoisyBackprop(copies=1), Constant(), Geometric(3), 3).at(1).copies == 2  # type: ignore[attr-defined]


def test_one_epoch_has_the_configured_values() -> None:
    estimator = LikelihoodRatio(copies=4)
    assert Annealing(estimator, Geometric(0.1), Geometric(8), epochs=1).at(0) == estimator


def test_constant_schedules_work_with_every_estimator_and_change_nothing() -> None:
    estimator = Backprop()
    assert Annealing(estimator, Constant(), Constant(), epochs=3).at(2) == estimator


def test_what_cannot_work_in_a_later_epoch_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"copies=9 in epoch 4: antithetic sampling needs copies"):
        Annealing(LikelihoodRatio(copies=4), Constant(), Geometric(9), epochs=4)
    with pytest.raises(ConfigurationError, match="sigma, which Backprop does not have"):
        Annealing(Backprop(), Geometric(0.1), Constant(), epochs=4)
    for end in (0, -1, math.inf, math.nan, "big", True):
        with pytest.raises(ConfigurationError) as refusal:
            Geometric(end)  # type: ignore[arg-type]
        assert refusal.value.option == "end"


@pytest.mark.parametrize("estimator", [LikelihoodRatio, LocalExpectation])
def test_a_run_follows_its_schedules_logs_them_and_resumes_bit_for_bit(
    estimator: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["sigma=0.5", "sigma_schedule=geometric", "sigma_schedule.end=0.25"]
    options += ["copies=4", "copies_schedule=geometric", "copies_schedule.end=16"]
    name = {LikelihoodRatio: "likelihood_ratio", LocalExpectation: "local_expectation"}[estimator]
    config = compose([f"estimator={name}", *options, "batch_size=128", "epochs=3", "progress=false"])
    seen: list[tuple[int, object]] = []
    estimate = estimator.estimate

    def watched(self: Any, *args: object, **kwargs: object) -> Estimate:
        seen.append((self.copies, self.sigma))
        return estimate(self, *args, **kwargs)

    monkeypatch.setattr(estimator, "estimate", watched)
    train(config, tmp_path / "whole")
    assert list(dict.fromkeys(seen)) == [(4, 0.5), (8, 0.25), (16, 0.125)]
    metrics = read_metrics(tmp_path / "whole/metrics.csv").values()
    assert [(row["copies"], row["sigma"]) for row in metrics] == [(4, 0.5), (8, 0.25), (16, 0.125)]

    train_in_two_parts(config, tmp_path / "parts", stop_at=17)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
