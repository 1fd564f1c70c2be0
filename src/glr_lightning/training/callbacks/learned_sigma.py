"""Learn the noise scales: sigma = exp(log sigma), one for each layer or one for each neuron of it."""

import dataclasses
import math
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimator, LikelihoodRatio
from glr_lightning.estimators.settings import per_layer
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import unit_norms
from glr_lightning.training.callbacks.annealing import Annealing
from glr_lightning.training.callbacks.base import TrainingCallback, training_callbacks
from glr_lightning.training.module import GLRModule, glr_module
from glr_lightning.validation import Positive, checked

Per = Literal["layer", "neuron"]


class LearnedSigma(TrainingCallback):
    """Descends the noise scales with the weights, from the same copies.

    Their logarithms are parameters of the module (`log_sigma`, in every checkpoint), have no weight decay, and start
    from the estimator's sigma. The estimator stays a value: at every step it is given the present scales. metrics.csv
    has them as `sigma_<layer>`; several scales in a layer are logged as their mean, `_min` and `_max`.

    Args:
        per: "layer", a scale for each layer; or "neuron", one for each output unit or each channel of a convolution.
        lr: the learning rate of the logarithms; None: the optimizer's own.

    Raises:
        ConfigurationError: options out of range; in `check`, an estimator that does not give these gradients, or
            another callback that moves sigma.
    """

    @checked
    def __init__(self, per: Per = "layer", lr: Positive | None = None) -> None:
        self.per, self.lr = per, lr
        self.log_sigma: nn.ParameterList | None = None
        self._initial: Any = None

    def check(self, trainer: pl.Trainer, module: GLRModule) -> None:
        """Raise ConfigurationError, as described above."""
        log_scales(module.estimator, module.network, self.per)  # refuses an estimator without their gradients
        if any(isinstance(c, Annealing) and c.sigma is not None for c in training_callbacks(trainer)):
            raise ConfigurationError(
                "callbacks.learned_sigma and callbacks.annealing.sigma would both move sigma; leave one of them out."
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the logarithms parameters of the module, at their first values unless they were learned before."""
        module = glr_module(pl_module)
        self.check(trainer, module)
        self._initial = module.estimator
        if self.log_sigma is None:
            self.log_sigma = log_scales(module.estimator, module.network, self.per)
        module.log_sigma = self.log_sigma
        options = {"weight_decay": 0.0} | ({} if self.lr is None else {"lr": self.lr})
        for site, parameter in enumerate(self.log_sigma):
            module.trained[f"log_sigma.{site}"] = parameter
            module.optimizer_options[f"log_sigma.{site}"] = options

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the estimator the present scales."""
        module: Any = pl_module
        module.estimator = dataclasses.replace(module.estimator, sigma=self.scales)

    def end_epoch(self, trainer: pl.Trainer, module: GLRModule) -> dict[str, float]:
        """Return the present scales."""
        row = {}
        for name, scale in zip(Graph.of(module.network).layers, self.scales, strict=True):
            row[f"sigma_{name}"] = float(scale.mean())
            if scale.dim():
                row |= {f"sigma_{name}_min": float(scale.min()), f"sigma_{name}_max": float(scale.max())}
        return row

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the estimator its own sigma back; the logarithms stay in the module's state."""
        module: Any = pl_module
        module.estimator = dataclasses.replace(module.estimator, sigma=self._initial.sigma)
        for name in [name for name in module.trained if name.startswith("log_sigma.")]:
            del module.trained[name], module.optimizer_options[name]

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """The present sigma of every layer: positive, whatever the optimizer does."""
        assert self.log_sigma is not None  # since `setup`
        return tuple(log_sigma.detach().exp() for log_sigma in self.log_sigma)


def log_scales(estimator: Estimator, network: nn.Module, per: Per) -> nn.ParameterList:
    """The logarithm of every noisy layer's scale, starting from the estimator's sigma.

    Raises:
        ConfigurationError: an estimator that does not estimate these gradients.
    """
    if not isinstance(estimator, LikelihoodRatio):
        raise ConfigurationError(
            f"callbacks.learned_sigma needs an estimator that gives the gradient of the noise scale, "
            f"{type(estimator).__name__} does not; use estimator=likelihood_ratio with copies=32, or leave it out.",
            option="callbacks.learned_sigma",
        )
    graph = Graph.of(network)
    scales: tuple[float | Tensor, ...] = per_layer(estimator.sigma, graph)
    shapes = [unit_norms(layer).shape if per == "neuron" else () for _, layer in graph.named_layers]
    return nn.ParameterList(torch.full(shape, math.log(float(s))) for shape, s in zip(shapes, scales, strict=True))
