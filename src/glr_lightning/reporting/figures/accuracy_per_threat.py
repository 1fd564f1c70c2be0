"""Accuracy under each threat, run by run."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glr_lightning.reporting.columns import Cell, Column
from glr_lightning.reporting.drawing import around, legend, shown_runs
from glr_lightning.reporting.figures import report_figure
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.style import Look, plain, point_style

MOST = 20
"""Threats in one figure."""


@report_figure(
    "Accuracy under each threat, with 95 % intervals; for a mean over severities these are the means of their bounds. "
    f"If there are more than {MOST} threats, attacks with an epsilon are only in the curves below",
    place=20,
)
def accuracy_per_threat(comparison: Comparison) -> Figure | None:
    """Draw a strip for each threat, in it a line for each experiment, with a dot and its interval for each run.

    Certificates are no threats. If there are more than MOST, attacks with a curve by epsilon are left out.
    """
    columns = [column for column in comparison.columns if column.kind != "certificate"]
    if not columns:
        return None
    if len(columns) > MOST:
        columns = [column for column in columns if column.kind != "attack" or not column.levels]
    evaluated = [shown for shown in shown_runs(comparison) if shown.run.cells]
    lines = list(dict.fromkeys(shown.label for shown in evaluated))
    step = 1.0 / (len(lines) + 1.5)
    figure = Figure(figsize=(8, 0.8 + len(columns) * max(0.5, 0.11 * len(lines))))
    axes = figure.subplots()
    for place, column in enumerate(columns):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="#f5f5f5", zorder=0)
        for label, look, run in evaluated:
            if column in run.cells:
                y = place + step * (lines.index(label) - (len(lines) - 1) / 2)
                _dot(axes, y, run.cells[column], look)
    axes.set(xlim=(-2, 102), ylim=(len(columns) - 0.5, -0.5), xlabel="accuracy / %")
    axes.set_yticks(range(len(columns)), [_heading(column) for column in columns])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    legend(figure, evaluated, [cell for _, _, run in evaluated for cell in run.cells.values()])
    return figure


def _dot(axes: Axes, y: float, cell: Cell, look: Look) -> None:
    low, high = (100 * bound for bound in cell.interval)
    middle = 100 * cell.accuracy
    axes.errorbar(middle, y, xerr=around(low, middle, high), **point_style(look, bool(cell.warnings)))


def _heading(column: Column) -> str:
    first, *rest = column.words
    return plain("\n".join([first, ", ".join(rest)]) if rest else first)
