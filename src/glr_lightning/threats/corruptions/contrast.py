"""Loss of contrast."""

from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import NonNegative


@checked_parameters
def contrast(model: object, x: Tensor, y: object, *, random: ImageRandom | None, factor: NonNegative) -> Tensor:
    """clip(m + factor * (x - m)), with m the mean of each image's each channel; [B, C, H, W] in [0, 1].

    factor 1 leaves the image, 0 makes it flat; model, y and random are ignored. Source: Hendrycks &
    Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019.
    """
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean).mul_(factor).add_(mean).clamp_(0.0, 1.0)
