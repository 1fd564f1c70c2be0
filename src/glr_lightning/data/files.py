"""The files of a data set, in a folder or in an archive. Archives are read as streams and never unpacked to disk.

Nothing that is read can lie outside the folder or the archive: links and special files are refused by name, and so are
members of an archive with an absolute path or `..`, members that are there twice, encrypted ones, and more bytes than
`Bounds` allows.
"""

import gzip
import hashlib
import lzma
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from glr_lightning.data.idx import damaged
from glr_lightning.errors import DataError

BLOCK = 2**18  # bytes of a stream that are unpacked at once
LONGEST_HEADER = 2**16  # bytes; of a tar's headers that have a content, a long name or a list of attributes


@dataclass(frozen=True)
class Bounds:
    """What an archive may hold at most: files, bytes of one file, bytes altogether, unpacked."""

    files: int
    file_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Files:
    """names: of all files, relative to the top. read: the content of one of them; raises DataError."""

    place: Path
    names: Collection[str]
    read: Callable[[str], bytes]


@contextmanager
def opened(place: Path, *, top: str, wanted: Callable[[str], bool], bounds: Bounds) -> Iterator[Files]:
    """The files of a folder, or of a zip, tar, tar.gz or tar.xz (told apart by their first bytes).

    Args:
        place: the folder or the archive.
        top: an archive's files may lie in a folder of this name, which is then no part of their names.
        wanted: of a name, whether the file is needed; of a tar, which can be read only once, these are held in memory.
        bounds: what an archive may hold.

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
    members = _Members(place, top, bounds)
    if start.startswith(b"PK"):
        with _zip(place, members, wanted) as files:
            yield files
    else:
        openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}
        unpack = next((opener for magic, opener in openers.items() if start.startswith(magic)), open)
        yield _tar(place, members, wanted, unpack)


def walked(folder: Path, wanted: Callable[[str], bool], above: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """(name relative to the folder, size and times) of all files that are wanted; folders are entered if
    `wanted("folder/")`.

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
                    kind = "a link" if entry.is_symlink() else "a special file"
                    raise _refused(folder, entry.name, f"it is {kind}; only files and folders are read")
                if is_folder:
                    yield from walked(Path(entry.path), wanted, f"{name}/")
                else:
                    yield name, entry.stat(follow_symlinks=False)
    except OSError as error:
        raise _unreadable(folder, error) from error


def identity(place: Path, wanted: Callable[[str], bool]) -> str:
    """Hex digits that change with the content of a folder or archive, from names, sizes and times of modification."""
    try:
        found = walked(place, wanted) if place.is_dir() else [(place.name, place.stat())]
        lines = sorted(f"{name}\t{info.st_size}\t{info.st_mtime_ns}" for name, info in found)
    except OSError as error:
        raise _unreadable(place, error) from error
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


class _Members:
    """Looks at every member of an archive before it is read."""

    def __init__(self, archive: Path, top: str, bounds: Bounds) -> None:
        self.archive, self.top, self.bounds = archive, top, bounds
        self._names: set[str] = set()
        self._bytes = 0

    def admit(self, path: str, size: int, *, is_folder: bool) -> str:
        """The name of a file or a folder. Raises DataError if it is refused."""
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or re.search(r"\\|\0|^[A-Za-z]:", path):
            raise _refused(self.archive, path, "it may lie outside the archive")
        name = "/".join(parts[1:] if parts[:1] == (self.top,) else parts)
        if is_folder:
            return name
        if name in self._names:
            raise _refused(self.archive, path, "it is there twice")
        self._names.add(name)
        self._bytes += size
        if size > self.bounds.file_bytes:
            raise _refused(self.archive, path, f"it has {size} bytes, {self.bounds.file_bytes} are the most")
        if self._bytes > self.bounds.total_bytes or len(self._names) > self.bounds.files:
            raise self.too_much()
        return name

    def refuse(self, path: str, why: str) -> DataError:
        return _refused(self.archive, path, why)

    def too_much(self) -> DataError:
        return DataError(
            f"{self.archive} is refused: it unpacks to more than {self.bounds.total_bytes} bytes or "
            f"{self.bounds.files} files, far more than the data set has. Get the published archive."
        )


@contextmanager
def _zip(archive: Path, members: _Members, wanted: Callable[[str], bool]) -> Iterator[Files]:
    try:
        file = zipfile.ZipFile(archive)
    except Exception as error:  # zipfile reports damage in many ways
        raise damaged(archive, "a complete zip file", _words(error)) from error
    with file:
        found: dict[str, zipfile.ZipInfo] = {}
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise members.refuse(info.filename, "it is a link or a device; only files and folders are read")
            if info.flag_bits & 1:
                raise members.refuse(info.filename, "it is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise members.refuse(info.filename, "it is compressed by another method than deflate")
            name = members.admit(info.orig_filename, info.file_size, is_folder=info.is_dir())
            if wanted(name) and not info.is_dir():
                found[name] = info

        def read(name: str) -> bytes:
            try:
                with file.open(found[name]) as stream:
                    # a size, since without one all is unpacked first, also what is beyond the size that was admitted
                    return stream.read(found[name].file_size)
            except Exception as error:
                raise damaged(archive / name, "a complete member of the zip file", _words(error)) from error

        yield Files(archive, found.keys(), read)


HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Member(tarfile.TarInfo):
    """A header that is no header ends a tar silently in tarfile, as if its rest were not there; here it is an error. So
    is one that is followed by more than `LONGEST_HEADER` bytes of its own, which tarfile would hold in memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in HEADERS and member.size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes, {LONGEST_HEADER} are the most")
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header where one should be ({error})") from error


class _Bounded:
    """A stream that gives no more than so many bytes, whatever it unpacks to."""

    def __init__(self, stream: IO[bytes], members: _Members) -> None:
        self._stream, self._members = stream, members
        # a tar has, beside each file, a header of 512 bytes and padding to as much
        self._left = members.bounds.total_bytes + 2048 * members.bounds.files

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(min(size, BLOCK))
        self._left -= len(chunk)
        if self._left < 0:
            raise self._members.too_much()
        return chunk


def _tar(archive: Path, members: _Members, wanted: Callable[[str], bool], unpack: Callable[..., Any]) -> Files:
    contents: dict[str, bytes] = {}
    try:
        with unpack(archive, "rb") as stream:
            bounded = _Bounded(stream, members)
            with tarfile.open(fileobj=bounded, mode="r|", bufsize=BLOCK, tarinfo=_Member) as file:  # type: ignore[call-overload]
                for member in file:
                    if not (member.isdir() or member.isreg()) or member.issparse():
                        kind = "a link" if member.islnk() or member.issym() else "a device or another special file"
                        raise members.refuse(member.name, f"it is {kind}; only files and folders are read")
                    name = members.admit(member.name, member.size, is_folder=member.isdir())
                    if wanted(name) and member.isreg():
                        contents[name] = file.extractfile(member).read()
                    file.members.clear()  # else it keeps every header, of any number of folders too
            while bounded.read(BLOCK):  # the checksum is at the very end
                pass
    except DataError:
        raise
    except Exception as error:  # tarfile, lzma and gzip report damage in many ways
        raise damaged(archive, "a complete tar file (plain, gz or xz) or zip file", _words(error)) from error
    return Files(archive, contents.keys(), contents.__getitem__)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _refused(place: Path, name: str, why: str) -> DataError:
    return DataError(f"{place}: {name!r} is refused: {why}. Remove it, or get the published files.")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}. Make it readable, or get it again.")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
