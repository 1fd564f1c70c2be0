"""Piecewise-constant activations. Smooth ones (sigmoid, tanh, ReLU) are torch's own.

A piecewise-constant activation has a zero derivative, so backpropagation cannot train through it. It declares its
cells, which lets the likelihood-ratio estimator replace the score by its mean over the cell.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import checked


class PiecewiseConstant(nn.Module):
    """phi(v) = levels[c] for cuts[c-1] < v <= cuts[c], with cuts[-1] = -inf and cuts[n] = inf.

    Args:
        cuts: the points where the value changes, ascending.
        levels: the values, one more than cuts.

    Raises:
        ConfigurationError: cuts not ascending, or the counts do not fit.
    """

    @checked
    def __init__(self, cuts: Sequence[float], levels: Sequence[float]) -> None:
        super().__init__()
        self.cuts = tuple(float(c) for c in cuts)
        self.levels = tuple(float(v) for v in levels)
        ascending = all(a < b for a, b in itertools.pairwise(self.cuts))
        if not self.cuts or not ascending or len(self.levels) != len(self.cuts) + 1:
            raise ConfigurationError(
                f"a piecewise-constant activation needs ascending cuts and one level more than cuts, "
                f"got cuts={self.cuts}, levels={self.levels}."
            )

    @property
    def cells(self) -> list[tuple[float | None, float | None]]:
        """The bounds of each cell on the pre-activation axis, ascending; None is no bound."""
        return list(itertools.pairwise((None, *self.cuts, None)))

    @property
    def points(self) -> tuple[float, ...]:
        """A pre-activation inside each cell, ascending."""
        inner = [0.5 * (low + high) for low, high in itertools.pairwise(self.cuts)]
        return (self.cuts[0] - 1.0, *inner, self.cuts[-1] + 1.0)

    def select(self, v: Tensor, per_cell: Sequence[Tensor]) -> Tensor:
        """Return for each pre-activation the value that belongs to its cell; shapes broadcast.

        Args:
            v: [...] pre-activations.
            per_cell: a tensor for each cell, broadcastable to v and finite.
        """
        value = per_cell[0]
        for cut, above in zip(self.cuts, per_cell[1:], strict=True):
            # lerp is exact at weights 0 and 1, and ten times faster than where() with a broadcast condition
            value = torch.lerp(value, above, is_above(v, cut))
        return value

    def forward(self, v: Tensor) -> Tensor:
        """Return phi(v)."""
        if len(self.levels) == 2:
            low, high = self.levels
            on = is_above(v, self.cuts[0])
            on = on if high - low == 1.0 else on.mul_(high - low)
            return on if low == 0.0 else on.add_(low)
        return self.select(v, [v.new_full((), level) for level in self.levels])

    def extra_repr(self) -> str:
        """Return the cuts and levels."""
        return f"cuts={self.cuts}, levels={self.levels}"


def is_above(v: Tensor, cut: float | Tensor) -> Tensor:
    """Return 1[v > cut] in the dtype of v, without a derivative; a tensor `cut` broadcasts to v."""
    v = v.detach() if v.requires_grad else v
    if isinstance(cut, Tensor) or cut != 0.0:
        v = v - (cut if isinstance(cut, Tensor) else v.new_full((), cut))  # in the dtype of v, as a comparison is
    return v.sign().relu_()  # a comparison and its conversion take six times as long


class HardThreshold(PiecewiseConstant):
    """phi(v) = 1[v > 0] (paper 1)."""

    def __init__(self) -> None:
        super().__init__(cuts=(0.0,), levels=(0.0, 1.0))


class Sign(PiecewiseConstant):
    """phi(v) = +1 for v > 0, else -1."""

    def __init__(self) -> None:
        super().__init__(cuts=(0.0,), levels=(-1.0, 1.0))
