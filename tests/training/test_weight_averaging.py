"""The mean of the weights over the last steps: what it is, who sees it, and that the steps go on without it."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from glr_lightning import load_run
from glr_lightning.activations import HardThreshold
from glr_lightning.config import compose
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.losses import ZeroOne
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.runs.trained_run import accuracy, load_checkpoint
from glr_lightning.training.callbacks import WeightAveraging
from glr_lightning.training.fit import train
from glr_lightning.training.module import GLRModule
from tests.checks.estimator_cases import X, Y, small_network
from tests.checks.interruption import assert_same_training, train_in_two_parts
from tests.checks.refusals import refused

FAST = ["estimator=likelihood_ratio", "copies=8", "progress=false", "data.validation=0.1", "epochs=3"]
AVERAGED = [*FAST, "callbacks=weight_averaging", "callbacks.weight_averaging.share=0.5"]


class Recorder(Callback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: pl.LightningModule, *_: Any) -> None:
        self.steps.append([weight.detach().clone() for weight in pl_module.parameters()])


def trained(network: nn.Module, *callbacks: Callback, epochs: int = 3) -> None:
    module = GLRModule(network, LikelihoodRatio(copies=4), ZeroOne(), torch.optim.Adam, seed=1)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks], **quiet)
    batches = DataLoader(TensorDataset(X.float(), Y), batch_size=2)
    trainer.fit(module, batches, batches)


@pytest.mark.parametrize(("share", "last"), [(0.5, 3), (1.0, 6), (0.01, 1)])
def test_the_network_ends_with_the_mean_of_the_last_weights(share: float, last: int) -> None:
    network, recorder = small_network(HardThreshold()).float(), Recorder()
    trained(network, recorder, WeightAveraging(share))
    assert len(recorder.steps) == 6
    for weight, *steps in zip(network.parameters(), *recorder.steps[-last:], strict=True):
        torch.testing.assert_close(weight.detach(), torch.stack(steps).mean(0))


def test_the_steps_are_those_of_a_training_without_it() -> None:
    with_mean, without = Recorder(), Recorder()
    first = small_network(HardThreshold()).float()
    second = small_network(HardThreshold()).float()
    second.load_state_dict(first.state_dict())
    trained(first, with_mean, WeightAveraging(0.7))
    trained(second, without)
    for a, b in zip(with_mean.steps, without.steps, strict=True):
        assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def test_another_fit_begins_another_mean() -> None:
    network, averaging, recorder = small_network(HardThreshold()).float(), WeightAveraging(1.0), Recorder()
    trained(network, averaging, epochs=1)
    trained(network, averaging, recorder, epochs=1)
    for weight, *steps in zip(network.parameters(), *recorder.steps, strict=True):
        torch.testing.assert_close(weight.detach(), torch.stack(steps).mean(0))


def test_checkpoints_hold_the_mean_and_the_weights_of_the_steps(tmp_path: Path) -> None:
    train(compose([*FAST, "callbacks=[]"]), tmp_path / "plain")
    train(compose(AVERAGED), tmp_path / "mean")
    plain, mean = (load_checkpoint(tmp_path / name / "checkpoints/last.ckpt") for name in ("plain", "mean"))
    weights = mean["weight_averaging"]["weights"]
    assert weights.keys() == plain["state_dict"].keys() == mean["state_dict"].keys()
    assert all(torch.equal(weights[name], plain["state_dict"][name]) for name in weights)
    assert not any(torch.equal(mean["state_dict"][name], weights[name]) for name in weights)


def test_the_mean_is_validated_and_loaded(tmp_path: Path) -> None:
    train(compose([*AVERAGED, "data.validation=0.3"]), tmp_path / "run")
    run = load_run(tmp_path / "run")
    rows = read_metrics(tmp_path / "run/metrics.csv")
    best = max(row["val_accuracy"] for row in rows.values())
    assert best == pytest.approx(accuracy(run.network, *run.data.split("val")), abs=1e-6)
    train(compose([*FAST, "callbacks=[]", "data.validation=0.3"]), tmp_path / "plain")
    last = [read_metrics(tmp_path / name / "metrics.csv")[2] for name in ("run", "plain")]
    assert last[0]["train_loss"] == last[1]["train_loss"]
    assert last[0]["val_accuracy"] != last[1]["val_accuracy"]


@pytest.mark.parametrize("stop_at", [17, 30])
def test_a_training_is_resumed_before_and_within_the_mean(stop_at: int, tmp_path: Path) -> None:
    config = compose([*AVERAGED, "callbacks.weight_averaging.share=0.6"])
    train(config, tmp_path / "whole")
    train_in_two_parts(config, tmp_path / "parts", stop_at)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.activation = HardThreshold()
        self.logits = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.activation(self.again(self.activation(self.first(x))))
        logits: Tensor = self.logits(hidden)
        return logits


def test_a_shared_weight_has_one_mean_under_all_its_names() -> None:
    module = GLRModule(Twice(), LikelihoodRatio(copies=4), ZeroOne(), torch.optim.Adam)
    averaging, checkpoint = WeightAveraging(1.0), {"state_dict": module.state_dict()}
    averaging._mean = [torch.full_like(weight, 7.0) for weight in module.parameters()]
    averaging.on_save_checkpoint(pl.Trainer(accelerator="cpu", logger=False), module, checkpoint)
    assert len(checkpoint["state_dict"]) == 6
    assert all(torch.all(weight == 7.0) for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1", "half"])
def test_a_share_that_cannot_be_is_refused(share: str, tmp_path: Path) -> None:
    with refused("callbacks.weight_averaging.share"):
        train(compose([*AVERAGED, f"callbacks.weight_averaging.share={share}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
