"""Files written whole or not at all, and arrays read without running anything in them."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glr_lightning.errors import CheckpointError, ConfigurationError


def require_folder(out: Path) -> None:
    """Raises ConfigurationError if `out` can plainly not become a folder that can be written. Makes nothing."""
    existing = next(path for path in (out, *out.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise _not_writable(out, f"{existing} is no folder that can be written")


def _not_writable(out: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(f"out={out} must be a folder that can be written, but {reason}; choose another out.")


def write_files(out: Path, files: Mapping[str, bytes], stale: Sequence[str] = ()) -> None:
    """Write files into a folder so that a reader never meets half of one, nor some without the others if the disk
    is full. They are named by their paths below it. Files that a pattern in `stale` matches and that are not written
    now are removed: they belonged to an earlier report.

    Raises ConfigurationError if the folder cannot be made or written.
    """
    targets = {name: out / name for name in files}
    temporary = {name: path.with_name(f".{path.name}.{os.getpid()}.tmp") for name, path in targets.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            temporary[name].write_bytes(content)
        for name in files:
            os.replace(temporary[name], targets[name])
        for path in {path for pattern in stale for path in out.glob(pattern)} - set(targets.values()):
            path.unlink(missing_ok=True)
            if path.parent != out and not any(path.parent.iterdir()):
                path.parent.rmdir()
    except OSError as error:
        raise _not_writable(out, "it is a file" if out.is_file() else str(error)) from None
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the same folder: replacing is atomic
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile)


UNREADABLE += (TypeError, RuntimeError, zlib.error, OverflowError, MemoryError)  # no, encrypted, spoilt, lying archives


REMOVE = " Remove the file; what it held is then computed again."


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
