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
    source = random.once(_shuffled, x.shape[2], x.shape[3], max_delta, swap_probability, iterations)
    planes = gaussian_filter(x, sigma).unbind(1)
    shuffled = torch.stack([plane.reshape(-1).index_select(0, source).view_as(plane) for plane in planes], dim=1)
    return gaussian_filter(shuffled, sigma).clamp(0.0, 1.0)


def partner_draws(random: ImageRandom, height: int, width: int, max_delta: int, number: int) -> Tensor:
    """The random choice of each swap of one pass: int64 [B, rows, columns] in {0, ..., 4 d^2 - 1}.

    d is max_delta, number that of the pass, from 0. Entry (a, b) belongs to pixel (h, w) = (H - d - a, W - d - b); it
    stands for dy = entry // 2d - d, dx = entry % 2d - d. An image with a side of 2d pixels or fewer has none.
    """
    rows, columns = _scan(height, width, max_delta)
    return random.integers(0, 4 * max_delta**2, (rows, columns), stream=0, skip=number * rows * columns)


def swap_coins(
    random: ImageRandom, height: int, width: int, max_delta: int, number: int, swap_probability: float
) -> Tensor:
    """Which swaps of one pass take place: bool [B, rows, columns], in the order of `partner_draws`."""
    rows, columns = _scan(height, width, max_delta)
    return random.uniform((rows, columns), stream=1, skip=number * rows * columns) < swap_probability


def _shuffled(
    random: ImageRandom, height: int, width: int, max_delta: int, swap_probability: float, passes: int
) -> Tensor:
    """Where the pixels come from after the first passes: int [B * H * W], places in a batch of one channel.

    The swaps of an image are ordered, but two of them can only touch a common pixel if they lie less than 2d
    apart in both axes. `_waves` gathers swaps that cannot meet; each wave runs at once for the whole batch,
    with the sequence's result.
    """
    batch, pixels, device = len(random.index), height * width, random.index.device
    if passes == 0:
        dtype = torch.int32 if batch * pixels < 2**31 else torch.int64
        return torch.arange(batch * pixels, dtype=dtype, device=device)
    before = random.once(_shuffled, height, width, max_delta, swap_probability, passes - 1)
    source = before.view(batch, pixels).t().contiguous()  # [H * W, B]: a wave then reads and writes whole rows
    flat = source.view(-1)
    order, position, sizes = _waves(height, width, max_delta)
    order, position = order.to(device), position.to(device)
    here = batch * position[:, None] + torch.arange(batch, device=device)  # places in `flat`
    entries = torch.arange(4 * max_delta**2, device=device)
    side = 2 * max_delta
    moves = batch * ((entries // side - max_delta) * width + entries % side - max_delta)
    draws = partner_draws(random, height, width, max_delta, passes - 1)
    there = moves.index_select(0, draws.flatten()).view(batch, -1).t().contiguous().index_select(0, order).add_(here)
    if swap_probability < 1.0:  # a pixel that changes places with itself stays
        coins = swap_coins(random, height, width, max_delta, passes - 1, swap_probability)
        there = torch.where(coins.flatten(1).t().index_select(0, order), there, here)
    for pixel, partner in zip(position.split(sizes), there.split(sizes), strict=True):
        partner = partner.flatten()
        left, right = source.index_select(0, pixel), flat.index_select(0, partner)
        source.index_copy_(0, pixel, right.view_as(left))
        flat.index_copy_(0, partner, left.flatten())
    return source.t().flatten()


def _scan(height: int, width: int, max_delta: int) -> tuple[int, int]:
    """How many rows and columns of pixels one pass goes through."""
    return max(height - 2 * max_delta, 0), max(width - 2 * max_delta, 0)


@lru_cache(maxsize=32)
def _waves(height: int, width: int, max_delta: int) -> tuple[Tensor, Tensor, list[int]]:
    """The swaps of one pass sorted into waves: (index into the flat draws [n], flat pixel [n], wave sizes).

    Row a, column b (counted from the start of the scan) runs at time t = b + 2d a. If two swaps can touch a common
    pixel, a and b differ by at most 2d - 1 each; the later one then has the greater t: by at least 1 within a row
    and 2d - (2d - 1) = 1 across rows. So order is kept where it matters, and swaps of equal t are disjoint.
    """
    rows, columns = _scan(height, width, max_delta)
    a, b = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
    time, order = torch.sort(b + 2 * max_delta * a, stable=True)
    position = (height - max_delta - a) * width + (width - max_delta - b)
    return order, position[order], torch.unique_consecutive(time, return_counts=True)[1].tolist()
