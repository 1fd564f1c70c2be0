"""The objective of an attack, and the best images found so far."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from glr_lightning.threats.attacks.input_gradient import AttackLoss
from glr_lightning.threats.attacks.query import Query

ROUNDING = 1e-5


@final
@dataclass(frozen=True)
class Objective:
    """Any class but the label, or one certain class.

    classes: int64 [B], the labels y, or the targets. sign: +1 where the loss against them is ascended, and -1, for
    targets, where it is descended.
    """

    classes: Tensor
    sign: float

    @staticmethod
    def of(y: Tensor, target: Tensor | None) -> "Objective":
        """Return the objective for labels, or for targets if there are any."""
        return Objective(y, 1.0) if target is None else Objective(target, -1.0)

    def take(self, rows: Tensor) -> "Objective":
        """Return the objective of some of the images."""
        return Objective(self.classes[rows], self.sign)

    def copies(self, count: int) -> "Objective":
        """Return the objective of `count` copies of the batch, copy-major."""
        return Objective(self.classes.repeat(count), self.sign)

    def reached(self, scores: Tensor) -> Tensor:
        """Return whether the prediction is wrong, or is the target; bool [B]."""
        hit = scores.argmax(1) == self.classes
        return hit if self.sign < 0 else ~hit

    def height(self, scores: Tensor, loss: AttackLoss) -> Tensor:
        """Return what the attack makes large, [B]: the loss against the label, or minus that against the target."""
        return self.sign * loss(scores, self.classes)

    def uphill(self, query: Query, x: Tensor, loss: AttackLoss) -> Tensor:
        """Return the gradient of the height, [B, C, H, W]."""
        return self.sign * query.gradient(x, self.classes, loss)


@final
class Best:
    """Per image the first candidate that reached the objective, and while there is none, that of the greatest height.

    Among equals the latest: on the plateaus of a piecewise-constant network a search that kept the first would stall.
    Equal is up to ROUNDING of the largest score, as the last bits of a score depend on the size of the batch.

    images: [B, C, H, W], before any candidate the images themselves. reached: bool [B].
    """

    def __init__(self, x: Tensor, objective: Objective, loss: AttackLoss) -> None:
        self.images = x.clone()
        self.reached = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._height = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self._goal, self._loss = objective, loss

    @property
    def open(self) -> Tensor:
        """The images that have not reached the objective, int64 [m]."""
        return (~self.reached).nonzero().squeeze(1)

    def offer(self, rows: Tensor, candidates: Tensor, scores: Tensor) -> Tensor:
        """Candidates [m, C, H, W] for the open images `rows`, and their scores; which were still taken, bool [m]."""
        objective = self._goal.take(rows)
        reached, height = objective.reached(scores), objective.height(scores, self._loss)
        better = reached | (height >= self._height[rows] - ROUNDING * scores.abs().amax(1))
        taken = rows[better]
        self.images[taken] = candidates[better]
        # the larger of the two, or rounding would add up to a descent
        self._height[taken] = torch.maximum(height[better], self._height[taken])
        self.reached[rows] = reached
        return better

    def restart(self, rows: Tensor, candidates: Tensor, scores: Tensor) -> None:
        """Go on from these candidates, whatever was best before."""
        self._height[rows] = -torch.inf
        self.offer(rows, candidates, scores)
