"""What run folders say, read back and compared: the data behind a report's tables and figures. Nothing is run.

A threat is a column: the clean images, an attack at one budget with one source of gradients, the worst case over all
attacks of a budget, a corruption, whose accuracy is the mean over its severities, or a certificate at one radius. Runs
that differ in their seed alone are one experiment.
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count, pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from glr_lightning.config import config_hash
from glr_lightning.errors import CheckpointError
from glr_lightning.evaluation.per_image import Evidence, read_evidence
from glr_lightning.evaluation.row import Row, read_rows
from glr_lightning.evaluation.worst_case import SHOWN_UP, WORST_CASE
from glr_lightning.runs.trained_run import CONFIG, METRICS, RESULT, ROBUSTNESS, read_config

KIND_ORDER = {"clean": 0, "attack": 1, WORST_CASE: 2, "corruption": 3, "certificate": 4}
RESULT_TYPES: dict[str, type | tuple[type, ...]] = {
    "test_accuracy": (int, float),
    "best_epoch": int,
    "train_seconds": (int, float),
    "forwards": int,
    "parameters": int,
    "device": str,
    "config_hash": str,
    "versions": dict,
}
# Settings that are no part of what is compared, those that the table of runs shows in columns of their own, and
# those that only the estimator reads: it repeats the ones that it uses.
UNCOMPARED = {"experiment", "run_dir", "resume", "progress", "device", "devices", "strategy", "seed", "data.seed"}
UNCOMPARED |= {"data.root", "data.download", "data.cache"}
UNCOMPARED |= {"data", "network", "activation", "loss", "estimator", "estimator.copies"}
UNCOMPARED |= {"callbacks.gradient_quality", "scheduler.T_max"}  # which follows from the epochs
SECTIONS = ("data", "network", "activation", "loss", "estimator")
LONGEST_LABEL = 60  # characters; more do not fit above a figure
FOR_ESTIMATORS = {"sigma", "copies", "chunk", "noise", "sampling", "baseline", "injection"}


@dataclass(frozen=True)
class Column:
    """A threat as a column of the robustness table: what must agree for two numbers to be comparable."""

    kind: str
    threat: str
    preset: str = ""
    norm: str = ""
    gradient_source: str = "none"
    surrogate: str = ""
    targeted: bool = False
    noisy_passes: int = 0
    level_name: str = ""
    levels: tuple[float, ...] = ()

    @property
    def words(self) -> list[str]:
        """The heading, one line an item."""
        level = f"{self.level_name} {_listed(self.levels)}" if self.levels else ""
        if len(self.levels) > 1:
            level = f"mean of {level}"
        bound = f"{level} ({self.norm})" if level and self.norm else level or self.norm
        return [word for word in (self.name, bound, self.preset, *self._means) if word]

    @property
    def name(self) -> str:
        return "worst case" if self.kind == WORST_CASE else self.threat

    @property
    def way(self) -> str:
        """The threat without its level, in a line."""
        return ", ".join(filter(None, [self.name, self.preset, *self._means]))

    @property
    def _means(self) -> list[str]:
        gradient = ", ".join(filter(None, [f"gradient: {self.gradient_source}", self.surrogate]))
        return [
            gradient if self.kind == "attack" else "",
            "targeted" if self.targeted else "",
            f"noisy passes {self.noisy_passes}" if self.noisy_passes and self.kind != "certificate" else "",
        ]

    @property
    def is_clean(self) -> bool:
        """The clean images on the noise-free network?"""
        return self.kind == "clean" and not self.noisy_passes


@dataclass(frozen=True)
class Cell:
    """One run under one threat: one row of robustness.csv, or one for each severity.

    images: the most that any row of the run was counted from.
    others: rows about the same, of fewer images.
    """

    rows: tuple[Row, ...]
    images: int
    others: tuple[Row, ...] = ()

    @property
    def accuracy(self) -> float:
        return fmean(row.accuracy for row in self.rows)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %. Of a mean over severities, the mean of their bounds: too wide rather than too narrow, since the
        severities share their images and a mean never varies more than its terms do on average."""
        return fmean(row.wilson_low for row in self.rows), fmean(row.wilson_high for row in self.rows)

    @property
    def warnings(self) -> list[str]:
        """Why the accuracy must not be read as a plain number; empty if it may."""
        return [_warning(row, len(self.rows) > 1) for row in self.rows if is_marked(row)]

    @property
    def remarks(self) -> list[str]:
        """What else is to be known of the accuracy."""
        said = [part for row in self.rows if not is_marked(row) for part in (row.note, *_unsaid(row)) if part]
        counts = sorted({row.n for row in self.rows if row.n < self.images})
        said += [f"of the first {n:,} images" for n in counts]
        for row in self.others if self.rows[0].kind == WORST_CASE else ():  # over other attacks, maybe more of them
            said.append(f"{100 * row.accuracy:.2f} % of the first {row.n:,} images ({row.note})")
        return list(dict.fromkeys(said))


