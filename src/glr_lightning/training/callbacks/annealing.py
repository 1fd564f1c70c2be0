"""Anneal noise scales and copies from epoch to epoch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimator
from glr_lightning.propagation.graph import Graph
from glr_lightning.schedules import Schedule
from glr_lightning.training.callbacks.base import TrainingCallback, epochs_of
from glr_lightning.training.module import GLRModule, glr_module
from glr_lightning.validation import checked


class Annealing(TrainingCallback):
    """Gives every epoch its own noise scales and copies.

    Noise scales are multiplied by a factor that starts at 1. Copies start at the configured number and are whole:
    between the first epoch and the last they are rounded to a multiple of 2, so that pairs stay whole too. Both are
    functions of the epoch alone, so a resumed run has the same. metrics.csv has them as `sigma` and `copies`.

    Args:
        sigma: the schedule of the factor; None: noise scales stay as they are.
        copies: the schedule of the copies; None: they stay as they are.

    Raises:
        ConfigurationError: in `check`, a schedule of what the estimator has not, or a value that it refuses in some
            epoch.
    """

    @checked
    def __init__(self, sigma: Schedule | None = None, copies: Schedule | None = None) -> None:
        self.sigma, self.copies = sigma, copies
        self._initial: Estimator | None = None

    def at(self, estimator: Estimator, epoch: int, epochs: int) -> dict[str, Any]:
        """Return `sigma` and `copies` of an epoch, 0 .. epochs - 1, those of them that have a schedule."""
        initial: Any = estimator
        done = epoch / max(epochs - 1, 1)
        values: dict[str, Any] = {}
        if self.sigma is not None:
            factor, sigma = self.sigma(1.0, done), initial.sigma
            values["sigma"] = tuple(s * factor for s in sigma) if isinstance(sigma, tuple) else sigma * factor
        if self.copies is not None:
            copies = self.copies(initial.copies, done)
            values["copies"] = round(copies) if done in (0, 1) else max(2 * round(copies / 2), 2)
        return values

    def check_epochs(self, estimator: Estimator, epochs: int) -> None:
        """Try out all epochs. Raises ConfigurationError, as described above."""
        initial: Any = estimator
        fields = {f.name for f in dataclasses.fields(initial)}
        for name in ("sigma", "copies"):
            if getattr(self, name) is not None and name not in fields:
                raise ConfigurationError(
                    f"callbacks.annealing.{name} changes {name}, which {type(estimator).__name__} does not have; leave "
                    "it out, or use estimator=local_expectation.",
                    option=f"callbacks.annealing.{name}",
                )
        if self.copies is not None and isinstance(initial.copies, tuple):
            raise ConfigurationError(
                f"copies={list(initial.copies)} are one number for each layer, and callbacks.annealing.copies changes "
                "one number for all; leave it out, or use one number of copies.",
                option="callbacks.annealing.copies",
            )
        if self.copies is not None and self.copies(initial.copies, 1.0) % 1:
            raise ConfigurationError(
                f"copies are whole numbers, and their schedule ends with {self.copies(initial.copies, 1.0):g}; give "
                "callbacks.annealing.copies.end a whole number.",
                option="callbacks.annealing.copies.end",
            )
        for epoch in range(epochs):
            values = self.at(estimator, epoch, epochs)
            try:
                dataclasses.replace(initial, **values)
            except ConfigurationError as error:
                given = ", ".join(f"{name}={value}" for name, value in values.items())
                raise ConfigurationError(
                    f"callbacks.annealing gives {given} in epoch {epoch + 1}: {error} If no end of the schedule fits, "
                    "leave the schedule out.",
                    option=f"callbacks.annealing.{error.option}" if error.option in values else error.option,
                ) from None

    @classmethod
    def changes_training(cls, options: Mapping[str, Any]) -> bool:
        """Return whether it does more than multiply sigma by 1 throughout."""
        no_change = {"_target_": "glr_lightning.schedules.Geometric", "end": 1}
        return options["copies"] is not None or options["sigma"] != no_change

    def check(self, trainer: pl.Trainer, module: GLRModule) -> None:
        """Try out all epochs. Raises ConfigurationError."""
        if self.sigma is None and self.copies is None:
            raise ConfigurationError(
                "callbacks.annealing changes neither sigma nor copies; give it a schedule for one of them, or leave it "
                "out: ~callbacks.annealing",
                option="callbacks.annealing",
            )
        initial, epochs = module.estimator, epochs_of(trainer, "annealing")
        self.check_epochs(initial, epochs)
        changed: Any = initial
        dataclasses.replace(changed, **self.at(initial, epochs - 1, epochs)).check(module.network, module.loss)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the module's estimator for the first epoch's."""
        module = glr_module(pl_module)
        self.check(trainer, module)
        self._initial = module.estimator

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the module the estimator of the epoch."""
        self._set(pl_module, trainer.current_epoch, epochs_of(trainer, "annealing"))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module its first estimator back."""
        self._set(pl_module, 0, 1)

    def _set(self, pl_module: pl.LightningModule, epoch: int, epochs: int) -> None:
        assert self._initial is not None  # since `setup`
        module: Any = pl_module
        module.estimator = dataclasses.replace(module.estimator, **self.at(self._initial, epoch, epochs))

    def end_epoch(self, trainer: pl.Trainer, module: GLRModule) -> dict[str, float]:
        """Return the values of the epoch."""
        assert self._initial is not None  # since `setup`
        values = self.at(self._initial, trainer.current_epoch, epochs_of(trainer, "annealing"))
        sigma = values.pop("sigma", None)
        if isinstance(sigma, tuple):
            names = Graph.of(module.network).layers
            return values | {f"sigma_{name}": scale for name, scale in zip(names, sigma, strict=True)}
        return values if sigma is None else values | {"sigma": sigma}
