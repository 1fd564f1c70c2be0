"""The table of experiments: means and intervals over seeds."""

from collections.abc import Mapping, Sequence

from glr_lightning.reporting.columns import Column
from glr_lightning.reporting.results import one_of_each_seed
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.tables.cells import (
    headline,
    mark,
    mean_of,
    numbered,
    readable,
    remarks_on,
    seeds,
    upright,
    warning,
)
from glr_lightning.reporting.tables.table import Table


def seeds_tables(groups: Mapping[str, Sequence[Run]], columns: Sequence[Column]) -> list[Table]:
    """Return one table or several, as for the runs; none without an experiment of at least two seeds."""
    return [upright(table) for part in readable(columns) if (table := seeds_table(groups, part)).rows]


def seeds_table(groups: Mapping[str, Sequence[Run]], columns: Sequence[Column]) -> Table:
    """Return means and 95 % t-intervals over the seeds of each experiment that has at least two."""
    rows, notes, footnotes, averaged = [], [], dict[str, int](), []
    for label, group in groups.items():
        chosen = one_of_each_seed(group)
        if len(chosen) < 2:
            continue
        averaged += chosen
        left_out = [run.name for run in group if run not in chosen]
        if left_out:
            notes.append(f"{label}: {', '.join(left_out)} left out, for another run has the same seed and settings.")
        tests = [run.result["test_accuracy"] for run in chosen if run.result]
        cells = []
        for column in columns:
            found = [run.cells[column] for run in chosen if column in run.cells]
            cells.append(mean_of([cell.accuracy for cell in found], len(chosen)) + mark(warning(found), footnotes))
        rows.append([label, seeds(chosen), mean_of(tests, len(chosen)), *cells])
    notes = numbered(footnotes) + remarks_on(averaged, columns) + notes
    notes.append(
        "Mean ± half the 95 % t-interval over the seeds; in brackets, of how many, where not of all. The seeds share "
        "their test images, so what the choice of images adds is not in it: see the intervals above."
    )
    heading = [["experiment"], ["seeds"], ["test accuracy"], *(column.words for column in columns)]
    return Table(heading, rows, notes, text_columns=2, headline=headline(columns, before=3))
