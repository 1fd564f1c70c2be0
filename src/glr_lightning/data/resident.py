"""Images kept whole on an accelerator: a batch is gathered there, and no step waits for a copy."""

from typing import final

import torch
from torch import Tensor

from glr_lightning.data.batches import ImageSet

LARGEST = 2**31
"""Bytes of the largest images that are copied whole; those of Tiny-ImageNet are 1.2e9."""


@final
class Resident:
    """The copy of a data set's images on one device, which its training and its validation part share."""

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._copy: ImageSet | None = None

    def on(self, device: torch.device, data: ImageSet) -> ImageSet:
        """Return the set with its images on the device; the set itself if they are there already or do not fit."""
        if device == data.device or data.images.nbytes > LARGEST:
            return data
        if self._copy is None or self._source is not data.images or self._copy.device != device:
            try:
                self._copy = ImageSet(data.images.to(device), data.labels.to(device))
            except torch.OutOfMemoryError:
                return data
            self._source = data.images
        return ImageSet(self._copy.images, self._copy.labels, None if data.rows is None else data.rows.to(device))
