"""The files of a data set, in a folder or in an archive that is read as a stream and never unpacked to disk.

Names are keys, not paths: nothing outside the folder or the archive is read or written. Links, special files, names
that point outside, names that occur twice and archives that unpack to more bytes than they may are refused, because no
published archive is like that.
"""

import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from glr_lightning.data.idx import damaged
from glr_lightning.errors import DataError, words_of

BLOCK = 2**18
"""Bytes of a stream that are unpacked at once."""


@dataclass(frozen=True)
class Files:
    """The names of all files relative to the top, and a function that reads one of them or raises DataError."""

    place: Path
    names: Collection[str]
    read: Callable[[str], bytes]


@contextmanager
def opened(place: Path, *, top: str, wanted: Callable[[str], bool], most: int) -> Iterator[Files]:
    """Open a folder, or a zip, tar, tar.gz or tar.xz, told apart by their first bytes.

    Args:
        place: the folder or the archive.
        top: an archive's files may lie in a folder of this name, which is then no part of their names.
        wanted: whether a file is needed, by its name. A tar can be read only once: these are held in memory.
        most: the most bytes that an archive may unpack to.

    Raises:
        DataError: if `place` cannot be read, is damaged, or holds what is refused.
    """
    if place.is_dir():
        names = {name for name, _ in walked(place, wanted)}
        yield Files(place, names, lambda name: _content(place / name))
        return
    try:
        with place.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise _unreadable(place, error) from error
    if start.startswith(b"PK"):
        with _zip(place, top, wanted, most) as files:
            yield files
    else:
        openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}
        unpack = next((opener for magic, opener in openers.items() if start.startswith(magic)), open)
        yield _tar(place, top, wanted, most, unpack)


def walked(folder: Path, wanted: Callable[[str], bool], above: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name relative to the folder, size and times) of all files that are wanted.

    Args:
        folder: the folder.
        wanted: whether a file is needed, by its name; folders are entered if `wanted("folder/")`.
        above: what the names begin with.

    Raises:
        DataError: for a link or a special file that is wanted, or a folder that cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = above + entry.name
                is_folder = entry.is_dir()
                if not wanted(f"{name}/" if is_folder else name):
                    continue
                if entry.is_symlink() or not (is_folder or entry.is_file()):
                    raise _refused(folder, entry.name, "it is a link or a special file")
                if is_folder:
                    yield from walked(Path(entry.path), wanted, f"{name}/")
                else:
                    yield name, entry.stat(follow_symlinks=False)
    except OSError as error:
        raise _unreadable(folder, error) from error


def identity(place: Path, wanted: Callable[[str], bool]) -> str:
    """Return hex digits that change with the names, sizes and times of the files of a folder, or of an archive."""
    try:
        found = walked(place, wanted) if place.is_dir() else [(place.name, place.stat())]
        lines = sorted(f"{name}\t{info.st_size}\t{info.st_mtime_ns}" for name, info in found)
    except OSError as error:
        raise _unreadable(place, error) from error
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


@contextmanager
def _zip(archive: Path, top: str, wanted: Callable[[str], bool], most: int) -> Iterator[Files]:
    try:
        file = zipfile.ZipFile(archive)
    except Exception as error:  # zipfile reports damage in many ways
        raise damaged(archive, "a complete zip file", words_of(error)) from error
    with file:
        if sum(info.file_size for info in file.infolist()) > most:
            raise _too_much(archive, most)
        found: dict[str, zipfile.ZipInfo] = {}
        for info in file.infolist():
            special = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
            name = _name(archive, info.filename, top, special, found)
            if wanted(name) and not info.is_dir():
                found[name] = info

        def read(name: str) -> bytes:
            try:
                with file.open(found[name]) as stream:
                    # a size: without one all is unpacked first, also what is beyond the size that it declares
                    return stream.read(found[name].file_size)
            except Exception as error:
                raise damaged(archive / name, "a complete member of the zip file", words_of(error)) from error

        yield Files(archive, found.keys(), read)


class _Member(tarfile.TarInfo):
    """A member of a tar. A spoilt header is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header where one should be ({error})") from error


class _Bounded:
    """A stream that gives at most `most` bytes, whatever it unpacks to."""

    def __init__(self, archive: Path, stream: IO[bytes], most: int) -> None:
        self._archive, self._stream, self._most = archive, stream, most
        self._given = 0

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(min(size, BLOCK))
        self._given += len(chunk)
        if self._given > self._most:
            raise _too_much(self._archive, self._most)
        return chunk


def _tar(archive: Path, top: str, wanted: Callable[[str], bool], most: int, unpack: Callable[..., Any]) -> Files:
    contents: dict[str, bytes] = {}
    try:
        with unpack(archive, "rb") as stream:
            bounded = _Bounded(archive, stream, most)
            open_tar: Any = tarfile.open  # typed for whole files; with "r|" it only reads
            with open_tar(fileobj=bounded, mode="r|", bufsize=BLOCK, tarinfo=_Member) as file:
                for member in file:
                    special = not (member.isdir() or member.isreg()) or member.issparse()
                    name = _name(archive, member.name, top, special, contents)
                    if wanted(name) and member.isreg():
                        contents[name] = file.extractfile(member).read()
                    file.members.clear()  # it would keep every header
            while bounded.read(BLOCK):  # the checksum is at the very end
                pass
    except DataError:
        raise
    except Exception as error:  # tarfile, lzma and gzip report damage in many ways
        raise damaged(archive, "a complete tar file (plain, gz or xz) or zip file", words_of(error)) from error
    return Files(archive, contents.keys(), contents.__getitem__)


def _name(archive: Path, path: str, top: str, special: bool, known: Container[str]) -> str:
    """Return the name of a member of an archive. Raises DataError if it is refused."""
    parts = PurePosixPath(path).parts
    name = "/".join(parts[1:] if parts[:1] == (top,) else parts)
    if special:
        raise _refused(archive, path, "it is a link or a special file")
    if path.startswith("/") or ".." in parts:
        raise _refused(archive, path, "it may lie outside the archive")
    if name in known:
        raise _refused(archive, path, "it is there twice")
    return name


def _too_much(archive: Path, most: int) -> DataError:
    return DataError(
        f"{archive} is refused: it unpacks to more than {most} bytes, far more than the data set has. "
        "Get the published archive."
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _refused(place: Path, name: str, why: str) -> DataError:
    return DataError(f"{place}: {name!r} is refused: {why}. Remove it, or get the published files.")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}. Make it readable, or get it again.")
