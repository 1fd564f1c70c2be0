"""The direction of L-BFGS, for many independent problems at once."""

from typing import final

import torch
from torch import Tensor


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner products, [B, N], [B, N] -> [B, 1]."""
    return (left * right).sum(1, keepdim=True)


@final
class InverseHessian:
    """The L-BFGS approximation of every row's inverse Hessian, from pairs of steps and changes of the gradient.

    A row's pair with a curvature s.y of at most 1e-10, or `caution` * s.s, is left out, in that row only: so each row
    is what it would be by itself. Caution (Li & Fukushima, SIAM J. Optim. 2001) keeps noisy gradients from making the
    inverse large. Source: Nocedal & Wright, "Numerical optimization", 2nd edition, algorithm 7.4, with the scale
    s.y / y.y.
    """

    def __init__(self, history: int, caution: float = 0.0) -> None:
        self._history = history
        self._caution = caution
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._scale: Tensor | None = None

    def update(self, step: Tensor, change: Tensor) -> None:
        """Add a pair: the step s and the change y of the gradient in every row, [B, N]."""
        curvature = dot(step, change)
        valid = curvature > (self._caution * dot(step, step)).clamp_min(1e-10)
        safe = torch.where(valid, curvature, 1.0)
        rho = torch.where(valid, 1.0 / safe, 0.0)
        self._pairs = [*self._pairs, (step, change, rho)][-self._history :]
        scale = torch.ones_like(rho) if self._scale is None else self._scale
        self._scale = torch.where(valid, safe / dot(change, change), scale)

    def take(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self._pairs = [(step[rows], change[rows], rho[rows]) for step, change, rho in self._pairs]
        self._scale = None if self._scale is None else self._scale[rows]

    def __matmul__(self, gradient: Tensor) -> Tensor:
        """Multiply with a gradient, [B, N], by the two-loop recursion."""
        weights = []
        for step, change, rho in reversed(self._pairs):
            weight = rho * dot(step, gradient)
            gradient = gradient - weight * change
            weights.append(weight)
        if self._scale is not None:
            gradient = gradient * self._scale
        for (step, change, rho), weight in zip(self._pairs, reversed(weights), strict=True):
            gradient = gradient + step * (weight - rho * dot(change, gradient))
        return gradient
