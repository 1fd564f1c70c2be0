"""MNIST, and the base of the data sets that are published in the same four files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from glr_lightning.data.base import Folder, PublishedImages, check_labels
from glr_lightning.data.download import fetch
from glr_lightning.data.idx import REMEDY, read_idx
from glr_lightning.errors import DataError

LABELS_OF = {
    "e86ee40d66677c011a9abda399ec8c4d": "MNIST",
    "073c3904dfbd3e141ff8aa01cfde6b15": "MNIST",
    "3236f6424fc25388b2834cb19942cf7e": "FashionMNIST",
    "8dea97a4e78c1bd1b5a6e8efbb870b6e": "FashionMNIST",
}
"""Data set by the md5 of its label bytes; the files have the same names, so folders are easily mistaken."""


@final
@dataclass(frozen=True)
class Published:
    """Where four files of images and labels are published.

    Attributes:
        name: of the data set, and of the folder where torchvision keeps it.
        mirrors: addresses that the name of a file is appended to.
        md5: checksums of the gzipped files by name: training images, training labels, test images, test labels.
    """

    name: str
    mirrors: Sequence[str]
    md5: Mapping[str, str]


class MNISTLike(PublishedImages):
    """28 x 28 grey images in the four idx files of MNIST, plain or gzipped.

    The two files of a split are looked for, together, in `root/<published name>/raw` (where torchvision keeps
    them), `root/raw` and `root`. If `download` is true, missing files are downloaded to the first of these.
    """

    published: Published

    classes = 10
    native_shape = (1, 28, 28)

    def __init__(self, *, root: Folder | None, **options: Any) -> None:
        super().__init__(root=root, **options)
        self.folders = [self.root / self.published.name / "raw", self.root / "raw", self.root]

    @final
    def prepare_data(self) -> None:
        """Download, if `download` is true, the files of each split that no folder has in full.

        Raises:
            DataError: if a file cannot be fetched.
        """
        for train in (True, False) if self.download else ():
            if self._find(train) is not None:
                continue
            for filename, md5 in self._missing(train, self.folders[0]):
                try:
                    fetch(filename, md5, self.published.mirrors, self.folders[0])
                except OSError as error:
                    raise self._not_there(train, f"the download failed ({error})") from error

    @final
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images [N, 1, 28, 28] uint8 and labels [N] int64, from the first folder that has both files."""
        found = self._find(train)
        if found is None:
            raise self._not_there(train, "prepare_data() comes first" if self.download else "data.download is false")
        images, labels = read_idx(found[0], (28, 28)), read_idx(found[1], ())
        if len(images) != len(labels):
            raise DataError(
                f"{found[0]} and {found[1]} do not belong together: expected as many labels as images, found "
                f"{len(images)} images and {len(labels)} labels. Delete both and get them again."
            )
        check_labels(labels, self.classes, f"{found[1]} is damaged", REMEDY)
        owner = LABELS_OF.get(hashlib.md5(labels.numpy().tobytes(), usedforsecurity=False).hexdigest(), "")
        if owner not in ("", self.published.name):
            raise DataError(
                f"{found[1]} holds the labels of {owner}, but {self.published.name} was asked for: both use these "
                f"file names. Put each into its own folder, ROOT/<name>/raw, and set data.root=ROOT."
            )
        return images.unsqueeze(1), labels.long()

    def _files(self, train: bool) -> list[tuple[str, str]]:
        """Return (name of the gz file, md5) of the images and of the labels."""
        files = list(self.published.md5.items())
        return files[:2] if train else files[2:]

    def _missing(self, train: bool, folder: Path) -> list[tuple[str, str]]:
        return [(name, md5) for name, md5 in self._files(train) if _either(folder, name) is None]

    def _find(self, train: bool) -> tuple[Path, Path] | None:
        """Return the files of the images and of the labels, from the first folder that has both."""
        for folder in self.folders:
            images, labels = (_either(folder, name) for name, _ in self._files(train))
            if images is not None and labels is not None:
                return images, labels
        return None

    def _not_there(self, train: bool, reason: str) -> DataError:
        lacking = min((self._missing(train, folder) for folder in self.folders), key=len)
        names = " and ".join(f"{name} (md5 {md5})" for name, md5 in lacking)
        places = ", ".join(str(folder.absolute()) for folder in self.folders)
        fetching = "" if self.download else " set data.download=true,"
        return DataError(
            f"{self.published.name}: missing {names}, or the same unpacked, without .gz; looked in {places}; "
            f"{reason}. Set data.root=DIR to a folder that has the files,{fetching} or put the "
            f"files from {self.published.mirrors[0]} into {self.folders[0].absolute()}."
        )


@final
class MNIST(MNISTLike):
    """Handwritten digits: 60,000 training and 10,000 test images, 10 classes."""

    name = "mnist"
    published = Published(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    )


def _either(folder: Path, name: str) -> Path | None:
    """Return the unpacked file if it is in the folder, else the gzipped one, else None."""
    candidates = (folder / name.removesuffix(".gz"), folder / name)
    return next((path for path in candidates if path.is_file()), None)
