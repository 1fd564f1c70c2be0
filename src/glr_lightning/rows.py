"""The table of an evaluation: rows with fixed fields, written and read as CSV."""

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glr_lightning.errors import CheckpointError, ConfigurationError

Row = dict[str, Any]


def _optional_float(text: str) -> float | None:
    return float(text) if text else None


_truth = {"True": True, "False": False}.__getitem__
_PARSERS: dict[str, Callable[[str], object]] = {
    "run": str,
    "checkpoint": str,
    "weights": str,
    "images": str,
    "evaluation_seed": int,
    "noisy_passes": int,
    "threat": str,
    "kind": str,
    "preset": str,
    "norm": str,
    "level_name": str,
    "level": _optional_float,
    "gradient_source": str,
    "surrogate": str,
    "targeted": _truth,
    "n": int,
    "correct": int,
    "accuracy": float,
    "wilson_low": float,
    "wilson_high": float,
    "mean_l2": _optional_float,
    "max_l2": _optional_float,
    "mean_linf": _optional_float,
    "max_linf": _optional_float,
    "target_reached": _optional_float,
    "abstained": _optional_float,
    "queries": _optional_float,
    "seconds": float,
    "zero_gradient_fraction": _optional_float,
    "masked": _truth,
    "randomized": _truth,
    "out_of_budget": _truth,
    "black_box_stronger": _truth,
    "unreliable": _truth,
    "note": str,
    "fingerprint": str,
}
FIELDS = tuple(_PARSERS)


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes rows as CSV with the header FIELDS, whole or not at all: a reader never meets half a table.

    Folders are made. Raises ConfigurationError for a row whose keys are not FIELDS.
    """
    path = Path(path)
    for row in rows:
        if set(row) != set(FIELDS):
            raise ConfigurationError(f"a row must have the fields {', '.join(FIELDS)}; got {', '.join(row)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the same folder: replacing it is atomic
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_rows(path: str | Path) -> list[Row]:
    """The rows that `write_rows` wrote, with their types.

    Raises CheckpointError if the file is missing or malformed.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if tuple(header) != FIELDS:
                raise CheckpointError(
                    f"{path} is no table of results of this version: its header is {','.join(header)}, not "
                    f"{','.join(FIELDS)}. Remove the file and evaluate the run again."
                )
            return [_parse(cells, f"{path}, line {reader.line_num}") for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(
            f"{path} cannot be read as a table of results: {error}. Remove the file and evaluate the run again."
        ) from error


def _parse(cells: Sequence[str], where: str) -> Row:
    if len(cells) != len(FIELDS):
        raise CheckpointError(
            f"{where}: {len(FIELDS)} cells expected, got {len(cells)}. Remove the file and evaluate the run again."
        )
    row: Row = {}
    for (field, parse), text in zip(_PARSERS.items(), cells, strict=True):
        try:
            row[field] = parse(text)
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{where}: {field} cannot be {text!r}. Remove the file and evaluate the run again."
            ) from error
    return row
