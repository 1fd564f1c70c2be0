"""The table of accuracies under threats, run by run."""

from collections.abc import Sequence

from glr_lightning.reporting.columns import Cell, Column
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.tables.cells import headline, mark, numbered, percent, readable, remarks_on, upright
from glr_lightning.reporting.tables.table import NONE, Table


def robustness_tables(runs: Sequence[Run], columns: Sequence[Column]) -> list[Table]:
    """Return one table if it is narrow enough to read, else one for each kind of threat, beside the clean images.

    The kinds are worst cases, attacks, corruptions and certificates; tables that are still too wide are transposed.
    """
    return [upright(robustness_table(runs, part)) for part in readable(columns)]


def robustness_table(runs: Sequence[Run], columns: Sequence[Column]) -> Table:
    """Return a table with a row for each run and a column for each threat; marked numbers carry † and a footnote."""
    evaluated = [run for run in runs if run.cells]
    footnotes: dict[str, int] = {}
    rows = []
    for run in evaluated:
        cells = [_cell(run.cells.get(column), footnotes) for column in columns]
        images = sorted({row.n for row in run.rows})
        rows.append([run.name, *cells, ", ".join(map(str, images))])
    intervals = [cell.interval for run in evaluated for cell in run.cells.values()]
    half = max((100 * (high - low) / 2 for low, high in intervals), default=0.0)
    notes = numbered(footnotes)
    notes += remarks_on(evaluated, columns)
    notes.append(f"95 % Wilson intervals are at most {half:.2f} either way; results.csv has each.")
    if any(NONE in row for row in rows):
        notes.append(f"{NONE} is not evaluated.")
    if len(evaluated) < len(runs):
        notes.append(not_evaluated(runs))
    heading = [["run"], *(column.words for column in columns), ["images"]]
    return Table(heading, rows, notes, headline=headline(columns, before=1))


def _cell(cell: Cell | None, footnotes: dict[str, int]) -> str:
    return NONE if cell is None else percent(cell.accuracy) + mark("; ".join(cell.warnings), footnotes)


def not_evaluated(runs: Sequence[Run]) -> str:
    """Name the runs without an evaluation, and how to evaluate them."""
    names = [run.name for run in runs if not run.rows]
    words = ", ".join(names) if len(names) <= 6 else f"{len(names)} runs, {names[0]} to {names[-1]}"
    return f"Not evaluated yet: {words}. To do so: glr-evaluate run=FOLDER."
