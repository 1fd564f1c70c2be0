"""What a run says of its gradients: signal-to-noise ratios, what the baseline explains."""

from pathlib import Path

import pytest
import torch

from glr_lightning.activations import HardThreshold
from glr_lightning.baselines import LeaveOneOut, NoBaseline
from glr_lightning.config import compose
from glr_lightning.estimators import Backprop, LikelihoodRatio
from glr_lightning.losses import ZeroOne
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.training.callbacks.gradient_quality import WINDOW, SignalToNoise, WatchedBaseline, watched
from glr_lightning.training.fit import train
from tests.checks.estimator_cases import X, Y, estimate, small_network
from tests.checks.gradient_quality import check_signal_to_noise

FAST = ["estimator=likelihood_ratio", "sigma=0.5", "progress=false", "copies=8", "epochs=2"]


def test_the_ratio_is_that_of_signal_and_noise() -> None:
    check_signal_to_noise()


def test_windows_that_are_not_full_say_nothing() -> None:
    snr = SignalToNoise()
    for _ in range(WINDOW - 1):
        snr.update({"a.weight": torch.ones(3)})
    assert snr.compute_and_reset() == {}
    for _ in range(WINDOW):
        snr.update({"a.weight": torch.ones(3)})
    (name,) = snr.compute_and_reset()
    assert name == "snr_a"


def test_a_baseline_explains_what_it_takes_away() -> None:
    loss = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss += 2 * torch.arange(1000) % 7  # which differs between images and not between copies
    watch = WatchedBaseline(LeaveOneOut())
    group = torch.arange(8)
    for _ in range(2):
        assert torch.equal(watch(loss, group, None), LeaveOneOut()(loss, group, None))
    # the remainder has the variance of (1 + 1/7) of one copy's noise
    expected = 1 - (1 + 1 / 7) * float(loss.var(dim=0).mean()) / float(loss.var())
    assert watch.compute_and_reset()["baseline_explained"] == pytest.approx(expected, abs=1e-3)
    assert watch.compute_and_reset() == {}
    none = WatchedBaseline(NoBaseline())
    none(loss, group, None)
    assert none.compute_and_reset()["baseline_explained"] == 0


def test_watching_changes_no_estimate() -> None:
    estimator = LikelihoodRatio(copies=8)
    same, watch = watched(estimator)
    network = small_network(HardThreshold())
    a, b = (estimate(e, network, ZeroOne(), X, Y).gradients for e in (estimator, same))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert watch is not None
    assert watched(Backprop()) == (Backprop(), None)


def test_a_run_with_diagnostics_is_the_same_run_and_logs_them(tmp_path: Path) -> None:
    plain = train(compose(FAST), tmp_path / "plain")
    told = train(compose(["callbacks=[class_collapse,gradient_quality]", *FAST]), tmp_path / "told")
    assert plain | {"train_seconds": 0} == told | {"train_seconds": 0}
    names = {"snr_linear1", "snr_linear2", "baseline_explained"}
    for row in read_metrics(tmp_path / "told/metrics.csv").values():
        assert names <= row.keys()
        assert row["snr_linear1"] >= 0
        assert row["baseline_explained"] < 1
    assert not names & read_metrics(tmp_path / "plain/metrics.csv")[0].keys()
