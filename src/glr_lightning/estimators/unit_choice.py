"""Which units of a deeper layer are moved: any, or those rather whose own noise can do much."""

from typing import Literal

import torch
from torch import Tensor

Choice = Literal["uniform", "weighted"]
"""How units are chosen: all with the same probability, or in proportion to their weight in the gradient."""


def draw_choice(choice: Choice, z: Tensor, units: int | None, generator: torch.Generator) -> Tensor:
    """Draw what decides which m units of a sample are moved.

    Args:
        choice: how they are chosen.
        z: [copies, batch, *site], of which the shape, type and device count.
        units: m; None or more than there are: all.
        generator: all randomness comes from it.

    Returns:
        [copies, batch, m]: for "uniform" the units, int64, without repetition; for "weighted" ascending points in
        [0, 1), evenly spaced behind a random first one, which `by_weight` turns into units.
    """
    n = z[0, 0].numel()
    m = n if units is None else min(units, n)
    steps = torch.arange(m, device=z.device)
    if choice == "weighted" and m < n:
        start = torch.rand((*z.shape[:2], 1), generator=generator, dtype=z.dtype, device=z.device)
        return (start + steps) / m
    if m == n:
        return steps.expand(*z.shape[:2], n)
    order = torch.randperm(n, generator=generator, device=z.device)
    start = torch.randint(n, (*z.shape[:2], 1), generator=generator, device=z.device)
    return order[(start + steps) % n]


def by_weight(points: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Choose units in proportion to their weights, by systematic sampling: one unit for each point.

    A unit of probability q is chosen m q times in the mean, so what it says counts 1 / (m q) each time.

    Args:
        points: [copies, batch, m], ascending in [0, 1).
        weight: [copies, batch, n], not negative; if all of a sample's are 0, its units are chosen alike.

    Returns:
        the units, [copies, batch, m] int64, and how much each counts, [copies, batch, m].
    """
    share = weight + torch.finfo(weight.dtype).tiny
    share = share / share.sum(2, keepdim=True)
    ends = share.cumsum(2)
    # rounding may leave the last end below a point: that belongs to the last unit that has a weight, not to the last
    points = points.clamp(max=torch.nextafter(ends[..., -1:], torch.zeros_like(ends[..., -1:])))
    chosen = torch.searchsorted(ends, points, right=True)
    return chosen, 1.0 / (points.shape[2] * share.gather(2, chosen))
