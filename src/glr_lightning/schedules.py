"""Schedules: a number that changes from epoch to epoch, as a pure function of the part of the training that is done.

They are chosen in conf/callbacks/annealing.yaml. Adding one: a frozen dataclass here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from glr_lightning.validation import Checked, Positive


class Schedule(Checked, ABC):
    """A path from a first value to a last one."""

    @abstractmethod
    def __call__(self, start: float, done: float) -> float:
        """Return the value when the part `done` of the training is over: 0 in the first epoch, 1 in the last."""


@dataclass(frozen=True)
class Geometric(Schedule):
    """start (end / start)^done, which changes by the same factor every epoch.

    Args:
        end: the value in the last epoch.
    """

    end: Positive

    def __call__(self, start: float, done: float) -> float:
        """Return start (end / start)^done."""
        value: float = start * (self.end / start) ** done
        return value
