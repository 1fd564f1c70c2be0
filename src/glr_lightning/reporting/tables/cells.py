"""The text of cells: percentages, means over seeds, footnotes and remarks."""

from collections.abc import Mapping, Sequence

from glr_lightning.evaluation.worst_case import WORST_CASE
from glr_lightning.reporting.columns import Cell, Column
from glr_lightning.reporting.results import t_interval
from glr_lightning.reporting.runs import Run, target_name
from glr_lightning.reporting.tables.table import NONE, Table

WIDEST = 14
"""Columns of threats in one table."""


def percent(share: float) -> str:
    """Format a share in %."""
    return f"{100 * share:.2f}"


def mean_of(values: Sequence[float], seeds: int) -> str:
    """Format the mean of values, with its interval if there are several, and their number if some of the seeds lack."""
    if not values:
        return NONE
    count = f" ({len(values)})" if len(values) < seeds else ""
    if len(values) == 1:
        return percent(values[0]) + count
    mean, half = t_interval(values)
    return f"{percent(mean)} ± {percent(half)}{count}"


def mark(note: str, footnotes: dict[str, int]) -> str:
    """Return the sign of a footnote, numbering it if it is new; an empty string without a note."""
    return f" †{footnotes.setdefault(note, len(footnotes) + 1)}" if note else ""


def numbered(footnotes: Mapping[str, int]) -> list[str]:
    """Return the footnotes in their order."""
    return [f"†{number} {note}" for note, number in footnotes.items()]


def warning(cells: Sequence[Cell]) -> str:
    """Return why a mean over seeds must not be read as robustness; an empty string if it may."""
    reasons = dict.fromkeys(reason for cell in cells for reason in cell.warnings)
    marked = sum(bool(cell.warnings) for cell in cells)
    where = f"in {marked} of {len(cells)} seeds: " if len(cells) > 1 else ""
    return f"{where}{'; '.join(reasons)}" if marked else ""


def seeds(runs: Sequence[Run]) -> str:
    """Name the seeds of runs."""
    return ", ".join(str(run.seeds[0]) for run in runs)


def estimator(run: Run) -> str:
    """Name the estimator of a run, with its number of copies and its noise if that is not Gaussian."""
    node = run.config.get("estimator")
    if not isinstance(node, dict):
        return run.target("estimator")
    copies, noise = node.get("copies"), node.get("noise")
    density = target_name(noise) if isinstance(noise, dict) else "Gaussian"
    facts = [f"K = {copies}"] * (copies is not None) + [density] * (density != "Gaussian")
    return run.target("estimator") + (f" ({', '.join(facts)})" if facts else "")


def headline(columns: Sequence[Column], before: int) -> frozenset[int]:
    """Return the places of worst cases, in a table with `before` columns before those of threats."""
    return frozenset(place + before for place, column in enumerate(columns) if column.kind == WORST_CASE)


def remarks_on(runs: Sequence[Run], columns: Sequence[Column]) -> list[str]:
    """Return what rows say of themselves without being marked, such as that an attack is a transfer attack.

    The runs are named where it is not said of all.
    """
    found: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        evaluated = [run for run in runs if column in run.cells]
        for note in dict.fromkeys(note for run in evaluated for note in run.cells[column].remarks):
            names = [run.name for run in evaluated if note in run.cells[column].remarks]
            of = "" if len(names) == len(evaluated) else f" ({', '.join(names)})"
            found.setdefault((note, of), []).append(column)
    return [f"{_names(about)}{of}: {note}." for (note, of), about in found.items()]


def _names(columns: Sequence[Column]) -> str:
    """Name threats with their levels, as in `fgsm epsilon 0.1, 0.2 (linf)`."""
    together: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        single = len(column.levels) == 1
        start = f"{column.name} {column.level_name}" if single else " ".join(column.words[:2])
        end = f" ({column.norm})" if single and column.norm else ""
        together.setdefault((start, end), []).extend(f"{level:g}" for level in column.levels if single)
    listed = {ends: ", ".join(dict.fromkeys(levels)) for ends, levels in together.items()}
    return "; ".join(f"{start} {levels}".strip() + end for (start, end), levels in listed.items())


def readable(columns: Sequence[Column]) -> list[Sequence[Column]]:
    """Split columns over tables: all in one, or by kind if they are more than WIDEST."""
    if len(columns) <= WIDEST:
        return [columns]
    clean = [column for column in columns if column.kind == "clean"]
    kinds: dict[str, list[Column]] = {WORST_CASE: []}  # the headline first, then the others in their order
    for column in columns:
        kinds.setdefault(column.kind, []).append(column)
    return [clean + part for kind, part in kinds.items() if part and kind != "clean"]


def upright(table: Table) -> Table:
    """Give each threat a row if they are more than WIDEST and than the runs: pages scroll down, not right."""
    threats = len(table.heading) - 2  # but for the names of the runs and the number of images
    return table.transposed() if threats > max(WIDEST, len(table.rows)) else table
