"""A training and a test set in one file that is mapped into memory and read from disk as it is used.

The file has a header of `HEADER` bytes (JSON, padded with spaces), the labels as int64, and the pixels as uint8;
first the training set, then the test set. It holds numbers only; nothing in it is executed.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from glr_lightning.storage import replacing

HEADER = 4096
"""Bytes of the header: a page, so that what follows is aligned."""

Sets = dict[bool, tuple[Tensor, Tensor]]
"""{train?: (images [N, C, H, W] uint8, labels [N] int64)}: the training set and the test set."""
FORMAT = f"glr_lightning pixels 1, {sys.byteorder} endian"


def load(path: Path, key: str) -> Sets | None:
    """Return the sets that `save` has written, their images mapped from the file.

    Args:
        path: the file.
        key: what `save` was told.

    Returns:
        The sets, or None if there is no such file, it is damaged, or it was saved with another key.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(HEADER))
            size = os.fstat(file.fileno()).st_size
        counts, shape = [int(n) for n in header["counts"]], [int(n) for n in header["shape"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):  # the last two from odd JSON
        return None
    images = sum(counts)
    right = header.get("format") == FORMAT and header.get("key") == key and len(counts) == 2 and len(shape) == 3
    if not right or min(counts + shape) < 1 or size != HEADER + images * (8 + math.prod(shape)):
        return None
    # not shared: what is written to the tensor does not reach the file
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    labels = content[HEADER : HEADER + 8 * images].view(torch.int64).clone()
    if header.get("labels") != _digest(labels):
        return None
    pixels = content[HEADER + 8 * images :].view(images, *shape)
    parts = zip((True, False), torch.split(pixels, counts), torch.split(labels, counts), strict=True)
    return {train: (part, labels_of_part) for train, part, labels_of_part in parts}


def save(
    path: Path, key: str, labels: dict[bool, Tensor], shape: tuple[int, int, int], batches: Iterable[Tensor]
) -> None:
    """Write both sets whole or not at all; several processes may do so at the same time.

    Args:
        path: the file; its folder is made.
        key: what `load` must be told, a hash of all that the pixels depend on.
        labels: {train?: [N] int64}.
        shape: (C, H, W) of all images.
        batches: the images, [n, C, H, W] uint8, first those of the training set, then those of the test set.

    Raises:
        OSError: if it cannot be written.
    """
    every_label = torch.cat([labels[True], labels[False]])
    header = {
        "format": FORMAT,
        "key": key,
        "counts": [len(labels[True]), len(labels[False])],
        "shape": list(shape),
        "labels": _digest(every_label),
    }
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(json.dumps(header).encode().ljust(HEADER))
        file.write(every_label.numpy().tobytes())
        for batch in batches:
            file.write(batch.contiguous().numpy().data)


def _digest(labels: Tensor) -> str:
    return hashlib.sha256(labels.numpy().tobytes()).hexdigest()
