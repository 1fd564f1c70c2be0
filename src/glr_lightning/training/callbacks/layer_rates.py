"""A learning rate for each layer."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.graph import Graph
from glr_lightning.training.callbacks.base import TrainingCallback
from glr_lightning.training.module import GLRModule, glr_module
from glr_lightning.validation import NonEmpty, NonNegative, checked


class LayerRates(TrainingCallback):
    """Multiplies the optimizer's learning rate by a factor of each layer with weights.

    The scheduler starts from these rates; one that sets rates of its own undoes them. The learning rate in
    metrics.csv is the one before the factors.

    Args:
        factors: at least 0, one for each layer with weights, in their order.

    Raises:
        ConfigurationError: in `check`, other numbers, or more or fewer than there are layers.
    """

    @checked
    def __init__(self, factors: NonEmpty[NonNegative]) -> None:
        self.factors = factors

    def check(self, trainer: pl.Trainer, module: GLRModule) -> None:
        """Raise ConfigurationError unless there is a factor for each layer."""
        sites = len(Graph.of(module.network).layers)
        if len(self.factors) != sites:
            raise ConfigurationError(
                f"callbacks.layer_rates.factors must be a factor of the learning rate for each of the {sites} layers "
                f"with weights, as {[0.1] + [1.0] * (sites - 1)}, got {list(self.factors)}.",
                option="callbacks.layer_rates.factors",
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give each parameter the factor of its layer."""
        module = glr_module(pl_module)
        self.check(trainer, module)
        names = Graph.of(module.network).layers
        factors = dict(zip(names, self.factors, strict=True))
        for name in dict(module.network.named_parameters()):
            module.optimizer_options[name] = {"lr_factor": factors[name.rpartition(".")[0]]}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the factors away."""
        module = glr_module(pl_module)
        for name in dict(module.network.named_parameters()):
            module.optimizer_options.pop(name, None)

    @classmethod
    def changes_training(cls, options: Mapping[str, Any]) -> bool:
        """Return whether a factor is not 1."""
        return any(factor != 1 for factor in options["factors"])

    def end_epoch(self, trainer: pl.Trainer, module: GLRModule) -> dict[str, float]:
        """Return the learning rate before the factors."""
        group = max(trainer.optimizers[0].param_groups, key=lambda group: group.get("lr_factor", -1.0))
        return {"lr": group["lr"] / (group["lr_factor"] or 1.0)}
