"""The published layout of Tiny-ImageNet: which files belong to which class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glr_lightning.data.files import Files
from glr_lightning.data.idx import damaged
from glr_lightning.errors import DataError

TOP = "tiny-imagenet-200"
WNIDS, ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"
_NEEDED = re.compile(
    rf"{re.escape(WNIDS)}|train/([^/]+/(images/([^/]+\.JPEG)?)?)?|val/({re.escape(ANNOTATIONS[4:])}|images/([^/]+\.JPEG)?)?"
)


def is_needed(name: str) -> bool:
    """Whether a file, or a folder whose name ends in a slash, is read."""
    return _NEEDED.fullmatch(name) is not None


def is_wnid(value: object) -> bool:
    """Whether a value is a WordNet id such as n01443537."""
    return isinstance(value, str) and re.fullmatch(r"n\d{8}", value) is not None


@dataclass(frozen=True)
class Listing:
    """The images of the chosen classes.

    Attributes:
        names: of all image files, those of the training set first.
        labels: {train?: [N] int64}.
    """

    names: list[str]
    labels: dict[bool, Tensor]

    @classmethod
    def of(cls, files: Files, wnids: Sequence[str] | None, classes: int) -> "Listing":
        """Read the layout.

        Args:
            files: of the data set.
            wnids: the classes in the order of their labels; None: the first `classes` ones of wnids.txt.
            classes: the number of classes.

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
    """Return the classes in the order of wnids.txt."""
    if WNIDS not in files.names:
        raise damaged(files.place, f"the list of classes {WNIDS}, at the top or in a folder {TOP}", "no such file")
    known = _lines(files, WNIDS)
    place = files.place / WNIDS
    for number, wnid in enumerate(known, 1):
        if not is_wnid(wnid):
            raise damaged(place, f"a WordNet id such as n01443537 in line {number}", repr(wnid))
        if wnid in known[: number - 1]:
            raise damaged(place, "every class once", f"{wnid} a second time in line {number}")
    if not known:
        raise damaged(place, "WordNet ids", "an empty file")
    return known


def _annotations(files: Files, known: Sequence[str]) -> dict[str, str]:
    """Return {name of a test image: its class}, in the order of val_annotations.txt."""
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
