"""Gaussian pixel noise."""

from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import NonNegative


@checked_parameters
def gaussian_noise(model: object, x: Tensor, y: object, *, random: ImageRandom, std: NonNegative) -> Tensor:
    """clip(x + std * z), z standard normal, one for every pixel of every channel; [B, C, H, W] in [0, 1].

    std is in units of the pixel range; model and y are ignored. Source: Hendrycks & Dietterich, "Benchmarking
    neural network robustness to common corruptions and perturbations", ICLR 2019.
    """
    noise = random.once(ImageRandom.normal, x.shape[1:], 0)
    return (std * noise.to(x.dtype)).add_(x).clamp_(0.0, 1.0)
