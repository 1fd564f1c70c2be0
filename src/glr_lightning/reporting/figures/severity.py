"""Accuracy by severity of each corruption, run by run."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glr_lightning.evaluation.row import Row
from glr_lightning.reporting.columns import Cell, is_marked
from glr_lightning.reporting.drawing import around, legend, line, panel_of, shown_runs
from glr_lightning.reporting.figures import report_figure
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.style import Look, plain, point_style, remove_spare


@report_figure("Accuracy by severity of each corruption, of up to eight runs with 95 % Wilson intervals", place=30)
def severity(comparison: Comparison) -> Figure | None:
    """Draw a panel for each corruption: accuracy by severity, from the clean images on.

    The 95 % intervals are left out for more than eight runs, where they would hide everything.
    """
    panels = list(dict.fromkeys(panel_of(c) for c in comparison.columns if c.kind == "corruption" and c.levels))
    if not panels:
        return None
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(4.5, 2.6 * across + 0.6), 2.7 * down + 0.4))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    evaluated = [shown for shown in shown_runs(comparison) if shown.run.cells]
    drawn: list[Cell] = []
    for axes, panel in zip(grid.flat, panels, strict=False):
        for place, (_, look, run) in enumerate(evaluated):
            cells = [cell for c, cell in run.cells.items() if c.levels and panel_of(c) == panel]
            shift = 0.24 * ((place + 0.5) / len(evaluated) - 0.5)  # so that the intervals do not hide each other
            _curve(axes, by_severity(run, cells), shift, look, intervals=len(evaluated) <= 8)
            drawn += cells
        axes.set_title(plain("\n".join(panel)))
        axes.set(ylim=(-2, 102))
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy / %")
    _ticks(grid, len(panels), [row.level or 0.0 for cell in drawn for row in cell.rows])
    legend(figure, evaluated, drawn)
    return figure


def by_severity(run: Run, cells: Sequence[Cell]) -> dict[float, Row]:
    """Return the rows of a corruption by severity; the clean images, with the same noisy passes, are severity 0."""
    rows = {row.level or 0.0: row for cell in cells for row in cell.rows}
    passes = {row.noisy_passes for row in rows.values()}
    clean = [cell.rows[0] for c, cell in run.cells.items() if c.kind == "clean" and c.noisy_passes in passes]
    return {0.0: clean[0], **rows} if clean and rows else rows


def _curve(axes: Axes, points: Mapping[float, Row], shift: float, look: Look, intervals: bool) -> None:
    places, rows = [level + shift for level in sorted(points)], [points[level] for level in sorted(points)]
    line(axes, places, [100 * row.accuracy for row in rows], look._replace(marker=""))
    for place, row in zip(places, rows, strict=True):
        low, middle, high = (100 * share for share in (row.wilson_low, row.accuracy, row.wilson_high))
        interval = around(low, middle, high) if intervals else None
        axes.errorbar(place, middle, yerr=interval, **point_style(look, is_marked(row)))


def _ticks(grid: Any, panels: int, levels: Sequence[float]) -> None:
    ticks = [0.0, *sorted(set(levels))]
    lowest = [axes for place, axes in enumerate(grid.flat) if place + grid.shape[1] >= panels]
    for axes in lowest[:panels]:
        axes.set_xlabel("severity")
        axes.set_xticks(ticks, ["clean", *(f"{level:g}" for level in ticks[1:])])
        axes.tick_params(labelbottom=True)
    remove_spare(list(grid.flat), panels)
