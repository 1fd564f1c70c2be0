"""Fetching one published file: whole and with the right checksum, or not at all."""

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets.utils import download_url

SECONDS_OF_SILENCE = 30.0  # after which a mirror is given up


def fetch(filename: str, md5: str, mirrors: Sequence[str], folder: Path, *, size: int | None = None) -> None:
    """Downloads `filename` to `folder` from the first mirror that yields a file with this checksum, and of this size in
    bytes, where one is given.

    It arrives in a temporary folder beside its place and is then renamed, so that whatever goes wrong, Ctrl-C
    included, leaves nothing behind.

    Raises:
        OSError: if no mirror yields the file, or `folder` cannot be written; the message has every reason.
    """
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    failures = []
    with tempfile.TemporaryDirectory(prefix=".download-", dir=existing) as scratch, _giving_up_on_silence():
        for mirror in mirrors:
            try:
                download_url(mirror + filename, scratch, filename, md5)
                found = Path(scratch, filename).stat().st_size
                if size is not None and found != size:
                    raise OSError(f"expected {size} bytes, found {found}")
            except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: the checksum is wrong
                failures.append(f"{mirror}{filename}: {error}")
                continue
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch, filename), folder / filename)
            return
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
