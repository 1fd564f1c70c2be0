"""The download of one published file."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from glr_lightning.storage import replacing

SECONDS_OF_SILENCE = 30.0
"""Time without data after which a mirror is given up."""


def fetch(filename: str, md5: str, mirrors: Sequence[str], folder: Path, *, size: int | None = None) -> None:
    """Download a file, whole or not at all, from the first mirror that yields the right one.

    Args:
        filename: its name, at the mirrors and in the folder.
        md5: its checksum, hex digits.
        mirrors: addresses that the name is appended to.
        folder: where it is kept; the folder is made.
        size: its size in bytes, if that is to be checked too.

    Raises:
        OSError: if no mirror yields the file, or `folder` cannot be written; the message has every reason.
    """
    from torchvision.datasets.utils import download_url  # here, so that files that are there do not import it

    failures = []
    for mirror in mirrors:
        try:
            with replacing(folder / filename) as temporary, _giving_up_on_silence():
                download_url(mirror + filename, str(folder), temporary.name, md5)
                if size is not None and temporary.stat().st_size != size:
                    raise OSError(f"expected {size} bytes, found {temporary.stat().st_size}")
            return
        except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: the checksum is wrong
            failures.append(f"{mirror}{filename}: {error}")
    raise OSError("; ".join(failures))


@contextmanager
def _giving_up_on_silence() -> Iterator[None]:
    # torchvision opens addresses without a timeout; behind a firewall that drops packets it would wait forever
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_OF_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
