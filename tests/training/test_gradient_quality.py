"""What a run says of itself: dead classes, signal-to-noise ratios, what the baseline explains, the plan."""

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from glr_lightning.activations import HardThreshold
from glr_lightning.baselines import LeaveOneOut, NoBaseline
from glr_lightning.cli.train import main
from glr_lightning.config import compose
from glr_lightning.estimators import Backprop, LikelihoodRatio
from glr_lightning.losses import ZeroOne
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.runs.trained_run import build_network
from glr_lightning.training import fit as train_module
from glr_lightning.training.callbacks.checkpoints import run_checkpoints
from glr_lightning.training.callbacks.class_collapse import REMEDY, ClassCounts, news_of_classes
from glr_lightning.training.callbacks.gradient_quality import WINDOW, SignalToNoise, WatchedBaseline, watched
from glr_lightning.training.fit import train
from tests.checks.cli_runner import run_cli
from tests.checks.estimator_cases import X, Y, estimate, small_network
from tests.checks.gradient_quality import check_signal_to_noise

FAST = ["estimator=likelihood_ratio", "sigma=0.5", "progress=false", "copies=8", "epochs=2"]


# ---- dead classes ---------------------------------------------------------------------------------------------------


def test_a_class_is_dead_below_one_prediction_in_a_hundred_labels() -> None:
    counts = ClassCounts(4)
    labels = torch.tensor([0] * 200 + [1] * 201 + [2] * 50)  # class 3 has no images
    predictions = torch.tensor([0] * 2 + [1] * 2 + [2] * 447)
    counts.update(nn.functional.one_hot(predictions, 4).double(), labels)
    assert counts.compute().tolist() == [False, True, False, False]
    counts.reset()
    counts.update(torch.zeros(0, 4), labels[:0])
    assert not counts.compute().any()


def test_news_are_told_once() -> None:
    assert news_of_classes([3], [3], 5) == []
    (died,) = news_of_classes([], [3, 1], 0)
    assert died.startswith("classes 1, 3 died in epoch 1:")
    assert all(remedy in died for remedy in ("optimizer.lr", "batch_size", "network.centre=0.5", "local_expectation"))
    (another,) = news_of_classes([3], [3, 1], 1)
    assert another.startswith("class 1 died in epoch 2:")
    assert "try" not in another
    (lifted,) = news_of_classes([], [3], 0, reviving=True)
    assert lifted.endswith("revive lifts its bias until it is predicted again.")
    (both,) = news_of_classes([], [3, 1], 0, reviving=True)
    assert both.endswith(
        "their labels. callbacks.class_collapse.revive lifts their biases until they are predicted again."
    )
    (recovered,) = news_of_classes([3, 1], [1], 4)
    assert recovered == "class 3 recovered in epoch 5."


def test_a_run_tells_when_a_class_dies_and_when_it_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bias of -100 on one logit, mended before the third epoch; a learning rate of 0 leaves all else as it is."""

    def with_a_starved_class(*args: object) -> nn.Sequential:
        network = build_network(*args)  # type: ignore[arg-type]
        network.linear2.weight.data.zero_()
        network.linear2.bias.data.zero_()
        network.linear2.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        network.linear2.bias.data[3] = -100.0
        return network  # type: ignore[no-any-return]

    class Mend(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                pl_module.network.linear2.bias.data[3] = 100.0

    monkeypatch.setattr(train_module, "build_network", with_a_starved_class)
    monkeypatch.setattr(train_module, "run_checkpoints", lambda *arguments: [Mend(), *run_checkpoints(*arguments)])
    config = compose(["optimizer.lr=0.0", "callbacks=[]", "progress=false", "copies=4", "epochs=3"])
    result = train(config, tmp_path / "run")
    said = caplog.messages
    (died,) = [line for line in said if "died" in line and "3" in line.split(" died")[0]]
    assert "in epoch 1" in died
    assert any(line.endswith("recovered in epoch 3.") and "3" in line.split(" recovered")[0] for line in said)
    metrics = read_metrics(tmp_path / "run/metrics.csv")
    assert metrics[0]["dead_classes"] == metrics[1]["dead_classes"] >= 1
    assert result["dead_classes"] == [number for number in range(10) if number != 3]  # now all images are of class 3
    assert json.loads((tmp_path / "run/result.json").read_text())["dead_classes"] == result["dead_classes"]


@pytest.mark.parametrize("progress", ["true", "false"])
def test_glr_train_prints_the_plan_and_the_dead_classes(
    progress: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ClassCounts, "compute", lambda self: torch.arange(10) == 7)
    outcome = run_cli(
        main, ["run_dir=run", *FAST[:2], *FAST[3:], f"progress={progress}", "callbacks=[]"], monkeypatch, capsys
    )
    assert outcome.code == 0, outcome.err
    lines = outcome.err.splitlines()
    assert "LikelihoodRatio descends E[L] under noise at all layers." in lines
    assert "  linear1, linear2: likelihood ratio, from loss values" in lines
    (died,) = [line for line in lines if "died" in line]
    assert died.startswith("class 7 died in epoch 1: ")
    assert died.endswith(f"else try {REMEDY}.")
    assert any(line.split() == ["dead", "class", "7,", "hardly", "predicted"] for line in lines)


# ---- the gradients --------------------------------------------------------------------------------------------------


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