@dataclass(frozen=True)
class Run:
    """What one run folder says. result is empty until the training has ended, rows until it is evaluated."""

    name: str
    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: dict[int, dict[str, float]]  # by epoch, counted from 0
    rows: list[Row]
    cells: dict[Column, Cell]

    @property
    def config_hash(self) -> str:
        return str(self.result.get("config_hash") or config_hash(self.config))

    @property
    def experiment_hash(self) -> str:
        """The same for runs that differ in their seed alone."""
        config = {key: value for key, value in self.config.items() if key != "seed"}
        if isinstance(config.get("data"), dict):
            config["data"] = {key: value for key, value in config["data"].items() if key != "seed"}
        return config_hash(config)

    @property
    def seeds(self) -> tuple[Any, Any]:
        """Of the training and of the order of the images."""
        data = self.config.get("data")
        return self.config.get("seed"), data.get("seed") if isinstance(data, dict) else None

    @property
    def evidence(self) -> dict[str, Evidence]:
        """What the rows were counted from, by their fingerprints. Raises CheckpointError for a damaged file."""
        return read_evidence((self.folder / ROBUSTNESS).with_suffix(".npz"))

    def target(self, section: str) -> str:
        """What a section of the configuration builds, by its last name."""
        node = self.config.get(section)
        return str(node["_target_"]).rsplit(".", 1)[-1] if isinstance(node, dict) and "_target_" in node else "—"


_SHARED = tuple(field.name for field in fields(Column) if field.name != "levels")


def is_marked(row: Row) -> bool:
    return bool(row.unreliable or row.out_of_budget or row.black_box_stronger)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; a missing result.json, metrics.csv or robustness.csv is no error, a damaged one is.

    Raises:
        ConfigurationError, CheckpointError: a file that cannot be read; the message names it.
    """
    unique = sorted({folder.resolve() for folder in folders}, key=_natural)
    return [_read_run(folder, name) for folder, name in zip(unique, run_names(unique), strict=True)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Absolute folders relative to the parent they share; of a long path the ends, if they still tell all apart."""
    parent = os.path.commonpath([folder.parent for folder in folders])
    names = [folder.relative_to(parent).as_posix() for folder in folders]
    parts = [name.split("/") for name in names]
    short = [f"{p[0]}/…/{p[-1]}" if len(n) > 60 and len(p) > 2 else n for n, p in zip(names, parts, strict=True)]
    return short if len(set(short)) == len(short) else names


def file_names(names: Iterable[str], suffix: str) -> dict[str, str]:
    """A file name for each name, without the signs that a file system or an address may not like, and all different."""
    taken: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._")[:80] or "run"
        numbered = (f"{plain}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
        taken[name] = next(file for file in numbered if file.lower() not in {t.lower() for t in taken.values()})
    return taken


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key: job 10 of a sweep comes after job 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.as_posix())]


