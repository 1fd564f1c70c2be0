"""Training without Lightning: the same weights as with it, and the same run folder to whoever reads it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from glr_lightning.config import compose
from glr_lightning.errors import DivergenceError
from glr_lightning.runs.trained_run import RESULT, load_run
from glr_lightning.training.fit import train
from glr_lightning.training.plain import needs_lightning, train_plainly
from tests.checks.refusals import refused


def configuration(name: str = "relu", changes: Sequence[str] = ()) -> dict[str, Any]:
    return compose(["data=digits", "~experiment", f"+surrogate={name}", "epochs=2", "progress=false", *changes])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("relu", []),
        ("sigmoid", ["scheduler=cosine"]),
        ("straight_through", ["seed=3", "data.seed=4"]),
        ("likelihood_ratio", ["copies=4"]),
    ],
)
def test_weights_and_results_are_lightnings(name: str, changes: list[str], tmp_path: Path) -> None:
    config = configuration(name, changes)
    assert not needs_lightning(config)
    results = [train(config, tmp_path / "lightning"), train_plainly(config, tmp_path / "plain")]
    runs = [load_run(tmp_path / folder) for folder in ("lightning", "plain")]
    weights = [run.network.state_dict() for run in runs]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for result in results:
        del result["train_seconds"]
    assert results[0] == results[1]
    assert json.loads((tmp_path / "plain" / RESULT).read_text())["test_accuracy"] == results[0]["test_accuracy"]
    assert runs[0].config.keys() == runs[1].config.keys()
    for key in ("epoch", "global_step", "dead_classes"):
        assert runs[0].checkpoint[key] == runs[1].checkpoint[key]


@pytest.mark.parametrize(
    "change",
    [
        "callbacks=[class_collapse]",
        "clip_norm=1.0",
        "data.validation=0.1",
        "data.flip=true",
        "data.crop=1",
        "trainer.precision=64-true",
        "+trainer.limit_train_batches=2",
        "+trainer.num_nodes=2",
        "network._target_=my_package.network",
    ],
)
def test_what_it_does_not_do_needs_lightning(change: str) -> None:
    assert needs_lightning({**configuration(), **_changed(change)})


def _changed(change: str) -> dict[str, Any]:
    if change.startswith("network"):
        return {"network": {"_target_": "my_package.network"}}
    return configuration(changes=[change])


def test_a_loss_without_a_derivative_needs_lightning_to_tell_of_dead_classes() -> None:
    assert needs_lightning(configuration("likelihood_ratio", ["loss=zero_one"]))


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError):
        train_plainly(configuration(changes=["optimizer.lr=1e30"]), tmp_path / "run")


def test_options_that_torch_refuses_are_named(tmp_path: Path) -> None:
    config = configuration()
    config["optimizer"] = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "nesterov": True}
    with refused(None, "torch refuses the options of optimizer or scheduler"):
        train_plainly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
