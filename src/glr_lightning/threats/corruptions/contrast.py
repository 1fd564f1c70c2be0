"""Loss of contrast."""

import math

from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom


def contrast(
    model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom | None, factor: float
) -> Tensor:
    """clip(m + factor * (x - m)), with m the mean of each image's each channel; [B, C, H, W] in [0, 1].

    factor 1 leaves the image, 0 makes it flat; model, y and random are ignored. Source: Hendrycks &
    Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019.
    Raises ConfigurationError if factor is negative or not finite.
    """
    if not (math.isfinite(factor) and factor >= 0):
        raise ConfigurationError(f"contrast needs a finite factor >= 0, got {factor}.")
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0.0, 1.0)
