"""The base of all image data sets: arguments, held-out images, loaders, pixels in [0, 1]."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval, MinLen
from torch import Tensor
from torch.nn.functional import interpolate

from glr_lightning.data.augmentation import Augmentation
from glr_lightning.data.batches import ImageSet, OrderedLoader, Shuffled, ShuffledLoader
from glr_lightning.errors import ConfigurationError, DataError, words_of
from glr_lightning.validation import ReadIf, Seed, Size, checked

EVALUATION_BATCH = 1000
"""The smallest batch of an evaluation, which is not multiplied by noisy copies."""
Side = Annotated[int, Interval(ge=1, le=1024)]
"""The side of an image: many more pixels than a data set here has would not fit into memory."""
Folder = Path | Annotated[str, MinLen(1)]


class ImageDataModule(ABC):
    """Images with one label each, kept as uint8 and scaled to float32 in [0, 1] on the batch's device.

    A subclass declares `name`, `classes` and `native_shape`, and implements `read`.

    Args:
        root: folder of the data set's files; None if it has none.
        batch_size: images per training step, over all processes together (>= 1).
        validation: share of the training set that is held out for validation, in [0, 1). 0: no validation.
        split_seed: seed of the choice of held-out images (>= 0); independent of `seed`, so that runs with different
            seeds can be compared.
        seed: seed of the order of the training batches (>= 0).
        resize: side of the square that images are resized to, up to 1024 pixels (antialiased, once, when loaded);
            None: no resizing.
        flip: mirror training images left to right with probability 1/2, anew in each batch.
        crop: shift training images by up to this many pixels each way, anew in each batch; zeros move in (a random
            crop after zero padding).

    It needs no Lightning; `glr_lightning.training.LightningImages` hands it to a Trainer.

    Raises:
        ConfigurationError: if an argument is out of range.
        DataError: from `prepare_data`, `setup` and `split`, if the data are missing, damaged or inconsistent.
    """

    name: str
    classes: int
    native_shape: tuple[int, int, int]  # (channels, height, width)

    @checked
    def __init__(
        self,
        *,
        root: Folder | None = None,
        batch_size: Size,
        validation: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        split_seed: Annotated[Seed, ReadIf("validation")] = 0,
        seed: Seed = 0,
        resize: Side | None = None,
        flip: bool = False,
        crop: Annotated[int, Interval(ge=0)] = 0,
    ) -> None:
        side = min(self.native_shape[1:]) if resize is None else resize
        if crop >= side:
            raise ConfigurationError(
                f"data.crop must be less than the {side} pixels of an image, got {crop}; use for example data.crop=0.",
                option="crop",
            )
        self.root = None if root is None else Path(root).expanduser()
        self.batch_size = batch_size
        self.validation = validation
        self.split_seed = split_seed
        self.seed = seed
        self.resize = resize
        self.augmentation = Augmentation(flip, crop)
        self._train: ImageSet | None = None
        self._val: ImageSet | None = None
        self._test: ImageSet | None = None

    def prepare_data(self) -> None:  # noqa: B027  # most have no files
        """Download what is missing; of several processes on one machine, one does."""

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test set.

        Returns:
            Images [N, *native_shape] uint8, or [N, *image_shape] if they are resized already, and labels [N] int64
            in [0, classes).
        """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images in a batch."""
        if self.resize is None:
            return self.native_shape
        return (self.native_shape[0], self.resize, self.resize)

    def setup(self, stage: str | None = None) -> None:
        """Read what `stage` needs ("fit", "validate", "test"; None: everything), each part once."""
        if stage in ("fit", "validate", None) and self._train is None:
            self._train, self._val = self._split_off(self._load(train=True))
        if stage in ("test", None) and self._test is None:
            self._test = self._load(train=False)

    def train_dataloader(self) -> ShuffledLoader:
        """Return batches of `batch_size` (the last may be smaller) in an order that follows from (seed, epoch)."""
        self.setup("fit")
        assert self._train is not None
        order = Shuffled(len(self._train), self.batch_size, self.seed)
        return ShuffledLoader(self._train, order)

    def val_dataloader(self) -> OrderedLoader | list[Any]:
        """Return the validation images in order; no loader if none are held out."""
        self.setup("validate")
        return [] if self._val is None else self.in_order(self._val)

    def test_dataloader(self) -> OrderedLoader:
        """Return the test images in order."""
        self.setup("test")
        assert self._test is not None
        return self.in_order(self._test)

    def in_order(self, data: ImageSet) -> OrderedLoader:
        """Return large batches of one part of the images, from first to last."""
        return OrderedLoader(data, max(self.batch_size, EVALUATION_BATCH))

    def part(self, which: Literal["train", "val", "test"]) -> ImageSet:
        """Return one split as uint8 images, taken by index tensors (see `scaled`). Needs no Trainer.

        Raises:
            ConfigurationError: for another name, or "val" when no images are held out.
        """
        if which not in ("train", "val", "test"):
            raise ConfigurationError(f"split must be train, val or test, got {which!r}.", option="split")
        self.prepare_data()
        self.setup("test" if which == "test" else "fit")
        data = {"train": self._train, "val": self._val, "test": self._test}[which]
        if data is None:
            raise ConfigurationError(
                f"The validation images of {self.name} were asked for, but data.validation=0 holds none out. "
                "Set data.validation=0.1, or use the split train or test.",
                option="data.validation",
            )
        return data

    def split(self, which: Literal["train", "val", "test"], limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the images of one split in order, all or the first `limit`. Needs no Trainer.

        Returns:
            Images [N, C, H, W] float32 in [0, 1] and labels [N] int64.

        Raises:
            ConfigurationError: as `part`.
        """
        data = self.part(which)
        images, labels = data[torch.arange(len(data))[:limit]]
        return scaled(images), labels

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the images, which a spawned process reads again."""
        return self.__dict__ | dict.fromkeys(("_train", "_val", "_test"))

    def _load(self, train: bool) -> ImageSet:
        images, labels = self.read(train)
        where = f"{self.name}, {'training' if train else 'test'} set"
        if (
            images.dtype != torch.uint8
            or images.ndim != 4
            or tuple(images.shape[1:]) not in (self.native_shape, self.image_shape)
        ):
            raise DataError(
                f"{where}: expected images uint8 [N, {', '.join(map(str, self.native_shape))}], "
                f"found {images.dtype} {list(images.shape)}. Correct read() of {type(self).__name__}."
            )
        if labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) != len(images) or not len(labels):
            raise DataError(
                f"{where}: expected one int64 label for each of the {len(images)} images and at least one image, "
                f"found {labels.dtype} {list(labels.shape)}. Correct read() of {type(self).__name__}."
            )
        check_labels(labels, self.classes, where)
        if self.resize is not None:
            try:
                images = resized(images, self.resize)
            except RuntimeError as error:  # torch's, without memory
                raise DataError(
                    f"{where}: the {len(images)} images cannot be resized to {self.resize} x {self.resize} pixels "
                    f"({words_of(error)}). Set a smaller data.resize."
                ) from error
        return ImageSet(images, labels)

    def _split_off(self, data: ImageSet) -> tuple[ImageSet, ImageSet | None]:
        """Return the training and the validation part; the choice follows from `split_seed` alone."""
        count = round(self.validation * len(data))
        if self.validation == 0:
            return data, None
        if not 0 < count < len(data):
            raise ConfigurationError(
                f"data.validation={self.validation} of {len(data)} training images leaves {count} for validation and "
                f"{len(data) - count} for training. Choose a share that leaves both, or 0 for no validation.",
                option="data.validation",
            )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(self.split_seed))
        held_out, kept = order[:count].sort().values, order[count:].sort().values
        return ImageSet(data.images, data.labels, kept), ImageSet(data.images, data.labels, held_out)


class PublishedImages(ImageDataModule):
    """Images in files that are downloaded if they are missing.

    Args:
        root: folder of the files.
        download: whether missing files are downloaded.
        options: see ImageDataModule.
    """

    root: Path

    @checked
    def __init__(self, *, root: Folder | None, download: bool = True, **options: Any) -> None:
        super().__init__(root=root, **options)
        if root is None:
            raise ConfigurationError(
                f"{self.name} is read from files, but data.root is null. Set data.root=DIR.", option="root"
            )
        self.download = download


def scaled(images: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1]; same shape and device."""
    return images.float().div_(255)


def resized(images: Tensor, side: int) -> Tensor:
    """Resize images [N, C, H, W] uint8 to [N, C, side, side] uint8, bilinear with antialiasing."""
    if images.shape[2:] == (side, side):
        return images
    # in parts, so that no float copy of the whole set exists
    parts = (
        interpolate(part.float(), (side, side), mode="bilinear", antialias=True) for part in torch.split(images, 4096)
    )
    return torch.cat([part.round_().clamp_(0, 255).byte() for part in parts])


def check_labels(labels: Tensor, classes: int, where: str, remedy: str = "") -> None:
    """Raise DataError at the first label outside [0, classes).

    Args:
        labels: [N] int64.
        classes: the number of classes.
        where: names the data in the message.
        remedy: what to do, in the message.
    """
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{where}: expected labels 0..{classes - 1}, found {int(labels[first])} at index {first} "
            f"({len(wrong)} such labels). {remedy or 'Correct the data.'}"
        )
