"""Tiny-ImageNet: 200 classes of ImageNet at 64 x 64 pixels, and the grey subset of ten classes.

Le & Yang, "Tiny ImageNet visual recognition challenge", CS 231N course report, Stanford University, 2015. The
labelled images are the 100,000 of `train` and the 10,000 of `val`, which serve as the test set; the published test
images have no labels.
"""

import hashlib
import json
import os
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, final

from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from glr_lightning.data import pixel_cache
from glr_lightning.data.base import Folder, PublishedImages, resized
from glr_lightning.data.decoding import decode
from glr_lightning.data.download import fetch
from glr_lightning.data.files import Files, identity, opened
from glr_lightning.data.pixel_cache import Sets
from glr_lightning.data.tiny_imagenet_layout import ANNOTATIONS, TOP, WNIDS, Listing, is_needed, is_wnid
from glr_lightning.errors import ConfigurationError, DataError
from glr_lightning.terminal import console, progress_bar, say
from glr_lightning.validation import NonEmpty, checked

URL, ARCHIVE, SIZE, MD5 = "http://cs231n.stanford.edu/", f"{TOP}.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"
"""The published file, with the size in bytes and the checksum of the copy at this address."""
ARCHIVES = (ARCHIVE, f"{TOP}.tar", f"{TOP}.tar.gz", f"{TOP}.tar.xz")
SUFFIXES = tuple(Path(name).suffix for name in ARCHIVES)
MOST_BYTES = 2**30
"""The most that an archive may unpack to; the published one has 0.3 GB."""
SIDE = 64


