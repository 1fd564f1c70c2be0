"""The table of an evaluation: rows with typed fields, written and read as CSV.

One threat at one level with one source of gradients gives one row. The table's columns are the fields of `Row`, in
their order.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, final, get_type_hints

from glr_lightning.errors import CheckpointError
from glr_lightning.storage import write_atomically


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """How often one network is right under one threat, how far the images moved, and whether to believe it."""

    run: str
    """The run folder, "" for a network without one."""
    checkpoint: str
    """Which of the run's checkpoints: "best", "last" or ""."""
    weights: str
    """The hash of the network's weights."""
    images: str
    """The hash of images and labels. Rows that agree in `weights` and `images` can be compared image by image."""
    evaluation_seed: int
    """The seed of the threats' randomness."""
    noisy_passes: int = 0
    """Noisy passes that a prediction is the mean of, 0 for the noise-free network."""
    threat: str
    """The name of the threat."""
    kind: str
    """"clean", "corruption", "attack", "worst_case" or "certificate"."""
    preset: str = ""
    """The named set of constants of a corruption."""
    norm: str = ""
    """The norm in which an epsilon bounds the change, "" if nothing bounds it."""
    level_name: str = ""
    """What `level` counts: "severity", "epsilon", "radius" or ""."""
    level: float | None = None
    """The severity, epsilon or radius; None for a threat without levels."""
    gradient_source: str = "none"
    """Where the attack's gradient came from."""
    surrogate: str = ""
    """The name of the surrogate of a transfer attack."""
    targeted: bool = False
    """Whether the attack aimed at one given wrong class per image."""
    searches: bool = False
    """Whether the attack followed the network's own gradients or scores; random points and transfer do not."""
    n: int
    """The number of images."""
    correct: int
    """The number of images that are classified correctly."""
    accuracy: float
    """correct / n."""
    wilson_low: float
    """The lower end of the accuracy's 95 % interval."""
    wilson_high: float
    """The upper end of the accuracy's 95 % interval."""
    mean_l2: float | None = None
    """The mean over images of the L2 norm of x' - x, in units of the pixel range."""
    max_l2: float | None = None
    """The maximum over images of the L2 norm."""
    mean_linf: float | None = None
    """The mean over images of the L-infinity norm."""
    max_linf: float | None = None
    """The maximum over images of the L-infinity norm."""
    target_reached: float | None = None
    """The share of images that are predicted as their target, None for an untargeted attack."""
    proved: int | None = None
    """The number of images that are proved to stay right within the budget; None where no proof was sought."""
    abstained: float | None = None
    """The share of images for which a certificate was refused, None for other kinds."""
    queries: float | None = None
    """Forward passes of the network that the attack made per image, each noisy pass counted; None without an attack."""
    seconds: float
    """Wall time of the row: the threat and the predictions on its images."""
    zero_gradient_fraction: float | None = None
    """The share of images whose first input gradient was exactly zero, None if no gradient was asked for."""
    masked: bool = False
    """Whether the attack had no gradients to follow."""
    randomized: bool = False
    """Whether two predictions of the network on the same images differ."""
    out_of_budget: bool = False
    """Whether an image left [0, 1], the epsilon ball or the finite numbers; it counts as if it were untouched."""
    black_box_stronger: bool = False
    """Whether an attack without gradients broke what this source's gradients did not, see `worst_case`."""
    unreliable: bool = False
    """Whether the row must not be read as robustness: masked or black_box_stronger."""
    note: str = ""
    """The reasons, in words."""
    fingerprint: str = ""
    """The hash of all that the row depends on. A row whose fingerprint is known need not be computed again."""


FIELDS = tuple(field.name for field in fields(Row))
"""The header of the table."""
ADDED = ("searches", "proved")
"""Columns that tables of version 0.4 have not."""

DISTANCES = ("mean_l2", "max_l2", "mean_linf", "max_linf")
"""What is not finite where an image left the finite numbers."""

AGAIN = "Remove the file and evaluate the run again."


def table_text(rows: Sequence[Row], extra: Sequence[Mapping[str, Any]] = ()) -> str:
    """Format rows as CSV with a header.

    Args:
        rows: the rows.
        extra: for each row, values by column. They replace fields or stand in further columns behind them.
    """
    records = [vars(row) | dict(more) for row, more in zip(rows, extra or [{}] * len(rows), strict=True)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys([*FIELDS, *(key for record in records for key in record)])))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, whole or not at all: a reader never meets half a table. Missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table_text(rows))


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows that `write_rows` wrote, with their types.

    A table of version 0.4 has no column `searches`, which follows from the others, and none that are `ADDED`.

    Raises:
        CheckpointError: the file is missing or malformed.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if tuple(header) != tuple(name for name in FIELDS if name in header or name not in ADDED):
                raise CheckpointError(
                    f"{path} is no table of results of this version: its header is {','.join(header)}, not "
                    f"{','.join(FIELDS)}. {AGAIN}"
                )
            return [_parse(header, cells, f"{path}, line {reader.line_num}") for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path} cannot be read as a table of results: {error}. {AGAIN}") from error


def _optional_float(text: str) -> float | None:
    return float(text) if text else None


def _optional_int(text: str) -> int | None:
    return int(text) if text else None


PARSERS: Mapping[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: {"True": True, "False": False}.__getitem__,
    float | None: _optional_float,
    int | None: _optional_int,
}
"""How the text of a cell becomes the value of a field, by the field's type."""


def _parse(header: Sequence[str], cells: Sequence[str], where: str) -> Row:
    if len(cells) != len(header):
        raise CheckpointError(f"{where}: {len(header)} cells expected, got {len(cells)}. {AGAIN}")
    types: dict[str, Any] = get_type_hints(Row)
    values: dict[str, Any] = {}
    for name, text in zip(header, cells, strict=True):
        try:
            value = values[name] = PARSERS[types[name]](text)
            if isinstance(value, float) and not math.isfinite(value) and name not in DISTANCES:
                raise ValueError("no number")
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{where}: {name} cannot be {text!r}. {AGAIN}") from error
    row = Row(**values)
    return row if "searches" in values else replace(row, searches=_searched_in_0_4(row))


def _searched_in_0_4(row: Row) -> bool:
    """All attacks of version 0.4 but random_noise followed the gradients or scores of the network they were given."""
    return row.kind == "attack" and row.gradient_source != "transfer" and row.threat != "random_noise"
