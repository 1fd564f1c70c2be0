"""Gaussian pixel noise."""

import math

from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom


def gaussian_noise(model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom, std: float) -> Tensor:
    """clip(x + std * z), z standard normal, one for every pixel of every channel; [B, C, H, W] in [0, 1].

    std is in units of the pixel range; model and y are ignored. Source: Hendrycks & Dietterich, "Benchmarking
    neural network robustness to common corruptions and perturbations", ICLR 2019. Raises ConfigurationError
    if std is negative or not finite.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ConfigurationError(f"gaussian_noise needs a finite std >= 0, got {std}.")
    return (x + std * random.normal(x.shape[1:], stream=0).to(x.dtype)).clamp(0.0, 1.0)
