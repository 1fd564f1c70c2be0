"""JPEG files to pixels; run as a program, a server that does so for another process (see `decoding`).

It imports nothing but Pillow, so that a server starts in a tenth of a second.
"""

import io
import json
import sys
from collections.abc import Sequence
from typing import IO

from PIL import Image


class Undecodable(Exception):
    """Which file (its place in the batch), what was expected of it, and what was found."""

    def __init__(self, place: int, expected: str, found: str) -> None:
        super().__init__(place, expected, found)
        self.place, self.expected, self.found = place, expected, found


def decoded(contents: Sequence[bytes], side: int, mode: str) -> bytearray:
    """The pixels of JPEG files of side x side pixels, in order: [N, side, side, channels].

    Args:
        contents: the N files, in any colour space.
        side: in pixels.
        mode: what they are converted to, "RGB" or "L" in Pillow's terms.

    Raises:
        Undecodable: for the first that is no JPEG, is damaged, or is of another size.
    """
    pixels = bytearray()
    for place, content in enumerate(contents):
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                size = image.size
                if size == (side, side):  # of a larger one not even the pixels are read
                    pixels += image.convert(mode).tobytes()
        except Exception as error:  # Pillow reports damage in many ways
            words = " ".join(str(error).split()) or type(error).__name__
            raise Undecodable(place, "a complete JPEG file", words) from error
        if size != (side, side):
            raise Undecodable(place, f"an image of {side} x {side} pixels", f"{size[0]} x {size[1]}")
    return pixels


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers the arguments of `decoded` with what it returns or raises, until there are no more.

    A request is a line of JSON, [sizes of the files, side, mode], and the files. An answer is a line of JSON, the
    number of bytes and the pixels, or [place, expected, found].
    """
    for line in requests:
        sizes, side, mode = json.loads(line)
        contents = [requests.read(size) for size in sizes]
        try:
            pixels = decoded(contents, side, mode)
        except Undecodable as error:
            send(answers, error.args)
        else:
            send(answers, len(pixels), pixels)


def send(to: IO[bytes], head: object, *contents: bytes | bytearray) -> None:
    """A line of JSON, and what it announces."""
    to.write(json.dumps(head).encode() + b"\n")
    for content in contents:
        to.write(content)
    to.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
