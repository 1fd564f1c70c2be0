"""Where a value has its rows, the samples of a batch: on the first axis, on a later one, with an inner axis folded in.

Noise copies are more rows of the same tensors (Law 5). Most values have their rows in front. A tensor with time first
has them on the second axis; x.view(-1, width) of [batch, steps, width] has `steps` rows for each sample; and the number
of rows that code reads from the input, to shape another tensor by it, counts for one copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """The rows of a value.

    Attributes:
        axis: along which they are.
        each: how many of them belong to a sample, next to each other.
    """

    axis: int = 0
    each: int = 1


FIRST = Rows()


def rows_between(two: Any, three: Any) -> Rows | None:
    """Where a value has its rows, given it for two and for three samples; None: it is the same for any number."""
    sizes, others = _sizes(two), _sizes(three)
    if sizes is None or others is None or len(sizes) != len(others):
        return FIRST if isinstance(two, Tensor) else None
    axes = [axis for axis, size in enumerate(sizes) if size != others[axis]]
    if not axes:
        return None
    size, other = sizes[axes[0]], others[axes[0]]
    fits = len(axes) == 1 and 3 * size == 2 * other
    return Rows(axes[0], size // 2) if fits else FIRST if isinstance(two, Tensor) else None


def _sizes(value: Any) -> tuple[int, ...] | None:
    """The sizes of a tensor; a tuple of sizes, or one size, itself; None for anything else."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, tuple) and all(isinstance(part, int) for part in value):
        return value
    return (value,) if isinstance(value, int) else None


def repeated(value: Tensor, rows: Rows, copies: int) -> Tensor:
    """A value with its rows repeated for each copy, copy-major."""
    return value.repeat(*(copies if axis == rows.axis else 1 for axis in range(value.dim())))


@dataclass(frozen=True)
class Layouts:
    """Where the values of a graph's nodes have their rows, as far as passes that were run tell.

    Attributes:
        other: by node, where that is not the first axis; None: the value has no rows.
    """

    other: dict[int, Rows | None] = field(default_factory=dict)

    def find(self, two: Sequence[Any], three: Sequence[Any]) -> None:
        """Find it from the values of all nodes for two and for three samples."""
        found = enumerate(map(rows_between, two, three))
        self.other.update((number, rows) for number, rows in found if rows != FIRST)

    def of(self, number: int) -> Rows | None:
        """Where a node that rests on the input has its rows; None: nowhere."""
        return self.other.get(number, FIRST)

    def in_front(self, number: int, value: Tensor) -> Tensor:
        """The value of a node as [rows, ...], or with several rows of a sample as [rows, each, ...]."""
        rows = self.other.get(number)
        if rows is None:
            return value
        value = value.movedim(rows.axis, 0)
        return value if rows.each == 1 else value.unflatten(0, (-1, rows.each))

    def put_back(self, number: int, value: Tensor) -> Tensor:
        """The inverse of `in_front`."""
        rows = self.other.get(number)
        if rows is None:
            return value
        return (value if rows.each == 1 else value.flatten(0, 1)).movedim(0, rows.axis)

    def as_called(self, number: int, x: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """The input of a layer, and a signal [copies, batch, *site] at it, with its rows in front and folded."""
        rows = self.other.get(number)
        if rows is None:
            return x, signal
        return x.movedim(rows.axis, 0), signal if rows.each == 1 else signal.flatten(1, 2)


def aligned(values: list[Any], rows: Sequence[Rows | None], *, sizes: bool) -> list[Any]:
    """Repeat tensors whose rows are common to all copies of others.

    Args:
        values: what a call takes.
        rows: where they have their rows, None: nowhere.
        sizes: whether numbers of rows among the values are sizes of what is returned, so that they grow as well.
    """
    counts = [_count(value, own, sizes) for value, own in zip(values, rows, strict=True)]
    most = max(counts)
    return [
        _grown(value, own, most // count) if own is not None and count and count != most else value
        for value, own, count in zip(values, rows, counts, strict=True)
    ]


def _count(value: Any, rows: Rows | None, sizes: bool) -> int:
    """The number of samples in a value; 0 for one that stays as it is."""
    if rows is None or not (sizes or isinstance(value, Tensor)):
        return 0
    own = _sizes(value)
    return 0 if own is None else own[rows.axis] // rows.each


def _grown(value: Any, rows: Rows, copies: int) -> Any:
    if isinstance(value, Tensor):
        return repeated(value, rows, copies)
    if isinstance(value, int):
        return value * copies
    return type(value)(size * copies if axis == rows.axis else size for axis, size in enumerate(value))
