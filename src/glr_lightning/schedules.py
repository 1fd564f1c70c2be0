"""Schedules: a number that changes from epoch to epoch, as a pure function of how much of the training is done.

Adding one: a frozen dataclass here, a YAML in conf/sigma_schedule or conf/copies_schedule.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from glr_lightning.errors import ConfigurationError


class Schedule(ABC):
    """A way from a first value to a last one."""

    @abstractmethod
    def __call__(self, start: float, done: float) -> float:
        """The value at the part `done` of the way, from 0 in the first epoch to 1 in the last."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The first value all the time."""

    def __call__(self, start: float, done: float) -> float:
        return start


@dataclass(frozen=True)
class Geometric(Schedule):
    """start (end / start)^done: by the same factor every epoch. Raises ConfigurationError unless end is positive."""

    end: float

    def __post_init__(self) -> None:
        value = self.end
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigurationError(
                f"the end of a schedule must be a positive finite number, got {value!r}; for example "
                "sigma_schedule.end=0.5 (times sigma) or copies_schedule.end=64."
            )

    def __call__(self, start: float, done: float) -> float:
        return start * (self.end / start) ** done
