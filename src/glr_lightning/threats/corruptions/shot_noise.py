"""Shot noise: light comes in photons."""

import math
from functools import lru_cache
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.facts import checked_parameters

MOST_PHOTONS = 1000
"""The table of `_quantiles` grows with the square; with more, gaussian_noise with std=0.03 is stronger."""
Photons = Annotated[float, Interval(gt=0, le=MOST_PHOTONS)]


@checked_parameters
def shot_noise(
    model: object,
    x: Tensor,
    y: object,
    *,
    random: ImageRandom,
    photons: Photons,
) -> Tensor:
    """clip(N / photons), N Poisson with mean x * photons, one for every pixel of every channel.

    [B, C, H, W] in [0, 1]; model and y are ignored. N is exact up to the 24 bits of a uniform number. Source:
    Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
    2019.
    """
    return (poisson(x * photons, random, math.floor(photons)) / photons).clamp(0.0, 1.0)


def poisson(rate: Tensor, random: ImageRandom, most: int) -> Tensor:
    """Poisson numbers with these means, [B, ...] in [0, most + 1), of the rate's type; streams 0 and 1.

    Poisson(a + b) = Poisson(a) + Poisson(b): a whole, b < 1. Both by inversion, the smallest k with F(k) > u: a in a
    table of F, b by summation.
    """
    whole = rate.floor()
    u = random.once(ImageRandom.uniform, rate.shape[1:], 0)
    number = _invert_table(whole.long(), u, _quantiles(most).to(rate.device)).to(rate.dtype)
    return number + _invert_sum(rate - whole, random.once(ImageRandom.uniform, rate.shape[1:], 1))


def _invert_table(rate: Tensor, u: Tensor, table: Tensor) -> Tensor:
    """rate: int64, the row of the table. A key in the one sorted list of all rows finds row and column; no rounding."""
    key = rate * 2**24 + (u * 2**24).long()
    return torch.searchsorted(table.flatten(), key, right=True) - rate * table.shape[1]


@lru_cache(maxsize=32)
def _quantiles(most: int) -> Tensor:
    """2^24 rate + ceil(2^24 F(k)) for rates 0..most: int64 [most + 1, K], K so large that F there is 1 in 24 bits."""
    rate = torch.arange(most + 1)[:, None]
    k = torch.arange(most + math.ceil(6.0 * math.sqrt(most)) + 12)
    below: Tensor = torch.special.gammaincc(k + 1.0, rate.double()).clamp(0.0, 1.0)  # P(N <= k)
    return 2**24 * rate + (2**24 * below).ceil().long()


def _invert_sum(rate: Tensor, u: Tensor) -> Tensor:
    """0 <= rate < 1. Beyond k = 10 lies less than 2^-24 even at rate 1."""
    term = torch.exp(-rate)
    below, number = term.clone(), torch.zeros_like(rate)
    for k in range(1, 11):
        number += u >= below
        below += term.mul_(rate).div_(k)
    return number
