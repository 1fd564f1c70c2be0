"""Options with one value per layer: factors of the learning rate, spreads of the first biases."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from glr_lightning.activations import HardThreshold
from glr_lightning.config import build, compose
from glr_lightning.data import Digits
from glr_lightning.errors import ConfigurationError
from glr_lightning.networks import mlp
from glr_lightning.runs.trained_run import build_network, load_checkpoint
from glr_lightning.training.fit import train

FAST = ["epochs=1", "progress=false", "data.validation=0"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run / "checkpoints/last.ckpt")["state_dict"])


def test_a_layer_whose_factor_is_0_stays_as_it_was(tmp_path: Path) -> None:
    config = compose(["experiment=lrt", *FAST, "lr_factors=[0,1]"])
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
    train(compose([*sgd, "lr_factors=[0.5,1]"]), tmp_path / "half")
    before, whole, half = _first(compose(sgd)), weights(tmp_path / "whole"), weights(tmp_path / "half")
    for name, factor in (("linear1.weight", 0.5), ("linear1.bias", 0.5), ("linear2.weight", 1.0)):
        moved = whole[f"network.{name}"] - before[name]
        torch.testing.assert_close(half[f"network.{name}"] - before[name], factor * moved, rtol=1e-4, atol=1e-7)
    assert "lr_factors" in (tmp_path / "half/config.yaml").read_text()


def test_the_logged_learning_rate_is_that_before_the_factors(tmp_path: Path) -> None:
    train(compose(["experiment=bp", *FAST, "lr_factors=[0.1,0.5]", "optimizer.lr=0.02"]), tmp_path / "run")
    header, row = (line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[:2])
    assert float(row[header.index("lr")]) == pytest.approx(0.02)


@pytest.mark.parametrize("factors", ["[1]", "[1,1,1]", "[1,-1]", "[1,.inf]", "2", "[a,b]"])
def test_factors_that_cannot_be_are_refused(factors: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"lr_factors must be a factor .* each of the 2 layers"):
        train(compose(["experiment=lrt", *FAST, f"lr_factors={factors}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_factors_and_learned_scales_do_not_go_together(tmp_path: Path) -> None:
    options = ["experiment=lrt", "estimator=likelihood_ratio", "learn_sigma=layer", "lr_factors=[1,1]", *FAST]
    with pytest.raises(ConfigurationError, match="do not go together"):
        train(compose(options), tmp_path / "run")


def test_hidden_biases_start_spread_out_and_the_logits_do_not() -> None:
    torch.manual_seed(0)
    data = Digits(batch_size=1)
    network = mlp(
        image_shape=data.image_shape, classes=10, hidden=[400, 300], activation=HardThreshold(), spread=[4.0, 1.5]
    )
    for name, bound in (("linear1", 4.0), ("linear2", 1.5)):
        bias = network.get_submodule(name).get_parameter("bias").detach()
        assert bias.abs().max() <= bound
        assert bias.std() == pytest.approx(bound / 3**0.5, rel=0.1)  # 400 draws: 4 standard errors
    assert network.get_submodule("linear3").get_parameter("bias").abs().max() <= 1 / 300**0.5


@pytest.mark.parametrize("spread", [[1.0], [1.0, -1.0], 0, "wide", True, float("inf")])
def test_spreads_that_cannot_be_are_refused(spread: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        mlp(image_shape=(1, 8, 8), classes=10, hidden=[5, 4], activation=HardThreshold(), spread=spread)
    assert refusal.value.option == "spread"
