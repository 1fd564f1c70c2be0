"""What the rows of an evaluation were counted from, image by image, in one file beside their table.

The table says how many images a network got right under a threat; which ones they were is needed to tell how many it
got right under all of them, and what the images looked like is for looking at.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glr_lightning.errors import CheckpointError

KEY_SEPARATOR = "."
UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile)
UNREADABLE += (TypeError, RuntimeError, zlib.error, OverflowError, MemoryError)  # no, encrypted, spoilt, lying archives
REMOVE = " Remove the file; what it held is then computed again."


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of one row, by its fingerprint.

    correct: bool [n], was the image classified rightly?
    examples: uint8 [k, C, H, W], the first images as the threat left them, 255 for a pixel of 1.
    labels, predictions: int64 [k], of these.
    """

    correct: NDArray[Any]
    examples: NDArray[Any]
    labels: NDArray[Any]
    predictions: NDArray[Any]


PARTS = tuple(each.name for each in fields(Evidence))
_SHAPES = {"correct": ("bool", 1), "examples": ("uint8", 4), "labels": ("int64", 1), "predictions": ("int64", 1)}


def write_evidence(path: Path, evidence: Mapping[str, Evidence]) -> None:
    """Write evidence by fingerprint, whole or not at all."""
    arrays = {f"{key}{KEY_SEPARATOR}{part}": getattr(each, part) for key, each in evidence.items() for part in PARTS}
    write_arrays(path, arrays)


def read_evidence(path: Path) -> dict[str, Evidence]:
    """Evidence by fingerprint; none if there is no file. Raises CheckpointError for a damaged one."""
    found: dict[str, dict[str, Any]] = {}
    for name, array in read_arrays(path).items() if path.exists() else ():
        key, _, part = name.rpartition(KEY_SEPARATOR)
        if _SHAPES.get(part) != (array.dtype.name, array.ndim):
            raise damaged(path, f"{name} has the wrong type or shape")
        found.setdefault(key, {})[part] = array
    for key, parts in found.items():
        if set(parts) != set(PARTS):
            raise damaged(path, f"{key} is incomplete")
    return {key: Evidence(**parts) for key, parts in found.items()}


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An .npz file, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the same folder: replacing it is atomic
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, none of which is ever unpickled. Raises CheckpointError if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise damaged(path, str(error)) from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise damaged(path, "it is no .npz file of arrays")
    return arrays


def damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {why}.{REMOVE}")
