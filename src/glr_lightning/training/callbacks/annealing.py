"""Annealing: the estimator of every epoch, with noise scales and copies that follow a schedule."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimator
from glr_lightning.schedules import Constant, Schedule


@dataclass(frozen=True)
class Annealing:
    """The estimator of every epoch: sigma times a factor that starts at 1, and copies from the configured number on.

    Copies are whole: between the first epoch and the last they are rounded to a multiple of 2, so that pairs stay
    whole too.

    Raises:
        ConfigurationError: a schedule of what the estimator has not, or a value that it refuses in some epoch.
    """

    estimator: Estimator
    sigma: Schedule
    copies: Schedule
    epochs: int

    def __post_init__(self) -> None:
        estimator: Any = self.estimator
        fields = {f.name for f in dataclasses.fields(estimator)}
        for name in ("sigma", "copies"):
            if self.changes(name) and name not in fields:
                raise ConfigurationError(
                    f"{name}_schedule changes {name}, which {type(self.estimator).__name__} does not have; "
                    f"use {name}_schedule=constant, or estimator=local_expectation."
                )
        if self.changes("copies") and isinstance(estimator.copies, tuple):
            raise ConfigurationError(
                f"copies={list(estimator.copies)} are one number for each layer, and a copies_schedule changes one "
                "number for all; use copies_schedule=constant, or one number of copies."
            )
        if self.changes("copies") and self.copies(estimator.copies, 1.0) % 1:
            raise ConfigurationError(
                f"copies are whole numbers, and the schedule ends with {self.copies(estimator.copies, 1.0):g}; give "
                "copies_schedule.end a whole number."
            )
        for epoch in range(self.epochs) if self.changes("sigma") or self.changes("copies") else ():
            self.at(epoch)

    def changes(self, name: str) -> bool:
        """Is there a schedule of sigma, or copies, but the constant one?"""
        return not isinstance(getattr(self, name), Constant)

    def at(self, epoch: int) -> Estimator:
        """The estimator of an epoch, 0 .. epochs - 1."""
        done = epoch / max(self.epochs - 1, 1)
        values: dict[str, Any] = {}
        estimator: Any = self.estimator
        if self.changes("sigma"):
            factor, sigma = self.sigma(1.0, done), estimator.sigma
            values["sigma"] = tuple(s * factor for s in sigma) if isinstance(sigma, tuple) else sigma * factor
        if self.changes("copies"):
            copies = self.copies(estimator.copies, done)
            values["copies"] = round(copies) if done in (0, 1) else max(2 * round(copies / 2), 2)
        try:
            return dataclasses.replace(estimator, **values)
        except ConfigurationError as error:
            given = ", ".join(f"{name}={value}" for name, value in values.items())
            constant = " and ".join(f"{name}_schedule=constant" for name in values)
            raise ConfigurationError(
                f"the schedule gives {given} in epoch {epoch + 1}: {error} If no end of the schedule fits, {constant}."
            ) from None