def _read_run(folder: Path, name: str) -> Run:
    config = read_config(folder)
    try:
        config_hash(config)
    except TypeError as error:
        raise CheckpointError(f"{folder / CONFIG} holds more than plain values ({error}); it is damaged.") from None
    rows = read_rows(folder / ROBUSTNESS) if (folder / ROBUSTNESS).exists() else []
    cells = table_cells(rows, folder / ROBUSTNESS)
    return Run(name, folder, config, _read_result(folder / RESULT), read_metrics(folder / METRICS), rows, cells)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON: {error}. Train the run again, or leave it out."
        ) from None
    for key, kind in RESULT_TYPES.items():
        if not isinstance(result, dict) or not isinstance(result.get(key), kind):
            raise CheckpointError(
                f"{path} has no valid {key!r}; it is damaged or not of glr-train. Train the run again or leave it out."
            )
    return result


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """metrics.csv by epoch. It has a row for the training and one for the validation of an epoch: merged here.

    Raises CheckpointError if the file is there and malformed.
    """
    merged: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, strict=True):
                values = {key: float(value) for key, value in row.items() if value}
                merged.setdefault(int(values.pop("epoch")), {}).update(values)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). Remove it to report without learning curves.") from None
    return dict(sorted(merged.items()))


def table_cells(rows: Sequence[Row], path: Path | str = ROBUSTNESS) -> dict[Column, Cell]:
    """The rows of one run by column, in their order: a corruption's severities together, every other row alone.

    Of two rows about the same threat at the same level, the one of more images counts. Raises CheckpointError if they
    are of equally many.
    """
    together: dict[tuple[tuple[Any, ...], Any], dict[float | None, Row]] = {}
    others: dict[tuple[tuple[Any, ...], Any], list[Row]] = {}
    for row in rows:
        joint = row.kind == "corruption" and row.level is not None
        which = "all severities" if joint else row.level
        key = (tuple(getattr(row, field) for field in _SHARED), which)
        levels = together.setdefault(key, {})
        other = levels.get(row.level)
        if other is not None and other.n == row.n:
            raise CheckpointError(
                f"{path} has two rows for {row.threat} at {row.level_name or 'level'} {row.level} on "
                f"{row.n} images; remove the file and evaluate the run again."
            )
        if other is not None:
            others.setdefault(key, []).append(min(row, other, key=lambda each: each.n))
        if other is None or other.n < row.n:
            levels[row.level] = row
    images = max((row.n for row in rows), default=0)
    cells = {}
    for key, levels in together.items():
        known = tuple(sorted(level for level in levels if level is not None))
        column = Column(**dict(zip(_SHARED, key[0], strict=True)), levels=known)
        chosen = tuple(levels[level] for level in column.levels or levels)
        cells[column] = Cell(chosen, images, tuple(others.get(key, ())))
    return cells


def all_columns(runs: Iterable[Run]) -> list[Column]:
    """Every column of any run, in the order of KIND_ORDER, then of appearance."""
    found = dict.fromkeys(column for run in runs for column in run.cells)
    return sorted(found, key=lambda column: KIND_ORDER.get(column.kind, 1))


