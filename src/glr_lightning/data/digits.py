"""The 8 x 8 handwritten digits that come with scikit-learn: no files, no network."""

import functools
import importlib.util
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glr_lightning.data.base import ImageDataModule
from glr_lightning.errors import DataError


@final
class Digits(ImageDataModule):
    """1,797 images, 10 classes. Every fifth image of each class is a test image, whatever the seeds are."""

    name = "digits"
    classes = 10
    native_shape = (1, 8, 8)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images [N, 1, 8, 8] uint8 (the original 0..16 stretched to 0..255) and labels [N] int64."""
        rows = _rows()
        images = torch.from_numpy(np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
        labels = torch.from_numpy(rows[:, -1]).long()
        test = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(self.classes):
            test[(labels == digit).nonzero()[2::5]] = True  # from the third on: the share is rounded, not cut
        chosen = ~test if train else test
        return images[chosen], labels[chosen]


@functools.cache
def _rows() -> NDArray[np.uint8]:
    """Return the 64 pixels and the label of every image, [1797, 65], as `sklearn.datasets.load_digits` reads them.

    Without importing scikit-learn, which takes longer than training on the digits for an epoch.

    Raises:
        DataError: scikit-learn is not installed, or without its data.
    """
    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0] if folders else "sklearn") / "datasets/data/digits.csv.gz"
    try:
        return np.loadtxt(path, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"the digits of scikit-learn cannot be read: {error}. Install scikit-learn anew.") from None
