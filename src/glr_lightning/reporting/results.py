"""Runs compared: which of them are one experiment, and in what they differ.

Runs that differ in their seed alone are one experiment.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from glr_lightning.reporting.columns import KIND_ORDER, Column
from glr_lightning.reporting.runs import Run, short_target

# Settings that are no part of what is compared, and those that the table of runs shows in columns of their own.
UNCOMPARED = {"experiment", "run_dir", "resume", "trusted", "progress", "seed", "data.seed"}
UNCOMPARED |= {"trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.deterministic"}
UNCOMPARED |= {"data.root", "data.download", "data.cache"}
UNCOMPARED |= {"data", "network", "activation", "loss", "estimator", "estimator.copies"}
UNCOMPARED |= {"callbacks.gradient_quality", "scheduler.T_max"}  # which follows from the epochs
SECTIONS = ("data", "network", "activation", "loss", "estimator")
LONGEST_LABEL = 60
"""Characters of a label; more do not fit above a figure."""


@dataclass(frozen=True)
class Comparison:
    """What a report is about.

    Attributes:
        runs: all runs.
        experiments: the same by experiment, under its label.
        columns: the threats that any of them was evaluated under.
    """

    runs: Sequence[Run]
    experiments: Mapping[str, Sequence[Run]]
    columns: Sequence[Column]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Comparison":
        """Group runs by experiment."""
        return cls(runs, experiments(runs), all_columns(runs))

    @property
    def seeds(self) -> dict[str, list[Run]]:
        """The experiments with one run of each seed, see `one_of_each_seed`."""
        return {label: one_of_each_seed(runs) for label, runs in self.experiments.items()}


def all_columns(runs: Iterable[Run]) -> list[Column]:
    """Return every column of any run, in the order of KIND_ORDER, then of appearance."""
    found = dict.fromkeys(column for run in runs for column in run.cells)
    return sorted(found, key=lambda column: KIND_ORDER.get(column.kind, 1))


def one_of_each_seed(group: Sequence[Run]) -> list[Run]:
    """Return the first run of each seed of an experiment: repetitions would only seem to narrow an interval."""
    single = {run.seeds: run for run in reversed(group)}
    return [run for run in group if single[run.seeds] is run]


def accuracy_interval(run: Run) -> tuple[float, float] | None:
    """Return the Wilson interval of the test accuracy, if the clean row has the same accuracy, else None."""
    for column, cell in run.cells.items():
        if column.is_clean and run.result and abs(cell.accuracy - run.result["test_accuracy"]) < 1e-6:
            return cell.interval
    return None


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of n >= 2 independent values and half its 95 % interval, t_{n-1, 0.975} s / sqrt(n)."""
    from scipy.special import stdtrit  # here, since a single run needs no quantile

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return fmean(values), half


def differences(runs: Sequence[Run]) -> dict[str, str]:
    """Return, by the name of a run, its settings that are not the same in all runs, such as `sigma=0.5`.

    Callbacks that only some of the runs have are among them.
    """
    settings = {run.name: _settings(run.config) for run in runs}
    values: dict[str, set[str]] = {}
    for chosen in settings.values():
        for key, value in chosen.items():
            values.setdefault(key, set()).add(value)
    differs = {key for key, found in values.items() if len(found) > 1}
    differs |= {key for key in values if key.startswith("callbacks.") and any(key not in s for s in settings.values())}
    return {
        name: ", ".join(f"{key.removeprefix('callbacks.')}={value}" for key, value in chosen.items() if key in differs)
        for name, chosen in settings.items()
    }


def experiments(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by experiment.

    The label of a single run is its name. That of several is their settings, or, where those take too many words, the
    folder that they alone share.
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
    """Return, by run, the name of its experiment and how it differs from others with that name."""
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
    """Return the folder that holds these runs and no others, as the names have it, or an empty string."""
    shared = os.path.commonpath([Path(run.name).parent for run in group])
    inside = [run for run in runs if Path(run.name).is_relative_to(shared)]
    return Path(shared).as_posix() if shared and len(inside) == len(group) else ""


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    flat = dict(_flat(config))
    with_options = {key.rpartition(".")[0] for key in flat if key.startswith("callbacks.")}  # these say enough
    return {
        key.removeprefix("estimator."): value
        for key, value in flat.items()
        if key not in UNCOMPARED
        and key.split(".")[0] != "logger"
        and key not in with_options
        and (key.startswith("estimator.") or flat.get(key.partition(".")[2]) != value)  # data.batch_size, batch_size
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if key == "_target_":
            yield prefix, short_target(str(value))
        elif isinstance(value, dict):
            yield from _flat(value, path)
        elif key != "_partial_":
            yield path, value if isinstance(value, str) else json.dumps(value)