def accuracy_interval(run: Run) -> tuple[float, float] | None:
    """The Wilson interval of the test accuracy, if the clean row was measured on the same images and network."""
    for column, cell in run.cells.items():
        if column.is_clean and run.result and abs(cell.accuracy - run.result["test_accuracy"]) < 1e-6:
            return cell.interval
    return None


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of n >= 2 independent values and half the width of its 95 % interval, t_{n-1, 0.975} s / sqrt(n)."""
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return fmean(values), half


def differences(runs: Sequence[Run]) -> dict[str, str]:
    """By the name of a run, those of its settings that are not the same in all runs, as `sigma=0.5`."""
    settings = {run.name: _settings(run.config) for run in runs}
    values: dict[str, set[str]] = {}
    for chosen in settings.values():
        for key, value in chosen.items():
            values.setdefault(key, set()).add(value)
    return {
        name: ", ".join(f"{key}={value}" for key, value in chosen.items() if len(values[key]) > 1)
        for name, chosen in settings.items()
    }


def experiments(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by experiment, under a label: the name of the run, or of several what they have in common.

    That is their settings, or the folder that they alone share where those take too many words.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.experiment_hash, []).append(run)
    settings = _settings_in_words([group[0] for group in groups.values()])
    labels = {}
    for key, group in groups.items():
        words = settings[group[0].name]
        if len(words) > LONGEST_LABEL and len(group) > 1:
            words = _own_folder(group, runs) or words
        seeds = len({run.seeds for run in group})
        if len(group) > 1:
            label = f"{words} ({seeds} seeds)" if seeds > 1 else f"{words} ({len(group)} runs)"
        else:  # a sweep's jobs are numbered, which says nothing
            label = f"{group[0].name}: {words}" if Path(group[0].name).name.isdigit() else group[0].name
        labels[label if label not in labels else f"{label} {key}"] = group
    return labels


def _settings_in_words(runs: Iterable[Run]) -> dict[str, str]:
    """By run, the name of its experiment, and in what it differs from those of the others that bear the same name."""
    namesakes: dict[str, list[Run]] = {}
    for run in runs:
        namesakes.setdefault(str(run.config.get("experiment") or ""), []).append(run)
    words = {}
    for experiment, group in namesakes.items():
        differs = differences(group)
        sections = [s for s in SECTIONS if not experiment or len({run.target(s) for run in group}) > 1]
        for run in group:
            built = " ".join(run.target(section) for section in sections)
            words[run.name] = ", ".join(filter(None, [experiment, built, differs[run.name]]))
    return words


def _own_folder(group: Sequence[Run], runs: Iterable[Run]) -> str:
    """The folder, as the names have it, that holds these runs and no others; or nothing."""
    shared = os.path.commonpath([Path(run.name).parent for run in group])
    inside = [run for run in runs if Path(run.name).is_relative_to(shared)]
    return Path(shared).as_posix() if shared and len(inside) == len(group) else ""


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    flat = dict(_flat(config))
    return {
        key.removeprefix("estimator."): value
        for key, value in flat.items()
        if key not in UNCOMPARED
        and key.split(".")[0] not in {*FOR_ESTIMATORS, "logger"}
        and (key.startswith("estimator.") or flat.get(key.partition(".")[2]) != value)  # data.batch_size, batch_size
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if key == "_target_":
            yield prefix, str(value).rsplit(".", 1)[-1]
        elif isinstance(value, dict):
            yield from _flat(value, path)
        elif key != "_partial_":
            yield path, value if isinstance(value, str) else json.dumps(value)


def _listed(levels: Sequence[float]) -> str:
    """1–5 for neighbours, else 1, 3, 5."""
    neighbours = len(levels) > 2 and all(after - before == 1 for before, after in pairwise(levels))
    return f"{levels[0]:g}–{levels[-1]:g}" if neighbours else ", ".join(f"{level:g}" for level in levels)


def _warning(row: Row, several: bool) -> str:
    """Of masked gradients that is enough: with how many images a black box breaks besides, no two notes are alike."""
    where = f"{row.level_name} {row.level:g}: " if several else ""
    unreliable = row.unreliable or row.black_box_stronger
    verdicts = {"unreliable": unreliable, "out of budget": row.out_of_budget}
    verdict = " and ".join(words for words, true in verdicts.items() if true)
    said = [part for part in row.note.split("; ") if not (row.masked and part.startswith(SHOWN_UP))]
    reasons = "; ".join(filter(None, [*said, *_unsaid(row)]))
    return f"{where}{verdict}" + (f" ({reasons})" if reasons else "")


def _unsaid(row: Row) -> list[str]:
    """What a row's flags say and its note does not."""
    zero, abstained = (100 * (value or 0.0) for value in (row.zero_gradient_fraction, row.abstained))
    facts = {
        "predictions are random": row.randomized and row.kind != "certificate",
        f"{SHOWN_UP} succeeds where this attack fails": (
            row.black_box_stronger and not row.masked and SHOWN_UP not in row.note
        ),
        f"{zero:.3g} % of the input gradients are exactly zero": zero,
        f"abstains on {abstained:.3g} % of the images": abstained,
    }
    return [words for words, true in facts.items() if true and words not in row.note]
