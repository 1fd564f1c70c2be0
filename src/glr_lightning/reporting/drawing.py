"""What several figures draw: experiments with their looks, points with intervals, curves that are means over seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glr_lightning.reporting.columns import Cell, Column
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.style import Look, handle, is_left, legend_above, nth_look, remove_spare


class Shown(NamedTuple):
    """A run with the label and the look of its experiment."""

    label: str
    look: Look
    run: Run


def shown_runs(comparison: Comparison) -> Iterator[Shown]:
    """Yield every run; seeds of an experiment share its look."""
    for place, (label, runs) in enumerate(comparison.experiments.items()):
        look = nth_look(place)
        for run in runs:
            yield Shown(label, look, run)


def line(axes: Axes, x: Sequence[float], y: Sequence[float], look: Look, width: float = 1.5) -> None:
    """Draw a line, with markers if it has few points."""
    marker = look.marker if len(x) <= 30 else ""
    axes.plot(x, y, color=look.colour, linestyle=look.line, linewidth=width, marker=marker, markersize=4)


def around(low: float, middle: float, high: float) -> list[list[float]]:
    """Return an interval as error bars."""
    return [[max(0.0, middle - low)], [max(0.0, high - middle)]]


def legend(figure: Figure, shown: Sequence[Shown], cells: Sequence[Cell] = ()) -> None:
    """Name the experiments; hollow markers are explained if a cell is marked."""
    looks = {label: look for label, look, _ in shown}
    marked = any(cell.warnings for cell in cells)
    legend_above(figure, [handle(look) for look in looks.values()], list(looks), marked)


def panel_of(column: Column) -> tuple[str, ...]:
    """Return the heading of a threat without its levels."""
    return tuple(replace(column, levels=()).words)


@dataclass(frozen=True)
class Point:
    """The mean accuracy over seeds in %, and whether one of them is marked."""

    accuracy: float
    marked: bool

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "Point":
        """Average the cells of several seeds."""
        return cls(100 * fmean(cell.accuracy for cell in cells), any(cell.warnings for cell in cells))


Points = Mapping[float, Point]
"""Points by level."""


def mean_curves(runs: Sequence[Run], *kinds: str) -> dict[Column, Points]:
    """Return the means over runs by level, for threats of some kinds that have levels; keys are without levels."""
    found: dict[Column, dict[float, list[Cell]]] = {}
    for run in runs:
        for column, cell in run.cells.items():
            for row in cell.rows if column.kind in kinds and column.levels else ():
                single = Cell((row,), cell.images)
                found.setdefault(replace(column, levels=()), {}).setdefault(row.level or 0.0, []).append(single)
    return {way: {level: Point.of(cells) for level, cells in sorted(levels.items())} for way, levels in found.items()}


def curve(axes: Axes, points: Points, look: Look, width: float = 1.5) -> None:
    """Draw accuracy against level; marked points are hollow."""
    axes.plot(list(points), [p.accuracy for p in points.values()], color=look.colour, ls=look.line, lw=width)
    for level, point in points.items():
        face = "white" if point.marked else look.colour
        axes.plot(level, point.accuracy, color=look.colour, marker=look.marker, markerfacecolor=face, linestyle="none")


def finish(
    figure: Figure,
    grid: Sequence[Axes],
    panels: Sequence[Iterable[Points]],
    looks: Mapping[str, Look],
    ylabel: str = "accuracy / %",
) -> None:
    """Label the axes, remove those beyond the panels, and add the legend.

    Args:
        figure: the figure.
        grid: all its axes.
        panels: the curves that each panel shows.
        looks: the legend.
        ylabel: of the axes at the left.
    """
    for axes in grid:
        if is_left(axes):
            axes.set_ylabel(ylabel)
    remove_spare(grid, len(panels))
    marked = any(point.marked for curves in panels for points in curves for point in points.values())
    legend_above(figure, [handle(look) for look in looks.values()], list(looks), marked)
