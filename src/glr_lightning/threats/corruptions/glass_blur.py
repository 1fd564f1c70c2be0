"""Frosted glass: blur, shuffle neighbouring pixels, blur again."""

from functools import lru_cache
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.corruptions.filters import gaussian_filter
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import MOST, Count, NonNegative, Share


@checked_parameters
def glass_blur(
    model: object,
    x: Tensor,
    y: object,
    *,
    random: ImageRandom,
    sigma: NonNegative,
    max_delta: Count,
    iterations: Annotated[int, Interval(ge=0, le=MOST)],
    swap_probability: Share = 1.0,
) -> Tensor:
    """clip(blur(shuffle(blur(x)))) for [B, C, H, W] in [0, 1]; model and y are ignored.

    blur is `gaussian_filter` with standard deviation sigma in pixels. shuffle makes `iterations` passes; in
    each, for h from H - d down to d + 1 and within it w from W - d down to d + 1 (d = max_delta),
    pixel (h, w) changes places with (h + dy, w + dx), dy and dx independent and uniform on {-d, ..., d - 1}.
    All channels of a pixel move together. Each of these swaps takes place with swap_probability.

    Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
    perturbations", ICLR 2019. Two things of theirs are left out, as accidents of storage: rounding to 8 bits
    between the steps, and a tuple assignment that on colour images copies the partner where on grey images it
    swaps. Here it swaps always.

    A swap_probability below 1 is of Mu & Gilmer, "MNIST-C: a robustness benchmark for computer vision", 2019.
    """
    source = _shuffle(random, x.shape[2], x.shape[3], max_delta, iterations, swap_probability)
    blurred = gaussian_filter(x, sigma).flatten(2)
    shuffled = blurred.gather(2, source[:, None].expand_as(blurred)).view_as(x)
    return gaussian_filter(shuffled, sigma).clamp(0.0, 1.0)


def partner_draws(random: ImageRandom, height: int, width: int, max_delta: int, iterations: int) -> Tensor:
    """The random choice of each swap: int64 [B, iterations, rows, columns] in {0, ..., 4 d^2 - 1}.

    d is max_delta. Entry (k, a, b) belongs to pass k and pixel (h, w) = (H - d - a, W - d - b); it stands for
    dy = entry // 2d - d, dx = entry % 2d - d. An image with a side of 2d pixels or fewer has none.
    """
    rows, columns = max(height - 2 * max_delta, 0), max(width - 2 * max_delta, 0)
    return random.integers(0, 4 * max_delta**2, (iterations, rows, columns), stream=0)


def swap_coins(random: ImageRandom, shape: torch.Size, swap_probability: float) -> Tensor:
    """Which swaps take place: bool [B, *shape], in the order of `partner_draws`."""
    return random.uniform(shape, stream=1) < swap_probability


def _shuffle(
    random: ImageRandom, height: int, width: int, max_delta: int, iterations: int, swap_probability: float
) -> Tensor:
    """Where the pixels of the shuffled images come from: int64 [B, H * W], one permutation an image.

    The swaps of an image are ordered, but two of them can only touch a common pixel if they lie less than 2d
    apart in both axes. `_waves` gathers swaps that cannot meet; each wave runs at once for the whole batch,
    with the sequence's result.
    """
    draws = partner_draws(random, height, width, max_delta, iterations)
    draw = draws.flatten(1)
    pixels = torch.arange(height * width, device=draw.device)
    source = pixels[:, None].repeat(1, len(draw))  # [H * W, B]: a wave then reads and writes whole rows
    order, position, sizes = _waves(height, width, max_delta, iterations)
    order, position = order.to(draw.device), position.to(draw.device)
    draw = draw.t()[order]
    side = 2 * max_delta
    partner = position[:, None] + (draw // side - max_delta) * width + (draw % side - max_delta)
    if swap_probability < 1.0:  # a pixel that changes places with itself stays
        coin = swap_coins(random, draws.shape[1:], swap_probability).flatten(1).t()[order]
        partner = torch.where(coin, partner, position[:, None])
    for here, there in zip(position.split(sizes), partner.split(sizes), strict=True):
        left, right = source[here], source.gather(0, there)
        source[here] = right
        source.scatter_(0, there, left)
    return source.t()


@lru_cache(maxsize=32)
def _waves(height: int, width: int, max_delta: int, iterations: int) -> tuple[Tensor, Tensor, list[int]]:
    """The swaps sorted into waves: (index into the flat draws [n], flat pixel [n], wave sizes).

    Pass k, row a, column b (counted from the start of the scan) runs at time t = b + 2d a + 4d^2 k. If two
    swaps can touch a common pixel, a and b differ by at most 2d - 1 each; the later one then has the greater
    t: by at least 1 within a row, 2d - (2d - 1) = 1 across rows and 4d^2 - 2d (2d - 1) - (2d - 1) = 1 across
    passes. So order is kept where it matters, and swaps of equal t are disjoint.
    """
    rows, columns = max(height - 2 * max_delta, 0), max(width - 2 * max_delta, 0)
    k, a, b = torch.cartesian_prod(torch.arange(iterations), torch.arange(rows), torch.arange(columns)).T
    time, order = torch.sort(b + 2 * max_delta * a + 4 * max_delta**2 * k, stable=True)
    position = (height - max_delta - a) * width + (width - max_delta - b)
    return order, position[order], torch.unique_consecutive(time, return_counts=True)[1].tolist()
