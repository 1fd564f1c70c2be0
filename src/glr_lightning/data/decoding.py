"""JPEG files decoded to pixels, by Pillow in one thread.

Measured on two cores for the 100,000 training images of Tiny-ImageNet, 64 x 64 pixels: 10.5 s of processor time, and
two threads take as long, because a file of that size is decoded in the time that they need to hand the interpreter to
each other. torchvision takes 5.3 s, once for a data set, but converts CMYK and grey images otherwise than Pillow.
"""

import io
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from glr_lightning.data.files import Files
from glr_lightning.data.idx import damaged
from glr_lightning.errors import words_of

BATCH = 512
"""Images that are decoded before they are handed on; memory holds this many at a time."""


def decode(files: Files, names: Sequence[str], *, side: int, mode: str) -> Iterator[Tensor]:
    """Decode files in order, in batches [n, channels, side, side] uint8.

    Args:
        files: where they are read.
        names: their names.
        side: height and width that every image must have, in pixels.
        mode: what they are converted to from any colour space, "RGB" or "L" in Pillow's terms.

    Raises:
        DataError: for the first file that cannot be read, is no complete JPEG file, or is of another size.
    """
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        pixels = bytearray().join(_decoded(files, name, side, mode) for name in batch)
        yield torch.frombuffer(pixels, dtype=torch.uint8).view(len(batch), side, side, -1).permute(0, 3, 1, 2)


def _decoded(files: Files, name: str, side: int, mode: str) -> bytes:
    """Return the pixels [side, side, channels] of one file."""
    content = files.read(name)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            size = image.size
            # the pixels of a larger one are not even read
            pixels = image.convert(mode).tobytes() if size == (side, side) else b""
    except Exception as error:  # Pillow reports damage in many ways
        raise damaged(f"{files.place}: {name}", "a complete JPEG file", words_of(error)) from error
    if not pixels:
        raise damaged(f"{files.place}: {name}", f"an image of {side} x {side} pixels", f"{size[0]} x {size[1]}")
    return pixels
