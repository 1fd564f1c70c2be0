"""The table of mean corruption errors."""

from collections.abc import Sequence

from glr_lightning.reporting.corruption_error import corruption_error, counts
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.tables.cells import mark, numbered, warning
from glr_lightning.reporting.tables.table import NONE, Table


def corruption_error_table(runs: Sequence[Run], baseline: Sequence[Run], name: str) -> Table:
    """Return a table with a row for each run that was evaluated under corruptions.

    Args:
        runs: the runs.
        baseline: the seeds of the baseline.
        name: of the baseline.
    """
    footnotes: dict[str, int] = {}
    rows, over, remarks = [], {}, []
    for run in runs:
        found = corruption_error(run, baseline)
        cells = [cell for each in (run, *baseline) for column, cell in each.cells.items() if counts(column)]
        if found.corruptions:
            over[run.name] = found.corruptions
            note = "; ".join(filter(None, [*found.notes, warning(cells)]))
            remarks += [f"{run.name}: {remark}." for cell in cells for remark in cell.remarks]
            rows.append([run.name, _text(found.mean) + mark(note, footnotes), _text(found.relative)])
    notes = [*numbered(footnotes), *dict.fromkeys(remarks)]
    for corruptions in dict.fromkeys(over.values()):
        names = [run for run, own in over.items() if own == corruptions]
        of = "" if len(names) == len(over) else f"{', '.join(names)}: "
        notes.append(f"{of}over {', '.join(corruptions)}, at the severities that both have.")
    notes.append(
        f"Relative to {name}, which has 100; less is better (Hendrycks & Dietterich, ICLR 2019). The relative mCE "
        "counts only what is lost to the clean images."
    )
    return Table([["run"], ["mCE / %"], ["relative mCE / %"]], rows, notes)


def _text(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"
