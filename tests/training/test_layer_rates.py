"""Factors of the learning rate, one for each layer."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from glr_lightning.config import build, compose
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.runs.trained_run import build_network, load_checkpoint
from glr_lightning.training.fit import train
from tests.checks.refusals import refused

FAST = ["epochs=1", "progress=false", "data.validation=0"]
LAYER_RATES = ["callbacks=layer_rates"]
FACTORS = "callbacks.layer_rates.factors"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run / "checkpoints/last.ckpt")["state_dict"])


def test_a_layer_whose_factor_is_0_stays_as_it_was(tmp_path: Path) -> None:
    config = compose(["experiment=lrt", *FAST, *LAYER_RATES, f"{FACTORS}=[0,1]"])
    train(config, tmp_path / "run")
    trained, before = weights(tmp_path / "run"), _first(config)
    assert torch.equal(trained["network.linear1.weight"], before["linear1.weight"])
    assert not torch.equal(trained["network.linear2.weight"], before["linear2.weight"])


def _first(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    pl.seed_everything(config["seed"], verbose=False)
    data = build(config["data"], trusted=None)
    return dict(build_network(config, data, None).state_dict())


def test_a_factor_is_a_factor_of_the_learning_rate(tmp_path: Path) -> None:
    """One step of plain SGD with a factor of 0.5 moves a layer half as far; the other layer moves as without."""
    sgd = ["experiment=bp", "optimizer=sgd", "optimizer.lr=1.0", "batch_size=2000", "scheduler=constant", *FAST]
    train(compose(sgd), tmp_path / "whole")
    train(compose([*sgd, *LAYER_RATES, f"{FACTORS}=[0.5,1]"]), tmp_path / "half")
    before, whole, half = _first(compose(sgd)), weights(tmp_path / "whole"), weights(tmp_path / "half")
    for name, factor in (("linear1.weight", 0.5), ("linear1.bias", 0.5), ("linear2.weight", 1.0)):
        moved = whole[f"network.{name}"] - before[name]
        torch.testing.assert_close(half[f"network.{name}"] - before[name], factor * moved, rtol=1e-4, atol=1e-7)


def test_the_logged_learning_rate_is_that_before_the_factors(tmp_path: Path) -> None:
    train(
        compose(["experiment=bp", *FAST, *LAYER_RATES, f"{FACTORS}=[0.1,0.5]", "optimizer.lr=0.02"]), tmp_path / "run"
    )
    header, row = (line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[:2])
    assert float(row[header.index("lr")]) == pytest.approx(0.02)


@pytest.mark.parametrize("factors", ["[1]", "[1,1,1]", "[1,-1]", "[1,.inf]", "2", "[a,b]"])
def test_factors_that_cannot_be_are_refused(factors: str, tmp_path: Path) -> None:
    with refused("callbacks.layer_rates.factors"):
        train(compose(["experiment=lrt", *FAST, *LAYER_RATES, f"{FACTORS}={factors}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_factors_and_learned_scales_go_together(tmp_path: Path) -> None:
    options = ["experiment=lrt", "estimator=likelihood_ratio", "callbacks=[learned_sigma,layer_rates]", *FAST]
    train(compose([*options, f"{FACTORS}=[0,0.5]", "optimizer.lr=0.02"]), tmp_path / "run")
    trained, before = weights(tmp_path / "run"), _first(compose(["experiment=lrt"]))
    assert torch.equal(trained["network.linear1.weight"], before["linear1.weight"])
    assert not torch.equal(trained["network.linear2.weight"], before["linear2.weight"])
    assert float(trained["log_sigma.0"]) != 0.0
    (row,) = read_metrics(tmp_path / "run/metrics.csv").values()
    assert row["lr"] == pytest.approx(0.02)
