"""More light."""

import math

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom


def brightness(
    model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom | None, shift: float
) -> Tensor:
    """Each pixel's value v, its largest channel, becomes clip(v + shift), its hue and saturation stay.

    [B, C, H, W] in [0, 1]; model, y and random are ignored. In HSV a colour is its value times a function of hue
    and saturation, so the channels are multiplied by clip(v + shift) / v, and black becomes grey. With one channel
    that is clip(x + shift). Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common
    corruptions and perturbations", ICLR 2019. Raises ConfigurationError if shift is not finite.
    """
    if not math.isfinite(shift):
        raise ConfigurationError(f"brightness needs a finite shift, got {shift}.")
    value = x.amax(dim=1, keepdim=True)
    hue = torch.where(value > 0, x / value, 1.0)
    return (hue * (value + shift).clamp(0.0, 1.0)).clamp(0.0, 1.0)
