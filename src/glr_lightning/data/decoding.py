"""Many JPEG files decoded by as many processes as there are processors.

Threads would not do: a file of 64 x 64 pixels is decoded in 0.06 ms, about what it takes them to hand the interpreter
to each other. Nor would multiprocessing: it imports __main__ once more, which may be a notebook, or a program that
takes seconds to start.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from queue import SimpleQueue

import torch
from torch import Tensor

from glr_lightning.data import jpeg
from glr_lightning.data.files import Files
from glr_lightning.data.idx import damaged
from glr_lightning.errors import DataError

BATCH = 512  # files that are decoded together
MOST = 8  # processes; more would wait for the one that hands out files and takes in pixels


def decode(files: Files, names: Sequence[str], *, side: int, mode: str) -> Generator[Tensor, None, None]:
    """The images of all files in order, in batches [n, channels, side, side] uint8.

    A thread for each process reads its files and waits for it; together they are at most two batches each ahead of
    what is asked for, so that memory stays bounded. Processes and threads end with the generator.

    Args:
        files: where they are read.
        names: of the files.
        side, mode: see `jpeg.decoded`.

    Raises:
        DataError: for the first file that is not an image of that size, or cannot be read.
    """
    batches = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
    count = min(processors() if sys.executable else 1, MOST, len(batches))
    with ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(count if count > 1 else 0)]
        idle: SimpleQueue[Server] = SimpleQueue()
        for server in servers:
            idle.put(server)

        def pixels(contents: Sequence[bytes]) -> bytearray:
            if not servers:  # for so little, none is worth its start
                return jpeg.decoded(contents, side, mode)
            server = idle.get()
            try:
                return server.decoded(contents, side, mode)
            finally:
                idle.put(server)

        def images(batch: Sequence[str]) -> Tensor:
            try:
                content = pixels([files.read(name) for name in batch])
            except jpeg.Undecodable as error:
                raise damaged(f"{files.place}: {batch[error.place]}", error.expected, error.found) from error
            return torch.frombuffer(content, dtype=torch.uint8).view(len(batch), side, side, -1).permute(0, 3, 1, 2)

        pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
        stack.callback(pool.shutdown, cancel_futures=True)
        for server in servers:  # the first thing on the way out: who waits for an answer shall not go on to do so
            stack.callback(server.stop)
        waiting = iter(batches)
        tasks = deque(pool.submit(images, batch) for batch in islice(waiting, 2 * count))
        while tasks:
            yield tasks.popleft().result()
            tasks.extend(pool.submit(images, batch) for batch in islice(waiting, 1))


class Server:
    """A process that decodes for one thread at a time, and ends with the context."""

    def __init__(self) -> None:
        # in a session of its own: an interruption from the keyboard is for the process that started it
        command = [sys.executable, "-P", jpeg.__file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._process.communicate()

    def stop(self) -> None:
        self._process.kill()

    def decoded(self, contents: Sequence[bytes], side: int, mode: str) -> bytearray:
        """As `jpeg.decoded`. Raises DataError if the process is gone."""
        try:
            jpeg.send(self._requests, [list(map(len, contents)), side, mode], *contents)
            answer = json.loads(self._answers.readline())
            pixels = bytearray(answer if isinstance(answer, int) else 0)
            complete = self._answers.readinto(pixels) == len(pixels)  # type: ignore[attr-defined]
        except (OSError, ValueError) as error:  # ValueError: half an answer, or none
            raise _ended(error) from error
        if not complete:
            raise _ended("half an answer")
        if isinstance(answer, list):
            raise jpeg.Undecodable(*answer)
        return pixels


def _ended(why: object) -> DataError:
    return DataError(f"a process that decodes images has ended ({why}), perhaps for want of memory. Start again.")


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
