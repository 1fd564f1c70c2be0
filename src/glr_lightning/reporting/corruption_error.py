"""The mean corruption error (mCE): the errors of a network under corruptions relative to those of a baseline.

With E_s,c the error of a run under corruption c at severity s, and B_s,c that of the baseline, both in [0, 1],

    mCE          = 100 mean_c ( sum_s E_s,c / sum_s B_s,c )
    relative mCE = 100 mean_c ( sum_s (E_s,c - E_clean) / sum_s (B_s,c - B_clean) )

over the corruptions and severities that both were evaluated under; 100 is as bad as the baseline, less is better.
Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
2019, where the baseline is AlexNet. For several seeds of a baseline their mean error is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from glr_lightning.errors import ConfigurationError
from glr_lightning.reporting.columns import Column
from glr_lightning.reporting.results import one_of_each_seed
from glr_lightning.reporting.runs import Run

Errors = dict[str, dict[float, float]]
"""Errors by corruption and severity."""


@dataclass(frozen=True)
class CorruptionError:
    """The mean corruption error of a run.

    Attributes:
        mean: the mCE in %; None if it does not exist.
        relative: the relative mCE in %; None if it does not exist.
        corruptions: what it is the mean over.
        notes: what was left out and why.
    """

    mean: float | None
    relative: float | None
    corruptions: tuple[str, ...]
    notes: tuple[str, ...]


def find_baseline(name: str, groups: Mapping[str, Sequence[Run]]) -> list[Run]:
    """Return the runs with a name or with the label of an experiment. Raises ConfigurationError if there are none."""
    named = {run.name: [run] for runs in groups.values() for run in runs}
    found = named.get(name) or groups.get(name)
    if not found:
        there = ", ".join(dict.fromkeys([*named, *groups]))
        raise ConfigurationError(
            f"mce_baseline={name} is none of the runs or experiments: {there}. Name one of these.",
            option="mce_baseline",
        )
    return one_of_each_seed(found)


def corruption_error(run: Run, baseline: Sequence[Run]) -> CorruptionError:
    """Return the mCE of a run relative to one or several seeds; what cannot be computed is None, with a note."""
    own, other = _errors([run]), _errors(baseline)
    clean, other_clean = _clean_error([run]), _clean_error(baseline)
    ratios, relative, notes = [], [], []
    shared = {
        corruption: [severity for severity in severities if severity in other.get(corruption, {})]
        for corruption, severities in own.items()
    }
    shared = {corruption: severities for corruption, severities in shared.items() if severities}
    for corruption, severities in shared.items():
        above = sum(own[corruption][s] for s in severities)
        below = sum(other[corruption][s] for s in severities)
        if below > 0:
            ratios.append(above / below)
        else:
            notes.append(f"{corruption} left out: the baseline makes no error under it")
        if clean is None or other_clean is None:
            continue
        extra = below - len(severities) * other_clean
        if extra > 1e-12:
            relative.append((above - len(severities) * clean) / extra)
        else:
            notes.append(f"{corruption} left out of the relative mCE: it costs the baseline nothing")
    return CorruptionError(_mean(ratios), _mean(relative), tuple(shared), tuple(notes))


def counts(column: Column) -> bool:
    """Whether a threat is a corruption with severities, of the noise-free network."""
    return column.kind == "corruption" and not column.noisy_passes and bool(column.levels)


def _errors(runs: Sequence[Run]) -> Errors:
    """Return the mean errors over the runs that have them."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for column, cell in run.cells.items():
            name = f"{column.threat} ({column.preset})" if column.preset else column.threat
            for row in cell.rows if counts(column) else ():
                found.setdefault(name, {}).setdefault(row.level or 0.0, []).append(1 - row.accuracy)
    return {name: {level: fmean(values) for level, values in levels.items()} for name, levels in found.items()}


def _clean_error(runs: Sequence[Run]) -> float | None:
    found = [1 - cell.accuracy for run in runs for column, cell in run.cells.items() if column.is_clean]
    return fmean(found) if found else None


def _mean(shares: Sequence[float]) -> float | None:
    return 100 * fmean(shares) if shares else None
