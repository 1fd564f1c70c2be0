"""Defocus: what a lens does to a point out of focus."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.corruptions.filters import correlate, gaussian_weights, pad
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import NonNegative, Positive


@checked_parameters
def defocus_blur(
    model: object,
    x: Tensor,
    y: object,
    *,
    random: ImageRandom | None,
    radius: NonNegative,
    alias_blur: Positive,
) -> Tensor:
    """clip(x * `disk`(radius, alias_blur)), mirrored beyond the edge; [B, C, H, W] in [0, 1].

    radius and alias_blur are in pixels; model, y and random are ignored. Source: Hendrycks & Dietterich,
    "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019.
    """
    kernel = disk(radius, alias_blur)
    ends = (len(kernel) // 2, len(kernel) // 2)
    return correlate(pad(x, ends, ends, "mirror"), kernel).clamp(0.0, 1.0)


def disk(radius: float, alias_blur: float) -> Tensor:
    """The pixels with i^2 + j^2 <= radius^2, equal, then a Gaussian of standard deviation alias_blur; sums to 1.

    The Gaussian has 3 x 3 weights, or 5 x 5 from a radius above 8: float64 [k, k], k odd. The source's kernel ends
    at the disk's bounding square and folds what the Gaussian spreads over that line back inside (at a radius of 8
    and more); here the kernel grows by it.
    """
    reach, soft = int(radius), 1 if radius <= 8 else 2
    square = torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2
    sharp = (square[:, None] + square <= radius**2).double()
    weight = gaussian_weights(alias_blur, soft)
    smooth = torch.outer(weight, weight)[None, None]
    return F.conv2d(sharp[None, None] / sharp.sum(), smooth, padding=2 * soft)[0, 0]
