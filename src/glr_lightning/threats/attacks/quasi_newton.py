"""The direction of L-BFGS, for many independent problems at once."""

from typing import final

import torch
from torch import Tensor

WORTH_MOVING = 1.25
"""Stored rows for one present row, from where on the pairs of those that are gone are thrown away."""


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
        self._pairs: list[tuple[Tensor, ...]] = []
        self._scale: Tensor | None = None
        self._rows: Tensor | None = None  # the places of the present rows among those of the pairs; None: all

    def update(self, step: Tensor, change: Tensor) -> None:
        """Add a pair: the step s and the change y of the gradient in every row, [B, N]."""
        step, change = self._stored(step), self._stored(change)
        curvature = dot(step, change)
        valid = curvature > (self._caution * dot(step, step)).clamp_min(1e-10)
        safe = torch.where(valid, curvature, 1.0)
        rho = torch.where(valid, 1.0 / safe, 0.0)
        self._pairs = [*self._pairs, (step, change, rho)][-self._history :]
        scale = torch.ones_like(rho) if self._scale is None else self._scale
        self._scale = torch.where(valid, safe / dot(change, change), scale)

    def take(self, rows: Tensor) -> None:
        """Keep these rows only, bool [B]."""
        if self._scale is None or rows.all():
            return
        kept = rows.nonzero().squeeze(1)
        places = kept if self._rows is None else self._rows.index_select(0, kept)
        if len(places) * WORTH_MOVING > len(self._scale):
            self._rows = places
            return
        self._pairs = [tuple(each.index_select(0, places) for each in pair) for pair in self._pairs]
        self._scale, self._rows = self._scale.index_select(0, places), None

    def __matmul__(self, gradient: Tensor) -> Tensor:
        """Multiply with a gradient, [B, N], by the two-loop recursion."""
        if self._scale is None:
            return gradient
        weights, product = [], self._stored(gradient).clone()
        room = torch.empty_like(product)  # for one product of rows: a new one each time would take half as long again
        for step, change, rho in reversed(self._pairs):
            weight = rho * torch.mul(step, product, out=room).sum(1, keepdim=True)
            product -= torch.mul(weight, change, out=room)
            weights.append(weight)
        product *= self._scale
        for (step, change, rho), weight in zip(self._pairs, reversed(weights), strict=True):
            height = weight - rho * torch.mul(change, product, out=room).sum(1, keepdim=True)
            product += torch.mul(step, height, out=room)
        return product if self._rows is None else product.index_select(0, self._rows)

    def _stored(self, values: Tensor) -> Tensor:
        """The present rows at their places among the stored ones, zeros elsewhere."""
        if self._rows is None or self._scale is None:
            return values
        return values.new_zeros(len(self._scale), values.shape[1]).index_copy_(0, self._rows, values)
