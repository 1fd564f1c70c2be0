"""Motion blur: every image moved along a line of its own direction."""

import math

import torch
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.corruptions.filters import correlate, pad
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import Count, Positive

STEEPEST = math.pi / 4
"""Directions lie within 45 degrees of the horizontal."""


@checked_parameters
def motion_blur(model: object, x: Tensor, y: object, *, random: ImageRandom, radius: Count, sigma: Positive) -> Tensor:
    """clip(sum_i g_i x(h + [i sin a], w + [i cos a])), i = 0 .. 2 radius; [B, C, H, W] in [0, 1].

    g_i is proportional to exp(-i^2 / (2 sigma^2)), sums to 1, and runs to one side only: a fading trail. The angle
    a of each image is uniform within 45 degrees of the horizontal, [] is the nearest pixel, the border pixel
    repeats. radius and sigma are in pixels; model and y are ignored.

    That is ImageMagick's MotionBlurImage, which the source calls: Hendrycks & Dietterich, "Benchmarking neural
    network robustness to common corruptions and perturbations", ICLR 2019; without its rounding to 8 bits.
    """
    kernel = line_kernels(angles(random), radius, sigma)
    reach = kernel.shape[1] // 2
    return correlate(pad(x, (reach, reach), (0, 2 * radius), "replicate"), kernel).clamp(0.0, 1.0)


def angles(random: ImageRandom) -> Tensor:
    """The direction of each image in radians, [B]."""
    return (2.0 * random.uniform((), stream=0) - 1.0) * STEEPEST


def line_kernels(angle: Tensor, radius: int, sigma: float) -> Tensor:
    """The trails of `motion_blur` as kernels [B, 2 r + 1, 2 radius + 1]; the pixel itself is at row r, column 0.

    angle: [B] in radians, within 45 degrees; r is the height of the steepest trail.
    """
    step = torch.arange(2 * radius + 1, device=angle.device)
    weight = torch.exp(-0.5 * (step / sigma) ** 2)
    reach = round(2 * radius * math.sin(STEEPEST))
    row = reach + (step * angle.sin()[:, None]).round().long()
    column = (step * angle.cos()[:, None]).round().long()
    kernel = weight.new_zeros(len(angle), (2 * reach + 1) * len(step))
    kernel.scatter_add_(1, row * len(step) + column, (weight / weight.sum()).expand_as(column))
    return kernel.view(len(angle), 2 * reach + 1, len(step))
