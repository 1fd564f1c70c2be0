"""The table of an evaluation: rows with fixed fields, written and read as CSV.

One threat at one level with one source of gradients is one trial, and gives one row, a flat dict with the keys FIELDS:

    run, checkpoint            which model
    weights, images            the hashes of its weights and of the images and labels: rows that agree in both can be
                               compared image by image
    evaluation_seed            of the threats' randomness
    noisy_passes               passes that a prediction is the mean of, 0 for the noise-free network
    threat, kind, preset       which threat, of which kind and set of constants
    norm                       in which an epsilon bounds the change
    level_name, level          "severity", "epsilon", "radius" or ""; its value, None for a threat without levels
    gradient_source            where the attack's gradient came from
    surrogate                  of which surrogate, for transfer attacks
    targeted                   did the attack want a given wrong class of each image?
    n, correct, accuracy       images, hits and their ratio
    wilson_low, wilson_high    the 95 % interval of the accuracy
    mean_l2 ... max_linf       norms of x' - x per image, in units of the pixel range
    target_reached             share of images predicted as the target, None without one
    abstained                  share of images on which a certificate was refused, None for other kinds
    queries                    forward passes of an image, each noisy one counted, that the attack made in the network
    seconds                    wall time of the row, threat and judgement together
    zero_gradient_fraction     share of images whose first gradient was exactly zero; None if none was asked for
    masked                     the attack had no gradients to follow
    randomized                 two predictions of the network on the same images differ
    out_of_budget              an image left [0, 1], the epsilon ball or the finite numbers; it counts as if untouched
    black_box_stronger         an attack without gradients broke what this source's gradients did not, see worst_case.py
    unreliable                 the row must not be read as robustness: masked or black_box_stronger
    note                       why, in words
    fingerprint                the hash of all that the row depends on, so that it need not be computed again
"""

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
