"""What the rows of an evaluation were counted from, image by image, in one file beside their table.

The table says how many images a network got right under a threat; which ones they were is needed to tell how many it
got right under all of them, and what the images looked like is for looking at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor

from glr_lightning.storage import damaged, read_arrays, write_arrays

KEY_SEPARATOR = "."
EXAMPLES = 8
"""Images that are kept for looking at."""


@final
@dataclass(frozen=True, eq=False)
class PerImage:
    """What one row was counted from; kept by the row's fingerprint.

    Attributes:
        correct: bool [n], whether the image was classified correctly.
        examples: uint8 [k, C, H, W], the first images as the threat left them, 255 for a pixel of 1.
        labels, predictions: int64 [k], of these.
    """

    correct: NDArray[Any]
    examples: NDArray[Any]
    labels: NDArray[Any]
    predictions: NDArray[Any]


PARTS = tuple(each.name for each in fields(PerImage))
_SHAPES = {"correct": ("bool", 1), "examples": ("uint8", 4), "labels": ("int64", 1), "predictions": ("int64", 1)}


def per_image(correct: Tensor, prediction: Tensor, labels: Tensor, examples: Tensor) -> PerImage:
    """Keep what a row was counted from.

    Args:
        correct: bool [n].
        prediction: int64 [at least k].
        labels: int64 [at least k].
        examples: float [k, C, H, W] in [0, 1], the first images as the threat left them.
    """
    shown = examples.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    first = (values[: len(shown)].cpu().numpy() for values in (labels, prediction))
    return PerImage(correct.cpu().numpy(), shown.cpu().numpy(), *first)


def write_per_image(path: Path, known: Mapping[str, PerImage]) -> None:
    """Write results by fingerprint, whole or not at all."""
    arrays = {f"{key}{KEY_SEPARATOR}{part}": getattr(each, part) for key, each in known.items() for part in PARTS}
    write_arrays(path, arrays)


def read_per_image(path: Path) -> dict[str, PerImage]:
    """Read results by fingerprint; none if there is no file.

    Raises:
        CheckpointError: a damaged file.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, array in read_arrays(path).items() if path.exists() else ():
        key, _, part = name.rpartition(KEY_SEPARATOR)
        if _SHAPES.get(part) != (array.dtype.name, array.ndim):
            raise damaged(path, f"{name} has the wrong type or shape")
        found.setdefault(key, {})[part] = array
    for key, parts in found.items():
        if set(parts) != set(PARTS):
            raise damaged(path, f"{key} is incomplete")
    return {key: PerImage(**parts) for key, parts in found.items()}
