"""Annealing: refused before anything is written, and seen by the training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glr_lightning.config import compose
from glr_lightning.estimators import Backprop, Bound, Estimate, LikelihoodRatio, LocalExpectation, NoisyBackprop
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.sampling import Independent
from glr_lightning.schedules import Geometric
from glr_lightning.training.callbacks import Annealing
from glr_lightning.training.fit import train
from tests.checks.interruption import assert_same_training, train_in_two_parts
from tests.checks.refusals import refused


def test_sigma_is_multiplied_and_copies_are_whole_pairs() -> None:
    estimator, annealing = LikelihoodRatio(sigma=(2.0, 1.0), copies=4), Annealing(Geometric(0.25), Geometric(64))
    found = [replace(estimator, **annealing.at(estimator, epoch, 5)) for epoch in range(5)]
    assert [e.copies for e in found] == [4, 8, 16, 32, 64]
    assert [e.sigma[0] for e in found] == pytest.approx([2.0 * 0.25 ** (n / 4) for n in range(5)])  # type: ignore[index]
    assert found[-1].sigma == pytest.approx((0.5, 0.25))
    rounded = [Annealing(copies=Geometric(30)).at(estimator, epoch, 7)["copies"] for epoch in range(7)]
    assert (rounded[0], rounded[-1]) == (4, 30)
    assert all(number % 2 == 0 for number in rounded)
    assert Annealing(copies=Geometric(3)).at(NoisyBackprop(copies=1, sampling=Independent()), 1, 3) == {"copies": 2}


def test_one_epoch_has_the_configured_values() -> None:
    estimator = LikelihoodRatio(copies=4)
    assert Annealing(Geometric(0.1), Geometric(8)).at(estimator, 0, 1) == {"sigma": 1.0, "copies": 4}


def test_without_schedules_every_estimator_stays_as_it_is() -> None:
    Annealing().check_epochs(Backprop(), 3)
    assert Annealing().at(Backprop(), 2, 3) == {}


def test_what_cannot_work_in_a_later_epoch_is_refused_at_once() -> None:
    with refused("callbacks.annealing.copies", "copies=9 in epoch 4", "use copies=10"):
        Annealing(copies=Geometric(9)).check_epochs(LikelihoodRatio(copies=4), 4)
    with refused("callbacks.annealing.sigma", "leave it out"):
        Annealing(Geometric(0.1)).check_epochs(Backprop(), 4)


@pytest.mark.parametrize("estimator", [LikelihoodRatio, LocalExpectation])
def test_a_run_follows_its_schedules_logs_them_and_resumes_bit_for_bit(
    estimator: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["sigma=0.5", "callbacks=annealing", "callbacks.annealing.sigma.end=0.25", "copies=4"]
    options += ["callbacks.annealing.copies={_target_:glr_lightning.schedules.Geometric,end:16}"]
    name = {LikelihoodRatio: "likelihood_ratio", LocalExpectation: "local_expectation"}[estimator]
    config = compose([f"estimator={name}", *options, "batch_size=128", "epochs=3", "progress=false"])
    seen: list[tuple[int, object]] = []
    estimate = Bound.estimate

    def watched(self: Any, *args: Any) -> Estimate:
        seen.append((self.estimator.copies, self.estimator.sigma))
        return estimate(self, *args)

    monkeypatch.setattr(Bound, "estimate", watched)
    train(config, tmp_path / "whole")
    assert list(dict.fromkeys(seen)) == [(4, 0.5), (8, 0.25), (16, 0.125)]
    metrics = read_metrics(tmp_path / "whole/metrics.csv").values()
    assert [(row["copies"], row["sigma"]) for row in metrics] == [(4, 0.5), (8, 0.25), (16, 0.125)]

    train_in_two_parts(config, tmp_path / "parts", stop_at=17)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
