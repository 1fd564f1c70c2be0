"""Accuracy by corruption and severity, as maps."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glr_lightning.reporting.drawing import Point, Points, mean_curves, panel_of
from glr_lightning.reporting.figures import report_figure
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.style import is_left, panel_grid, remove_spare, wrapped

MAP = "viridis"


@report_figure("Accuracy / % by corruption and severity, the mean over seeds", place=50)
def corruptions(comparison: Comparison) -> Figure | None:
    """Draw a panel for each experiment: a row for each corruption, a column for each severity."""
    panels = {label: found for label, runs in comparison.seeds.items() if (found := mean_curves(runs, "corruption"))}
    if not panels:
        return None
    severities = sorted({level for found in panels.values() for points in found.values() for level in points})
    rows = list(dict.fromkeys(way for found in panels.values() for way in found))
    figure, grid = panel_grid(len(panels), height=max(2.4, 0.9 + 0.3 * len(rows)), width=2.6 + 0.45 * len(severities))
    for axes, (title, found) in zip(grid, panels.items(), strict=False):
        values = [[_accuracy(found.get(way, {}), level) for level in severities] for way in rows]
        axes.imshow(values, cmap=MAP, vmin=0, vmax=100, aspect="auto")
        for y, way in enumerate(rows):
            for x, level in enumerate(severities):
                _write(axes, x, y, found.get(way, {}).get(level))
        axes.set_xticks(range(len(severities)), [f"{level:g}" for level in severities])
        names = [wrapped(", ".join(panel_of(way)), 30) for way in rows]
        axes.set_yticks(range(len(rows)), names if is_left(axes) else [], fontsize=8)
        axes.set(title=wrapped(title, 34), xlabel="severity")
        axes.grid(visible=False)
        axes.tick_params(length=0)
    remove_spare(grid, len(panels))
    return figure


def _accuracy(points: Points, level: float) -> float:
    return points[level].accuracy if level in points else float("nan")


def _write(axes: Axes, x: int, y: int, point: Point | None) -> None:
    if point is None:
        axes.text(x, y, "—", ha="center", va="center", color="#8a8a8a", fontsize=8)
        return
    red, green, blue, _ = matplotlib.colormaps[MAP](point.accuracy / 100)
    bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45  # relative luminance, ITU-R BT.709
    text = f"{point.accuracy:.1f}{'†' if point.marked else ''}"
    axes.text(x, y, text, ha="center", va="center", color="black" if bright else "white", fontsize=8)
