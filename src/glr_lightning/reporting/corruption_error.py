"""The mean corruption error: what corruptions cost a network beside what they cost another one.

With E_s,c the error of a run under corruption c at severity s, and B_s,c that of the baseline, both in [0, 1],

    mCE          = 100 mean_c ( sum_s E_s,c / sum_s B_s,c )
    relative mCE = 100 mean_c ( sum_s (E_s,c - E_clean) / sum_s (B_s,c - B_clean) )

over the corruptions and severities that both were evaluated under; 100 is as bad as the baseline, less is better.
Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
2019, where the baseline is AlexNet. Several seeds of a baseline stand for their mean error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from glr_lightning.errors import ConfigurationError
from glr_lightning.reporting.results import Column, Run
from glr_lightning.reporting.tables import NONE, Table, mark, numbered, one_of_each_seed, warning

Errors = dict[str, dict[float, float]]  # by corruption and severity


@dataclass(frozen=True)
class CorruptionError:
    """In %; None where it does not exist. notes: what was left out and why."""

    mean: float | None
    relative: float | None
    corruptions: tuple[str, ...]
    notes: tuple[str, ...]


def find_baseline(name: str, groups: Mapping[str, Sequence[Run]]) -> list[Run]:
    """The runs that a name, or the label of an experiment, stands for. Raises ConfigurationError if there are none."""
    named = {run.name: [run] for runs in groups.values() for run in runs}
    found = named.get(name) or groups.get(name)
    if not found:
        there = ", ".join(dict.fromkeys([*named, *groups]))
        raise ConfigurationError(f"mce_baseline={name} is none of the runs or experiments: {there}. Name one of these.")
    return one_of_each_seed(found)


def corruption_error(run: Run, baseline: Sequence[Run]) -> CorruptionError:
    """The mCE of a run relative to one or several seeds. What cannot be computed is None, and the notes say why."""
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


def corruption_error_table(runs: Sequence[Run], baseline: Sequence[Run], name: str) -> Table:
    """A row for each run that was evaluated under corruptions."""
    footnotes: dict[str, int] = {}
    rows, counts, remarks = [], {}, []
    for run in runs:
        found = corruption_error(run, baseline)
        cells = [cell for each in (run, *baseline) for column, cell in each.cells.items() if _counts(column)]
        if found.corruptions:
            counts[run.name] = found.corruptions
            note = "; ".join(filter(None, [*found.notes, warning(cells)]))
            remarks += [f"{run.name}: {remark}." for cell in cells for remark in cell.remarks]
            rows.append([run.name, _text(found.mean) + mark(note, footnotes), _text(found.relative)])
    notes = [*numbered(footnotes), *dict.fromkeys(remarks)]
    for corruptions in dict.fromkeys(counts.values()):
        names = [run for run, own in counts.items() if own == corruptions]
        of = "" if len(names) == len(counts) else f"{', '.join(names)}: "
        notes.append(f"{of}over {', '.join(corruptions)}, at the severities that both have.")
    notes.append(
        f"Relative to {name}, which has 100; less is better (Hendrycks & Dietterich, ICLR 2019). The relative mCE "
        "counts only what is lost to the clean images."
    )
    return Table([["run"], ["mCE / %"], ["relative mCE / %"]], rows, notes)


def _counts(column: Column) -> bool:
    return column.kind == "corruption" and not column.noisy_passes and bool(column.levels)


def _errors(runs: Sequence[Run]) -> Errors:
    """The mean over the runs that have it."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for column, cell in run.cells.items():
            name = f"{column.threat} ({column.preset})" if column.preset else column.threat
            for row in cell.rows if _counts(column) else ():
                found.setdefault(name, {}).setdefault(row.level or 0.0, []).append(1 - row.accuracy)
    return {name: {level: fmean(values) for level, values in levels.items()} for name, levels in found.items()}


def _clean_error(runs: Sequence[Run]) -> float | None:
    found = [1 - cell.accuracy for run in runs for column, cell in run.cells.items() if column.is_clean]
    return fmean(found) if found else None


def _mean(shares: Sequence[float]) -> float | None:
    return 100 * fmean(shares) if shares else None


def _text(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"
