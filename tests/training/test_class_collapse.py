"""Class collapse: dead classes are told of, and starving ones get their bias lifted, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from glr_lightning.cli.train import main
from glr_lightning.config import compose
from glr_lightning.estimators import Bound
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.runs.trained_run import LAST, load_checkpoint, load_run
from glr_lightning.training import fit as train_module
from glr_lightning.training.callbacks import class_collapse
from glr_lightning.training.callbacks.checkpoints import run_checkpoints
from glr_lightning.training.callbacks.class_collapse import (
    REMEDY,
    ClassCollapse,
    lift,
    news_of_classes,
    output_bias,
    starving,
)
from glr_lightning.training.dead_classes import dead, dead_classes
from glr_lightning.training.fit import train
from tests.checks.cli_runner import run_cli
from tests.checks.refusals import refused

FAST = ["estimator=likelihood_ratio", "sigma=0.5", "progress=false", "copies=8", "epochs=2"]


def test_a_class_starves_below_a_tenth_of_enough_labels() -> None:
    labels = torch.tensor([100, 100, 100, 20, 19, 0])
    predictions = torch.tensor([9, 10, 300, 0, 0, 0])
    assert starving(labels, predictions).tolist() == [True, False, False, True, False, False]


def test_the_bias_of_starving_classes_alone_is_lifted() -> None:
    bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    count = lift(bias, torch.tensor([50, 50, 50]), torch.tensor([0, 100, 50]), by=0.25)
    assert bias.tolist() == [1.25, 2.0, 3.0]
    assert int(count) == 1


def test_the_output_bias_is_that_of_the_last_layer_and_must_be_there() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert output_bias(network, 2) is network[2].bias
    for other in (nn.Sequential(nn.Linear(3, 2, bias=False)), nn.Sequential(nn.Linear(3, 5))):
        with refused("callbacks.class_collapse.revive", "network.bias=true"):
            output_bias(other, 2)


@pytest.mark.parametrize("revive", [None, 2.0])
def test_a_class_that_is_driven_to_death_comes_back_with_revival_only(
    revive: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At a logit of -10 under noise of scale 0.5 class 3 has no gradient at all."""
    options = [
        "experiment=lrtz",
        f"callbacks.class_collapse.revive={'null' if revive is None else revive}",
        "epochs=8",
        "progress=false",
    ]
    config = compose([*options, "data.validation=0"])
    right = Bound.estimate
    steps = 0

    def at_first_dead(self: Any, *args: Any) -> Any:
        nonlocal steps
        if steps == 0:
            self.network[-1].bias.data[3] = -10.0
        steps += 1
        return right(self, *args)

    monkeypatch.setattr(Bound, "estimate", at_first_dead)
    result = train(config, tmp_path / "run")
    assert result["dead_classes"] == ([3] if revive is None else [])
    metrics = (tmp_path / "run/metrics.csv").read_text()
    assert ("lifts" in metrics) == (revive is not None)
    assert any("died" in line and "3" in line.split(" died")[0] for line in caplog.messages)
    came_back = any("recovered" in line and "3" in line.split(" recovered")[0] for line in caplog.messages)
    assert came_back == (revive is not None)


def test_validation_judges_the_network_that_the_checkpoint_holds(tmp_path: Path) -> None:
    """One step that moves nothing but the biases of the many classes that a new network does not predict."""
    options = ["optimizer=sgd", "optimizer.lr=0.0", "batch_size=1500", "epochs=1", "data.validation=0.1"]
    train(
        compose(["experiment=lrtz", "callbacks.class_collapse.revive=100", *options, "progress=false"]),
        tmp_path / "run",
    )
    metrics = read_metrics(tmp_path / "run/metrics.csv")[0]
    run = load_run(tmp_path / "run")
    assert 0 < metrics["lifts"] == int((run.network[-1].bias > 50).sum())
    x, y = run.data.split("val")
    logits = run.network(x).detach()
    assert float(logits.max()) > 50
    assert metrics["val_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item(), rel=1e-5)


def test_a_class_is_dead_below_one_prediction_in_a_hundred_labels() -> None:
    labels, predictions = torch.tensor([200, 201, 50, 0]), torch.tensor([2, 2, 447, 0])  # class 3 has no images
    assert dead(labels, predictions).tolist() == [False, True, False, False]


def test_the_bias_to_lift_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    find = class_collapse.output_bias
    monkeypatch.setattr(class_collapse, "output_bias", lambda *given: looked.append(given[1:]) or find(*given))
    train(
        compose([*FAST, "callbacks=[class_collapse]", "callbacks.class_collapse.revive=1", "epochs=3"]),
        tmp_path / "run",
    )
    assert looked.count((10,)) == 1


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

    class Starve(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            last = pl_module.network.linear2
            last.weight.data.normal_(generator=torch.Generator().manual_seed(0))
            last.bias.data.zero_()
            last.bias.data[3] = -100.0

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                pl_module.network.linear2.bias.data[3] = 100.0

    monkeypatch.setattr(train_module, "run_checkpoints", lambda *arguments: [Starve(), *run_checkpoints(*arguments)])
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


class Quiet(ClassCollapse):
    """A callback of a user's own."""


def test_a_run_with_a_subclass_tells_of_its_dead_classes(tmp_path: Path) -> None:
    config = compose([*FAST, "callbacks=[class_collapse]"])
    config["callbacks"]["class_collapse"]["_target_"] = f"{__name__}.Quiet"
    result = train(config, tmp_path / "run")
    assert result["dead_classes"] == load_checkpoint(tmp_path / "run" / LAST)["dead_classes"]


def test_the_dead_classes_of_an_earlier_checkpoint_are_read() -> None:
    assert dead_classes({"callbacks": {"ClassCollapse": {"dead_classes": [3]}}}) == [3]
    assert dead_classes({"callbacks": {}, "dead_classes": [4]}) == [4]


@pytest.mark.parametrize("progress", ["true", "false"])
def test_glr_train_prints_the_plan_and_the_dead_classes(
    progress: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(class_collapse, "dead", lambda labels, predictions: torch.arange(10) == 7)
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
