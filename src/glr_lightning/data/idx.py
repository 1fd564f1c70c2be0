"""The idx files of MNIST and its relatives, plain or gzipped; gzipped ones are unpacked in memory."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from glr_lightning.errors import DataError

REMEDY = "Delete this file and get it again (data.download=true does, where there is a network)."


def read_idx(path: Path, item_shape: tuple[int, ...]) -> Tensor:
    """Return the tensor [N, *item_shape] uint8 that an idx file holds; a name that ends in .gz means gzip.

    An idx file is 2 zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit number, and then the data, last dimension fastest.

    Raises:
        DataError: if the file cannot be read or is not exactly such a file.
    """
    content = _content(path)
    dimensions = 1 + len(item_shape)
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise damaged(path, f"the magic number {magic.hex()}", content[:4].hex() or "an empty file")
    if len(content) < start:
        raise damaged(path, f"a header of {start} bytes", f"{len(content)} bytes")
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if shape[1:] != item_shape or shape[0] == 0:
        raise damaged(path, f"the shape {_sizes(('N', *item_shape))} with N > 0", _sizes(shape))
    if len(content) - start != math.prod(shape):
        expected = f"{math.prod(shape)} bytes of data for the shape {_sizes(shape)}"
        raise damaged(path, expected, f"{len(content) - start}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(shape)


def damaged(path: Path | str, expected: str, found: str) -> DataError:
    """Return the error for a file that is there but is not what it should be."""
    return DataError(f"{path} is damaged: expected {expected}, found {found}. {REMEDY}")


def _content(path: Path) -> bytearray:
    """Return the whole file, unpacked; a bytearray because torch wants writable memory."""
    try:
        content = path.read_bytes()
        return bytearray(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(path, "a complete gzip file", f"{error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Make it readable, or get it again.") from error


def _sizes(shape: tuple[object, ...]) -> str:
    return " x ".join(map(str, shape))
