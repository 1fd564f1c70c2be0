"""JPEG files to pixels; run as a program, a server that does so for another process (see `decoding`).

It imports nothing but Pillow, so that a server starts in a tenth of a second.
"""

import io
import pickle
import sys
from collections.abc import Sequence
from typing import BinaryIO

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


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers the arguments of `decoded` with what it returns or raises, until there are no more."""
    while True:
        try:
            arguments = pickle.load(requests)
        except EOFError:
            return
        answer: bytearray | tuple[object, ...]
        try:
            answer = decoded(*arguments)
        except Undecodable as error:
            answer = error.args
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
