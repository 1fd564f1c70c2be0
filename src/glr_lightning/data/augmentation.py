"""Augmentation of training images: random horizontal flips and random crops after zero padding, a batch at a time.

As in He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2, where 4 pixels of
padding are used for images of 32 x 32.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad


@final
@dataclass(frozen=True)
class Augmentation:
    """Random flips and shifts.

    Attributes:
        flip: mirror an image left to right with probability 1/2.
        crop: shift an image by up to this many pixels each way.
    """

    flip: bool = False
    crop: int = 0

    def __bool__(self) -> bool:
        return self.flip or self.crop > 0

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Flip and shift each image independently; both shifts are uniform on {-crop, ..., crop}.

        Args:
            images: [N, C, H, W] of any dtype.
            generator: on the images' device.

        Returns:
            [N, C, H, W] of the same dtype.
        """
        device = images.device
        mirrored = torch.rand(len(images), generator=generator, device=device) < (0.5 if self.flip else 0.0)
        shifts = torch.randint(
            -self.crop, self.crop + 1, (2, len(images)), generator=generator, device=device, dtype=torch.int64
        )
        return moved(images, shifts[0], shifts[1], mirrored, self.crop)


def moved(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, most: int) -> Tensor:
    """Shift and then mirror images.

    out[n, c, i, j] = images[n, c, i - down[n], j' - right[n]], where j' = W - 1 - j if mirrored[n], else j, and
    zero where that lies outside.

    Args:
        images: [N, C, H, W].
        down: [N] int64, in pixels, in [-most, most].
        right: [N] int64, in pixels, in [-most, most].
        mirrored: [N] bool.
        most: the largest shift.
    """
    n, channels, height, width = images.shape
    padded = pad(images, (most,) * 4) if most else images
    across = torch.arange(width, device=images.device)
    rows = torch.arange(height, device=images.device) + most - down[:, None]
    columns = torch.where(mirrored[:, None], across.flip(0), across) + most - right[:, None]
    # one index into each flattened image: several times as fast as indexing rows and columns
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(n, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view_as(images)
