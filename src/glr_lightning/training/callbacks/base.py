"""What the callbacks of a training have in common."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.training.module import GLRModule

TOGETHER = 50
"""Steps that `Recent` collects."""


class TrainingCallback(Callback):
    """A callback that can refuse a training before anything is written, and adds columns to metrics.csv."""

    def check(self, trainer: pl.Trainer, module: GLRModule) -> None:
        """Raise ConfigurationError if this callback cannot work with this module and trainer; change nothing."""

    @classmethod
    def changes_training(cls, options: Mapping[str, Any]) -> bool:
        """Return whether trainings with and without this callback may give different networks.

        Args:
            options: plain values, as in a configuration, those left out included.
        """
        return True

    def end_epoch(self, trainer: pl.Trainer, module: GLRModule) -> dict[str, float]:
        """Return this epoch's values by column, and begin the next epoch; called once an epoch by `EpochMetrics`."""
        return {}


def training_callbacks(trainer: pl.Trainer) -> list[TrainingCallback]:
    """The trainer's callbacks that take part in the training, in their order."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    return [callback for callback in found if isinstance(callback, TrainingCallback)]


def epochs_of(trainer: pl.Trainer, what: str) -> int:
    """The number of epochs of a training. Raises ConfigurationError if it has none, since `what` needs to know it."""
    epochs = trainer.max_epochs
    if epochs is None or epochs < 1:
        raise ConfigurationError(
            f"{what} needs to know the number of epochs; give max_epochs, got {epochs}.", option="trainer.max_epochs"
        )
    return epochs


class Recent:
    """The tensors of the last few steps, handed out together so that they cost one operation for all."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, ...]] = []

    def add(self, trainer: pl.Trainer, *tensors: Tensor) -> list[tuple[Tensor, ...]] | None:
        """Add a step. After `TOGETHER` steps and at the end of an epoch return what was added, by column."""
        self._steps.append(tensors)
        return self.take() if len(self._steps) == TOGETHER or trainer.is_last_batch else None

    def take(self) -> list[tuple[Tensor, ...]] | None:
        """Return by column what is left, as of an epoch that was stopped before its last batch; None: nothing."""
        columns = list(zip(*self._steps, strict=True))
        self._steps.clear()
        return columns or None


class Sums:
    """Sums over steps and ranks, kept on their device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add tensors, each with its own shape and kind of number."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Return the sums, over all ranks, and begin anew."""
        sums, self._sums = self._sums, {}
        if trainer.world_size > 1:
            return {name: trainer.strategy.reduce(value, reduce_op="sum") for name, value in sums.items()}
        return sums