class TinyImageNetLike(PublishedImages):
    """64 x 64 colour images of the classes of Tiny-ImageNet, from its folder or archive.

    `root` is the folder `tiny-imagenet-200`, a folder that holds it (or the same as a .zip, .tar, .tar.gz or .tar.xz),
    or such an archive itself. The published zip is downloaded to `root` if there is nothing and `download` is true.

    The images are decoded once, into one file of raw pixels that is mapped into memory from then on. Each choice of
    classes, colour and size has its own file, and so has each version of the data, told by names, sizes and times of
    files. These files may be deleted at any time.

    The order of the labels is that of `wnids` or of wnids.txt. Training images are sorted by class and name, test
    images come in the order of val_annotations.txt.

    Args:
        root: see above.
        wnids: the classes, as WordNet ids such as n01443537, in their order; None: the first ones of wnids.txt.
        grey: one channel, the luma of ITU-R 601 (0.299 R + 0.587 G + 0.114 B), in place of three; taken before images
            are resized.
        cache: folder of the decoded pixels; None: `root`, or the user's cache folder if that cannot be written.
        options: see PublishedImages; `resize` is done before the pixels are stored.
    """

    native_shape = (3, SIDE, SIDE)

    @checked
    def __init__(
        self,
        *,
        root: Folder | None,
        wnids: NonEmpty[str] | None = None,
        grey: bool = False,
        cache: Folder | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        if wnids is not None:
            if not all(map(is_wnid, wnids)) or len(set(wnids)) < len(wnids):
                raise ConfigurationError(
                    f"data.wnids must be different WordNet ids such as n01443537, got {list(wnids)}; for example "
                    "data.wnids=[n01443537,n01629819].",
                    option="wnids",
                )
            self.classes = len(wnids)
        self.wnids = wnids if wnids is None else list(wnids)
        self.grey = grey
        self.native_shape = (1 if grey else 3, SIDE, SIDE)
        self.cache = None if cache is None else Path(cache).expanduser()
        self._sets: Sets | None = None

    @final
    def prepare_data(self) -> None:
        """Download the archive if there is none and `download` is true, and decode it if that has not been done.

        Raises:
            DataError: if the data are not there, damaged or refused, or cannot be written.
        """
        if self._source() is None and self.download:
            if self.root.suffix in SUFFIXES:
                raise self._not_there("this names an archive, and a download needs a folder")
            try:
                fetch(ARCHIVE, MD5, [URL], self.root, size=SIZE)
            except OSError as error:
                raise self._not_there(f"the download failed ({error})") from error
        self._open()

    @final
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images [N, *image_shape] uint8, mapped into memory, and labels [N] int64."""
        return self._open()[train]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_sets": None}

    def _open(self) -> Sets:
        """Return both sets, mapped into memory; the search takes a fraction of a second if the source is a folder."""
        if self._sets is None:
            self._sets = self._found_or_decoded()
        return self._sets

    def _found_or_decoded(self) -> Sets:
        source = self._source()
        if source is None:
            raise self._not_there("prepare_data() comes first" if self.download else "data.download is false")
        about = [identity(source, is_needed), self.wnids, self.classes, self.grey, self.image_shape]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        folders = self._cache_folders()
        for folder in folders:
            found = pixel_cache.load(folder / self._cache_name(key), key)
            if found is not None:
                return found
        with opened(source, top=TOP, wanted=is_needed, most=MOST_BYTES) as files:
            listing = Listing.of(files, self.wnids, self.classes)
            failures = []
            for folder in folders:
                path = folder / self._cache_name(key)
                try:
                    with closing(self._decoded(files, listing)) as batches:  # whatever fails, the bar ends
                        pixel_cache.save(path, key, listing.labels, self.image_shape, batches)
                except OSError as error:
                    failures.append(f"{folder.absolute()}: {error.strerror or error}")
                    continue
                found = pixel_cache.load(path, key)
                if found is not None:
                    self._tell_of_others(path)
                    return found
                failures.append(f"{path} is not what was written")
        raise DataError(
            f"{self.name}: the decoded pixels cannot be kept ({'; '.join(failures)}). Set data.cache=DIR to a folder "
            "with enough space."
        )

    def _source(self) -> Path | None:
        """Return the folder of the published layout, or the archive."""
        if self.root.is_file():
            return self.root
        if (self.root / TOP).is_dir():
            return self.root / TOP
        is_layout = self.root.name == TOP or any((self.root / name).exists() for name in (WNIDS, ANNOTATIONS))
        if is_layout and self.root.is_dir():
            return self.root
        return next((self.root / name for name in ARCHIVES if (self.root / name).is_file()), None)

    def _cache_folders(self) -> list[Path]:
        """Return the folders that the decoded pixels may be in, in order of preference."""
        if self.cache is not None:
            return [self.cache]
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return [self.root.parent if self.root.is_file() else self.root, user / "glr_lightning"]

    def _cache_name(self, key: str) -> str:
        return f"{self.name}-{key[:16]}.pixels"

    def _tell_of_others(self, path: Path) -> None:
        """Tell how much the files of other settings and earlier data take; only the user knows which are needed."""
        with suppress(OSError):  # another process may remove them meanwhile
            others = [other.stat().st_size for other in path.parent.glob(self._cache_name("*")) if other != path]
            if others:
                say(
                    f"{self.name}: {path.parent.absolute()} holds {len(others)} more {self._cache_name('*')}, "
                    f"{sum(others) / 1e9:.2f} GB, of other settings or earlier data; what is not needed may be deleted."
                )

    def _decoded(self, files: Files, listing: Listing) -> Generator[Tensor, None, None]:
        """Yield batches [n, *image_shape] uint8 of all images, in order."""
        columns = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(f"decoding {self.name}, once"))
        with progress_bar(*columns, enabled=console.is_terminal) as bar:
            task = bar.add_task("", total=len(listing.names))
            for pixels in decode(files, listing.names, side=SIDE, mode="L" if self.grey else "RGB"):
                yield pixels if self.resize is None else resized(pixels, self.resize)
                bar.advance(task, len(pixels))

    def _not_there(self, reason: str) -> DataError:
        fetching = "" if self.download else " set data.download=true,"
        return DataError(
            f"Tiny-ImageNet: there is neither the folder {TOP} nor {', '.join(ARCHIVES)} in {self.root.absolute()}; "
            f"{reason}. Set data.root=DIR to a folder that has one of them,{fetching} or put {URL}{ARCHIVE} "
            f"(md5 {MD5}) into {self.root.absolute()}."
        )


@final
class TinyImageNet(TinyImageNetLike):
    """All 200 classes in colour: 100,000 training and 10,000 test images."""

    name = "tiny_imagenet"
    classes = 200


@final
class TinyImageNet10(TinyImageNetLike):
    """Ten classes, the first ten of wnids.txt: 5,000 training and 500 test images; conf/ makes them grey, 48 x 48."""

    name = "tiny_imagenet_10"
    classes = 10
