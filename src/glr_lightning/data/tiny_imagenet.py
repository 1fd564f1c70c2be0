"""Tiny-ImageNet: 200 classes of ImageNet at 64 x 64 pixels, and the grey subset of ten classes.

Le & Yang, "Tiny ImageNet visual recognition challenge", CS 231N course report, Stanford University, 2015. The
labelled images are the 100,000 of `train` and the 10,000 of `val`, which serve as the test set; the published test
images have no labels.
"""

import hashlib
import json
import os
import re
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from glr_lightning.data import pixel_cache
from glr_lightning.data.base import PublishedImages, resized
from glr_lightning.data.decoding import decode
from glr_lightning.data.download import fetch
from glr_lightning.data.files import Bounds, Files, identity, opened
from glr_lightning.data.idx import damaged
from glr_lightning.data.pixel_cache import Sets
from glr_lightning.errors import ConfigurationError, DataError
from glr_lightning.terminal import console, progress_bar, say

TOP = "tiny-imagenet-200"
# the published file; size and md5 are of the copy at this address
URL, ARCHIVE, SIZE, MD5 = "http://cs231n.stanford.edu/", f"{TOP}.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"
ARCHIVES = (ARCHIVE, f"{TOP}.tar", f"{TOP}.tar.gz", f"{TOP}.tar.xz")
SUFFIXES = tuple(Path(name).suffix for name in ARCHIVES)
# the published one has 120,206 files, the largest of 2.7 MB, and 0.3 GB
BOUNDS = Bounds(files=250_000, file_bytes=2**24, total_bytes=2**30)
WNIDS, ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"
SIDE = 64
_NEEDED = re.compile(
    rf"{re.escape(WNIDS)}|train/([^/]+/(images/([^/]+\.JPEG)?)?)?|val/({re.escape(ANNOTATIONS[4:])}|images/([^/]+\.JPEG)?)?"
)


