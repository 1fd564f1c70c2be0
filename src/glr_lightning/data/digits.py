"""The 8 x 8 handwritten digits that come with scikit-learn: no files, no network."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from glr_lightning.data.base import ImageDataModule


@final
class Digits(ImageDataModule):
    """1,797 images, 10 classes. Every fifth image of each class is a test image, whatever the seeds are."""

    name = "digits"
    classes = 10
    native_shape = (1, 8, 8)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images [N, 1, 8, 8] uint8 (the original 0..16 stretched to 0..255) and labels [N] int64."""
        from sklearn.datasets import load_digits  # here, so that other data sets do not import scikit-learn

        pixels, digits = load_digits(return_X_y=True)
        images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
        labels = torch.from_numpy(digits).long()
        test = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(self.classes):
            test[(labels == digit).nonzero()[2::5]] = True  # from the third on: the share is rounded, not cut
        chosen = ~test if train else test
        return images[chosen], labels[chosen]
