"""Run folders, read back: the data behind a report's tables and figures. Nothing is run."""

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from glr_lightning import __version__
from glr_lightning.config import config_hash, experiment_hash, known_target
from glr_lightning.errors import CheckpointError
from glr_lightning.evaluation.per_image import PerImage, read_per_image
from glr_lightning.evaluation.row import Row, read_rows
from glr_lightning.reporting.columns import Cell, Column, table_cells
from glr_lightning.runs.trained_run import CONFIG, METRICS, PER_IMAGE, RESULT, ROBUSTNESS, read_config

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


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    Attributes:
        name: see `run_names`.
        folder: the run folder.
        config: its config.yaml.
        result: its result.json; empty until the training has ended.
        metrics: its metrics.csv by epoch, counted from 0.
        rows: its robustness.csv; empty until it is evaluated.
        cells: the rows by threat.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: dict[int, dict[str, float]]
    rows: list[Row]
    cells: dict[Column, Cell]

    @property
    def config_hash(self) -> str:
        """The identity of the run."""
        return str(self.result.get("config_hash") or config_hash(self.config))

    @property
    def experiment_hash(self) -> str:
        """The identity of the experiment: the same for runs that differ in their seed alone.

        It is that of the result if this version trained the run. To work it out, the classes of callbacks are imported
        and Lightning with them.
        """
        stored = self.result.get("experiment_hash")
        same = self.result.get("versions", {}).get("glr-lightning") == __version__
        return str(stored) if stored and same else experiment_hash(self.config)

    @property
    def seeds(self) -> tuple[Any, Any]:
        """The seeds of the training and of the order of the images."""
        data = self.config.get("data")
        return self.config.get("seed"), data.get("seed") if isinstance(data, dict) else None

    @property
    def per_image(self) -> dict[str, PerImage]:
        """Per-image results by the fingerprint of their row. Raises CheckpointError for a damaged file."""
        return read_per_image(self.folder / PER_IMAGE)

    def target(self, section: str) -> str:
        """Return the name of what a section of the configuration builds, see `short_target`."""
        return target_name(self.config.get(section))

    def built(self, section: str) -> Any:
        """Return the class or function of this package or torch that a section of the configuration builds, or None."""
        return known_target(self.config.get(section))

    @property
    def family(self) -> str:
        """The family that the estimator declares, or an empty string; earlier results do not tell it."""
        return str(self.result.get("family") or getattr(self.built("estimator"), "family", ""))


def target_name(node: Any) -> str:
    """Return the name of what a node of the configuration builds, see `short_target`; a dash if it builds nothing."""
    return short_target(str(node["_target_"])) if isinstance(node, dict) and "_target_" in node else "—"


def short_target(target: str) -> str:
    """Return the last word of a `_target_` in this package or torch, and another whole: the last words may agree."""
    return target.rpartition(".")[2] if target.startswith(("glr_lightning.", "torch.")) else target


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; a missing result.json, metrics.csv or robustness.csv is no error, a damaged one is.

    Raises:
        ConfigurationError: if a config.yaml cannot be read; the message names it.
        CheckpointError: if another file cannot be read; the message names it.
    """
    unique = sorted({folder.resolve() for folder in folders}, key=_natural)
    return [_read_run(folder, name) for folder, name in zip(unique, run_names(unique), strict=True)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return folders relative to the parent they share; long paths by their ends, if these still tell all apart."""
    parent = os.path.commonpath([folder.parent for folder in folders])
    names = [folder.relative_to(parent).as_posix() for folder in folders]
    parts = [name.split("/") for name in names]
    short = [f"{p[0]}/…/{p[-1]}" if len(n) > 60 and len(p) > 2 else n for n, p in zip(names, parts, strict=True)]
    return short if len(set(short)) == len(short) else names


def file_names(names: Iterable[str], suffix: str) -> dict[str, str]:
    """Return a different file name for each name, with signs that file systems and addresses accept."""
    taken: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._")[:80] or "run"
        numbered = (f"{plain}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
        taken[name] = next(file for file in numbered if file.lower() not in {t.lower() for t in taken.values()})
    return taken


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key by which job 10 of a sweep comes after job 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.as_posix())]


def _read_run(folder: Path, name: str) -> Run:
    config = read_config(folder)
    try:
        json.dumps(config)
    except TypeError as error:
        raise CheckpointError(f"{folder / CONFIG} holds more than plain values ({error}); it is damaged.") from None
    rows = read_rows(folder / ROBUSTNESS) if (folder / ROBUSTNESS).exists() else []
    cells = table_cells(rows, folder / ROBUSTNESS)
    return Run(name, folder, config, _read_result(folder / RESULT), read_metrics(folder / METRICS), rows, cells)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
    """Read metrics.csv by epoch, merging the rows that it has for the training and the validation of an epoch.

    Raises:
        CheckpointError: if the file is there and malformed.
    """
    merged: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if not reader.fieldnames:
                raise ValueError("it is empty")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} has not as many cells as the header")
                if row["epoch"] == "":  # of a callback that logs by step, such as Lightning's LearningRateMonitor
                    continue
                values = {key: float(value) for key, value in row.items() if value}
                merged.setdefault(int(values.pop("epoch")), {}).update(values)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). Remove it to report without learning curves.") from None
    return dict(sorted(merged.items()))
