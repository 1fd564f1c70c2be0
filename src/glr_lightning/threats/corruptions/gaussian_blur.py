"""Gaussian blur."""

from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.corruptions.filters import gaussian_filter
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import NonNegative


@checked_parameters
def gaussian_blur(model: object, x: Tensor, y: object, *, random: ImageRandom | None, sigma: NonNegative) -> Tensor:
    """clip(`gaussian_filter`(x, sigma)), sigma in pixels; [B, C, H, W] in [0, 1]; model, y and random are ignored.

    Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
    perturbations", ICLR 2019.
    """
    return gaussian_filter(x, sigma).clamp(0.0, 1.0)
