"""Larger pixels."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.facts import checked_parameters


@checked_parameters
def pixelate(
    model: object, x: Tensor, y: object, *, random: ImageRandom | None, factor: Annotated[float, Interval(gt=0, le=1)]
) -> Tensor:
    """Every pixel becomes the mean of its cell; [B, C, H, W] in [0, 1]; model, y and random are ignored.

    An axis of n pixels is divided into m = max(1, floor(n factor)) equal cells, and a pixel belongs to the cell that
    holds its centre: (j + 1/2) m / n, rounded down. So factor 1 leaves the image, and each cell has at least one
    pixel.

    Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR 2019, which scales by factor and back with Pillow's box filter. That is the same but for rounding to 8 bits,
    and for centres on the line between two cells, which it counts with one and fills from the other. (torch's area
    interpolation is not: where m does not divide n its cells overlap, and the weakest level would blur every pixel.)
    """
    rows, columns = (_averaging(n, factor).to(x) for n in x.shape[2:])
    return (rows @ x @ columns).clamp(0.0, 1.0)  # the matrices are symmetric


def _averaging(n: int, factor: float) -> Tensor:
    """[n, n], float64: row j averages over the cell of pixel j."""
    cells = max(1, int(n * factor))
    cell = (2 * torch.arange(n) + 1) * cells // (2 * n)
    same = (cell[:, None] == cell).double()
    return same / same.sum(dim=1, keepdim=True)
