"""More light."""

import torch
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.facts import checked_parameters


@checked_parameters
def brightness(model: object, x: Tensor, y: object, *, random: ImageRandom | None, shift: float) -> Tensor:
    """Each pixel's value v, its largest channel, becomes clip(v + shift), its hue and saturation stay.

    [B, C, H, W] in [0, 1]; model, y and random are ignored. In HSV a colour is its value times a function of hue
    and saturation, so the channels are multiplied by clip(v + shift) / v, and black becomes grey. With one channel
    that is clip(x + shift). Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common
    corruptions and perturbations", ICLR 2019.
    """
    value = x.amax(dim=1, keepdim=True)
    hue = torch.where(value > 0, x / value, 1.0)
    return (hue * (value + shift).clamp(0.0, 1.0)).clamp(0.0, 1.0)
