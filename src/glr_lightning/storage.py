"""Files that are written whole or not at all, and arrays that are read without running anything in them."""

import contextlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glr_lightning.errors import CheckpointError, ConfigurationError

REMOVE = " Remove the file; what it held is then computed again."
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy raises for an .npz file that is missing, encrypted, damaged or no archive."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: a reader meets the old file or the new one, never half of it.

    Folders are made. Several threads and processes may write the same file; the last one stays.

    Args:
        path: the file to write.

    Yields:
        A path in the same folder to write to. It replaces `path` when the block ends, and is removed if the block
        raises, together with the folders that were made for it.

    Raises:
        OSError: if a folder cannot be made or the file cannot be replaced.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # same folder: os.replace is atomic there
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write a small UTF-8 file whole or not at all, and wait until it is on the disk. Line ends stay as they are.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # some 5 ms; a table of results may have cost hours


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz file whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array has the name of an option


def write_files(out: Path, files: Mapping[str, bytes], stale: Sequence[str] = ()) -> None:
    """Write files into a folder; none is replaced before all of them are written, so a full disk spoils nothing.

    Args:
        out: the folder; it is made.
        files: the contents by path below `out`.
        stale: patterns below `out` of files that an earlier call may have left; those not written now are removed.

    Raises:
        ConfigurationError: if the folder cannot be made or written.
    """
    try:
        with contextlib.ExitStack() as stack:
            for name, content in files.items():
                stack.enter_context(replacing(out / name)).write_bytes(content)
        for path in {path for pattern in stale for path in out.glob(pattern)} - {out / name for name in files}:
            path.unlink(missing_ok=True)
            if path.parent != out and not any(path.parent.iterdir()):
                path.parent.rmdir()
    except OSError as error:
        raise _not_writable(out, "it is a file" if out.is_file() else str(error)) from None


def require_folder(out: Path) -> None:
    """Check that `out` is or can become a folder that can be written, without making it.

    Raises:
        ConfigurationError: if it cannot.
    """
    existing = next(path for path in (out, *out.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise _not_writable(out, f"{existing} is no folder that can be written")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file; nothing in it is unpickled.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        # opened here, since np.load leaves a damaged file open
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise damaged(path, str(error)) from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise damaged(path, "it is no .npz file of arrays")
    return arrays


def damaged(path: Path, why: str) -> CheckpointError:
    """Return the error for a file of ours that can be computed again."""
    return CheckpointError(f"{path} cannot be read: {why}.{REMOVE}")


def _not_writable(out: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"out={out} must be a folder that can be written, but {reason}; choose another out.", option="out"
    )
