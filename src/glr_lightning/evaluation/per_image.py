"""What the rows of an evaluation were counted from, image by image, in one file beside their table.

The table says how many images a network got right under a threat; which ones they were is needed to tell how many it
got right under all of them, and what the images looked like is for looking at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from glr_lightning.storage import damaged, read_arrays, write_arrays

KEY_SEPARATOR = "."


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
