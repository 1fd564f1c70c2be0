"""Gaussian blur."""

import math

from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.corruptions.filters import gaussian_filter


def gaussian_blur(
    model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom | None, sigma: float
) -> Tensor:
    """clip(`gaussian_filter`(x, sigma)), sigma in pixels; [B, C, H, W] in [0, 1]; model, y and random are ignored.

    Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
    perturbations", ICLR 2019. Raises ConfigurationError if sigma is negative or not finite.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ConfigurationError(f"gaussian_blur needs a finite sigma >= 0, got {sigma}.")
    return gaussian_filter(x, sigma).clamp(0.0, 1.0)
