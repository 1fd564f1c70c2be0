"""What lossy compression leaves of an image."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torchvision.transforms.v2 import functional

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.facts import checked_parameters


@checked_parameters
def jpeg_compression(
    model: object, x: Tensor, y: object, *, random: ImageRandom | None, quality: Annotated[int, Interval(ge=1, le=100)]
) -> Tensor:
    """Encode x as JPEG and decode it again, in 8 bits; [B, C, H, W] in [0, 1]; model, y and random are ignored.

    libjpeg does both, through torchvision, on the CPU. `quality` is libjpeg's, 75 being its default. Images of three
    channels are colour images, with the chrominance at half the resolution (4:2:0); of any other number each channel
    is a grey image.

    Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR 2019.
    """
    pixels = (255.0 * x).round().to(torch.uint8).cpu()
    planes = pixels if x.shape[1] == 3 else pixels.flatten(0, 1)[:, None]
    decoded = functional.jpeg(planes, quality).view_as(pixels) if len(x) else pixels
    return (decoded.to(torch.float64) / 255.0).to(x)