class TinyImageNetLike(PublishedImages):
    """64 x 64 colour images of the classes of Tiny-ImageNet, from its folder or archive.

    `root` is the folder `tiny-imagenet-200`, a folder that holds it (or the same as a .zip, .tar, .tar.gz or .tar.xz),
    or such an archive itself. The published zip is downloaded to `root` if there is nothing and `download` is true.

    The images are decoded once, into one file of raw pixels that is mapped into memory later on. Another choice of
    classes, colour or size has a file of its own, and so have data whose files' names, sizes or times differ; these
    files may be deleted at any time.

    Args:
        root, batch_size, download and others: see ImageDataModule and PublishedImages.
        wnids: the classes, as WordNet ids such as n01443537, in their order; None: the first ones of wnids.txt.
        grey: one channel, the luma of ITU-R 601 (0.299 R + 0.587 G + 0.114 B), in place of three. It is taken before
            images are resized.
        resize: as for all data sets; done before the pixels are stored.
        cache: folder of the decoded pixels; None: `root`, or where that cannot be written the user's cache folder.

    The order of the labels is that of `wnids` or of wnids.txt. Training images are sorted by class and name, test
    images come in the order of val_annotations.txt.
    """

    native_shape = (3, SIDE, SIDE)

    def __init__(
        self,
        *,
        root: str | Path | None,
        wnids: Sequence[str] | None = None,
        grey: bool = False,
        cache: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        if not isinstance(grey, bool):
            raise ConfigurationError(f"data.grey must be true or false; it is {grey!r}. Set one of them.")
        if not (cache is None or (isinstance(cache, str | Path) and str(cache))):
            raise ConfigurationError(f"data.cache must be a folder or null; it is {cache!r}. Set data.cache=DIR.")
        if wnids is not None:
            self.classes = len(_checked_wnids(wnids))
        self.wnids = wnids if wnids is None else list(wnids)
        self.grey = grey
        self.native_shape = (1 if grey else 3, SIDE, SIDE)
        self.cache = None if cache is None else Path(cache).expanduser()
        self._sets: Sets | None = None

    @final
    def prepare_data(self) -> None:
        """Downloads the archive if there is none and `download` is true, and decodes it if that has not been done.

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
        """Images [N, *image_shape] uint8, mapped into memory, and labels [N] int64."""
        return self._open()[train]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_sets": None}

    def _open(self) -> Sets:
        """Both sets, mapped into memory; to look for them takes a part of a second where the source is a folder."""
        if self._sets is None:
            self._sets = self._found_or_decoded()
        return self._sets

    def _found_or_decoded(self) -> Sets:
        source = self._source()
        if source is None:
            raise self._not_there("prepare_data() comes first" if self.download else "data.download is false")
        about = [identity(source, _is_needed), self.wnids, self.classes, self.grey, self.image_shape]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        folders = self._cache_folders()
        for folder in folders:
            found = pixel_cache.load(folder / self._cache_name(key), key)
            if found is not None:
                return found
        with opened(source, top=TOP, wanted=_is_needed, bounds=BOUNDS) as files:
            listing = Listing.of(files, self.wnids, self.classes)
            failures = []
            for folder in folders:
                path = folder / self._cache_name(key)
                try:
                    with closing(self._decoded(files, listing)) as batches:  # whatever fails, no process is left
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
        """The folder of the published layout, or the archive."""
        if self.root.is_file():
            return self.root
        if (self.root / TOP).is_dir():
            return self.root / TOP
        is_layout = self.root.name == TOP or any((self.root / name).exists() for name in (WNIDS, ANNOTATIONS))
        if is_layout and self.root.is_dir():
            return self.root
        return next((self.root / name for name in ARCHIVES if (self.root / name).is_file()), None)

    def _cache_folders(self) -> list[Path]:
        """Where the decoded pixels may be, in order of preference."""
        if self.cache is not None:
            return [self.cache]
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return [self.root.parent if self.root.is_file() else self.root, user / "glr_lightning"]

    def _cache_name(self, key: str) -> str:
        return f"{self.name}-{key[:16]}.pixels"

    def _tell_of_others(self, path: Path) -> None:
        """They are of other settings or of data that have changed since; which ones are needed only the user knows."""
        with suppress(OSError):  # another process may remove them meanwhile
            others = [other.stat().st_size for other in path.parent.glob(self._cache_name("*")) if other != path]
            if others:
                say(
                    f"{self.name}: {path.parent.absolute()} holds {len(others)} more {self._cache_name('*')}, "
                    f"{sum(others) / 1e9:.2f} GB, of other settings or earlier data; what is not needed may be deleted."
                )

    def _decoded(self, files: Files, listing: "Listing") -> Generator[Tensor, None, None]:
        """Batches [n, *image_shape] uint8 of all images, in order."""
        columns = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(f"decoding {self.name}, once"))
        with (
            progress_bar(*columns, enabled=console.is_terminal) as bar,
            closing(decode(files, listing.names, side=SIDE, mode="L" if self.grey else "RGB")) as batches,
        ):
            task = bar.add_task("", total=len(listing.names))
            for pixels in batches:
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


@dataclass(frozen=True)
class Listing:
    """names: of all image files, those of the training set first. labels: {train?: [N] int64}."""

    names: list[str]
    labels: dict[bool, Tensor]

    @classmethod
    def of(cls, files: Files, wnids: Sequence[str] | None, classes: int) -> "Listing":
        """What the published layout says of the classes asked for; wnids=None: of the first `classes` ones.

        Raises:
            DataError: if something is missing, there twice, or not what the layout demands.
        """
        known = _known_wnids(files)
        if wnids is None and len(known) < classes:
            raise damaged(files.place / WNIDS, f"at least {classes} classes", f"{len(known)}")
        chosen = list(known[:classes] if wnids is None else wnids)
        unknown = [wnid for wnid in chosen if wnid not in known]
        if unknown:
            raise DataError(
                f"data.wnids has {', '.join(unknown)}, which {files.place / WNIDS} does not list; it has {known[0]} "
                f"and {len(known) - 1} others. Set data.wnids=[...] to some of these."
            )
        label_of = {wnid: label for label, wnid in enumerate(chosen)}
        train: list[tuple[str, int]] = [
            (name, label_of[name.split("/")[1]])
            for name in files.names
            if name.startswith("train/") and name.split("/")[1] in label_of
        ]
        train.sort(key=lambda image: (image[1], image[0]))
        test = [(name, label_of[wnid]) for name, wnid in _annotations(files, known).items() if wnid in label_of]
        for where, images in (("train/{wnid}/images", train), (ANNOTATIONS, test)):
            empty = label_of.keys() - {chosen[label] for _, label in images}
            if empty:
                place = files.place / where.format(wnid=min(empty))
                raise damaged(place, f"at least one image (*.JPEG) of the class {min(empty)}", "none")
        labels = {
            is_train: torch.tensor([label for _, label in part]) for is_train, part in ((True, train), (False, test))
        }
        return cls([name for name, _ in train + test], labels)


def _known_wnids(files: Files) -> list[str]:
    """The classes in the order of wnids.txt."""
    if WNIDS not in files.names:
        raise damaged(files.place, f"the list of classes {WNIDS}, at the top or in a folder {TOP}", "no such file")
    known = _lines(files, WNIDS)
    place = files.place / WNIDS
    for number, wnid in enumerate(known, 1):
        if not _is_wnid(wnid):
            raise damaged(place, f"a WordNet id such as n01443537 in line {number}", repr(wnid))
        if wnid in known[: number - 1]:
            raise damaged(place, "every class once", f"{wnid} a second time in line {number}")
    if not known:
        raise damaged(place, "WordNet ids", "an empty file")
    return known


def _annotations(files: Files, known: Sequence[str]) -> dict[str, str]:
    """{name of a test image: its class}, in the order of val_annotations.txt."""
    place = files.place / ANNOTATIONS
    if ANNOTATIONS not in files.names:
        raise damaged(files.place, f"the classes of the test images, {ANNOTATIONS}", "no such file")
    wnid_of: dict[str, str] = {}
    for number, line in enumerate(_lines(files, ANNOTATIONS), 1):
        filename, *rest = line.split("\t")
        if not rest or not filename.endswith(".JPEG") or "/" in filename:
            raise damaged(place, f"NAME.JPEG<tab>WNID in line {number}", repr(line))
        name, wnid = f"val/images/{filename}", rest[0]
        if wnid not in known:
            raise damaged(place, f"a class of {WNIDS} in line {number}", repr(wnid))
        if name in wnid_of:
            raise damaged(place, "every image once", f"{filename} a second time in line {number}")
        wnid_of[name] = wnid
    images = {name for name in files.names if name.startswith("val/images/")}
    for name in sorted(wnid_of.keys() - images)[:1]:
        raise damaged(place, "lines of images that are there", f"{name}, which is not")
    for name in sorted(images - wnid_of.keys())[:1]:
        raise damaged(place, "a line for every image in val/images", f"none for {name}")
    return wnid_of


def _lines(files: Files, name: str) -> list[str]:
    try:
        return files.read(name).decode().splitlines()
    except UnicodeDecodeError as error:
        raise damaged(files.place / name, "text (UTF-8)", f"{error}") from error


def _is_needed(name: str) -> bool:
    return _NEEDED.fullmatch(name) is not None


def _is_wnid(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"n\d{8}", value) is not None


def _checked_wnids(wnids: object) -> Sequence[str]:
    if (
        not isinstance(wnids, list | tuple)
        or not wnids
        or not all(map(_is_wnid, wnids))
        or len(set(wnids)) < len(wnids)
    ):
        raise ConfigurationError(
            f"data.wnids must be null or a list of different WordNet ids such as n01443537; it is {wnids!r}. Set "
            "data.wnids=[n01443537,n01629819]."
        )
    return wnids
