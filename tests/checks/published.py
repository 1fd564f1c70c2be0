"""A check of one training step against the published formula."""

import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from glr_lightning.config import build, compose
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.noise import Gaussian, Laplace
from glr_lightning.randomness import step_generator
from glr_lightning.training.module import GLRModule
from tests.checks import reference

ACTIVATIONS = {"torch.nn.Sigmoid": torch.sigmoid, "glr_lightning.activations.HardThreshold": reference.threshold}
LOSSES = {CrossEntropy(): "cross_entropy", ZeroOne(): "zero_one"}
DENSITIES = {Laplace(): "laplace", Gaussian(): "gaussian"}
OPTIMIZERS = {"torch.optim.SGD": reference.SGD, "torch.optim.Adagrad": reference.Adagrad}


def published_weights(network: nn.Sequential) -> list[Tensor]:
    """[W of layer 1 with its bias as the last row, W of layer 2], each [in, out]."""
    first, second = network.linear1, network.linear2
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert second.bias is None
    return [torch.cat([first.weight.T, first.bias[None]]).detach().clone(), second.weight.T.detach().clone()]


def batch_of(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(number, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (number,), generator=generator)


def make_network(config: dict[str, Any]) -> nn.Sequential:
    torch.manual_seed(1)
    network = build(config["network"], image_shape=(1, 8, 8), classes=10)
    return network.double()


def one_step(config: dict[str, Any], network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    """What glr-train does with one batch; in float64, so that rounding is out of the way."""
    module = GLRModule(
        network,
        build(config["estimator"]),
        build(config["loss"]),
        build(config["optimizer"]),
        build(config["scheduler"]),
        seed=config["seed"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning on the number of workers, and on its own imports
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, barebones=True)
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=len(x)))


def noise_of(config: dict[str, Any], widths: list[int], number: int) -> list[Tensor]:
    """The noise of the first step, layer after layer from the step's generator."""
    generator = step_generator(config["seed"], 0, 0, torch.device("cpu"))
    density, copies = build(config["estimator"]["noise"]), config["estimator"]["copies"]
    draws = [density.sample((copies, number, w), generator=generator, dtype=torch.float64) for w in widths]
    return [config["estimator"]["sigma"] * z.reshape(copies * number, w) for z, w in zip(draws, widths, strict=True)]


def check_training_step(experiment: str, noise: str) -> None:
    """One step moves the weights as the published formula, its decay and its optimizer do."""
    config = compose([f"experiment=paper/{experiment}", f"noise={noise}", "sigma=1.3"])
    number = 800 // config["estimator"]["copies"]  # rows enough to tell, few enough for [rows, in, out]
    x, y = batch_of(number)
    network = make_network(config)
    before = published_weights(network)

    gradients = reference.estimate(
        before,
        x.flatten(1),
        y,
        noise_of(config, [50, 10], number),
        density=DENSITIES[build(config["estimator"]["noise"])],
        scale=config["estimator"]["sigma"],
        activation=ACTIVATIONS[config["activation"]["_target_"]],
        loss=LOSSES[build(config["loss"])],
    )
    optimizer = OPTIMIZERS[config["optimizer"]["_target_"]](config["optimizer"]["lr"], weight_decay=1e-4)
    expected = [optimizer.step(w, gradient) for w, gradient in zip(before, gradients, strict=True)]

    one_step(config, network, x, y)
    for now, then, target in zip(published_weights(network), before, expected, strict=True):
        assert not torch.equal(now, then)
        torch.testing.assert_close(now - then, target - then, rtol=1e-6, atol=1e-12)
