"""The figures of robustness: accuracy by the budget of attacks, by corruption and severity, and certified accuracy.

Seeds of an experiment are averaged. A hollow marker, or a † in a cell, is a number that must not be read as robustness
in at least one of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glr_lightning.evaluation.certification import NORMS
from glr_lightning.evaluation.worst_case import WORST_CASE
from glr_lightning.reporting.figures import (
    PANEL,
    STYLE,
    Experiments,
    Look,
    handle,
    legend_above,
    nth_look,
    panel_of,
    plain,
    png,
    wrapped,
)
from glr_lightning.reporting.results import Cell, Column, Run
from glr_lightning.reporting.tables import one_of_each_seed

CAPTIONS = {
    "epsilon.png": "Accuracy by the budget epsilon of each attack, from the clean images at 0 on, the mean over seeds; "
    "black: the worst case over all attacks",
    "corruptions.png": "Accuracy / % by corruption and severity, the mean over seeds",
    "certified.png": "Certified accuracy: the share of images that no change within the radius can make wrong, the "
    "mean over seeds. W is each network's own first layer, so radii measured behind it are no comparison of networks",
}
WORST = Look("#000000", "o", "-")
MAP = "viridis"
Points = Mapping[float, "Point"]


@dataclass(frozen=True)
class Point:
    """The mean over seeds, in %, and is it marked?"""

    accuracy: float
    marked: bool


def draw_robustness(experiments: Experiments) -> dict[str, bytes]:
    """The figures there are data for, by file name."""
    experiments = {label: one_of_each_seed(runs) for label, runs in experiments.items()}
    drawn = {"epsilon.png": accuracy_by_epsilon, "corruptions.png": corruption_maps, "certified.png": certified}
    with matplotlib.style.context(["default", STYLE]):
        figures = {name: figure(experiments) for name, figure in drawn.items()}
        return {name: png(figure) for name, figure in figures.items() if figure is not None}


def accuracy_by_epsilon(experiments: Experiments) -> Figure | None:
    """A panel for each experiment and norm, a line for each attack and source of gradients. None without any."""
    panels: list[tuple[str, dict[Column, Points]]] = []
    for label, runs in experiments.items():
        curves = _curves(runs, ("attack", WORST_CASE))
        for norm in dict.fromkeys(way.norm for way in curves):
            own = {way: _from_clean(way, points, runs) for way, points in curves.items() if way.norm == norm}
            panels.append((": ".join(filter(None, [label, norm])), own))
    attacks = dict.fromkeys(way.way for _, curves in panels for way in curves if way.kind != WORST_CASE)
    looks = {words: _not_black(nth_look(place)) for place, words in enumerate(attacks)}
    if not panels:
        return None
    figure, grid = _grid(len(panels))
    for axes, (title, curves) in zip(grid, panels, strict=False):
        for way, points in sorted(curves.items(), key=lambda item: item[0].kind != WORST_CASE):  # below
            worst = way.kind == WORST_CASE
            _curve(axes, points, WORST if worst else looks[way.way], width=4.5 if worst else 1.3)
        axes.set(title=wrapped(title, 34), xlabel="epsilon", ylim=(-2, 102))
    worst = any(way.kind == WORST_CASE for _, curves in panels for way in curves)
    _finish(figure, grid, len(panels), looks | ({"worst case": WORST} if worst else {}), _marked(c for _, c in panels))
    return figure


def corruption_maps(experiments: Experiments) -> Figure | None:
    """A panel for each experiment: a row a corruption, a column a severity. None without any."""
    panels = {label: found for label, runs in experiments.items() if (found := _curves(runs, ("corruption",)))}
    if not panels:
        return None
    severities = sorted({level for found in panels.values() for points in found.values() for level in points})
    rows = list(dict.fromkeys(way for found in panels.values() for way in found))
    figure, grid = _grid(len(panels), height=max(2.4, 0.9 + 0.3 * len(rows)), width=2.6 + 0.45 * len(severities))
    for axes, (title, found) in zip(grid, panels.items(), strict=False):
        values = [[_accuracy(found.get(way, {}), level) for level in severities] for way in rows]
        axes.imshow(values, cmap=MAP, vmin=0, vmax=100, aspect="auto")
        for y, way in enumerate(rows):
            for x, level in enumerate(severities):
                _write(axes, x, y, found.get(way, {}).get(level))
        axes.set_xticks(range(len(severities)), [f"{level:g}" for level in severities])
        names = [wrapped(", ".join(panel_of(way)), 30) for way in rows]
        axes.set_yticks(range(len(rows)), names if _is_left(axes) else [], fontsize=8)
        axes.set(title=wrapped(title, 34), xlabel="severity")
        axes.grid(visible=False)
        axes.tick_params(length=0)
    _remove(grid, len(panels))
    return figure


def certified(experiments: Experiments) -> Figure | None:
    """A panel for each norm of the change (of the image, or of the first pre-activation), a colour for each experiment,
    a kind of line for each certificate. None without any."""
    curves = {label: _curves(runs, ("certificate",)) for label, runs in experiments.items()}
    norms = list(dict.fromkeys(_measure(way) for ways in curves.values() for way in ways))
    if not norms:
        return None
    names = list(dict.fromkeys(way.way for ways in curves.values() for way in ways))
    looks: dict[str, Look] = {}
    figure, grid = _grid(len(norms))
    for place, (label, ways) in enumerate(curves.items()):
        for way, points in ways.items():
            look = nth_look(place)._replace(line=("-", "--", ":", "-.")[names.index(way.way) % 4])
            looks[f"{label}: {way.way}" if len(names) > 1 else label] = look
            _curve(grid[norms.index(_measure(way))], points, look)
    for axes, norm in zip(grid, norms, strict=False):
        axes.set(title=plain(norm), xlabel="radius", ylim=(-2, 102))
    _finish(figure, grid, len(norms), looks, _marked(curves.values()), "certified accuracy / %")
    return figure


def _measure(certificate: Column) -> str:
    """What its radius bounds: ||W d||_2 and ||d||_2 are not to be drawn on one axis."""
    return NORMS.get(certificate.preset, certificate.preset or certificate.norm)


def _curves(runs: Sequence[Run], kinds: Sequence[str]) -> dict[Column, Points]:
    """Of some kinds of threats with levels, accuracies by level; the key is the column without its levels."""
    found: dict[Column, dict[float, list[Cell]]] = {}
    for run in runs:
        for column, cell in run.cells.items():
            for row in cell.rows if column.kind in kinds and column.levels else ():
                single = Cell((row,), cell.images)
                found.setdefault(replace(column, levels=()), {}).setdefault(row.level or 0.0, []).append(single)
    return {way: {level: _point(cells) for level, cells in sorted(levels.items())} for way, levels in found.items()}


def _point(cells: Sequence[Cell]) -> Point:
    return Point(100 * fmean(cell.accuracy for cell in cells), any(cell.warnings for cell in cells))


def _not_black(look: Look) -> Look:
    """Black is the worst case's."""
    return look._replace(colour="#7f7f7f") if look.colour == WORST.colour else look


def _from_clean(way: Column, points: Points, runs: Sequence[Run]) -> Points:
    """With the clean images, judged the same way, as epsilon 0."""
    clean = [
        cell
        for run in runs
        for column, cell in run.cells.items()
        if column.kind == "clean" and column.noisy_passes == way.noisy_passes
    ]
    return {0.0: _point(clean), **points} if clean else points


def _marked(panels: Iterable[Mapping[Column, Points]]) -> bool:
    return any(point.marked for curves in panels for points in curves.values() for point in points.values())


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


def _curve(axes: Axes, points: Points, look: Look, width: float = 1.5) -> None:
    axes.plot(list(points), [p.accuracy for p in points.values()], color=look.colour, ls=look.line, lw=width)
    for level, point in points.items():
        face = "white" if point.marked else look.colour
        axes.plot(level, point.accuracy, color=look.colour, marker=look.marker, markerfacecolor=face, linestyle="none")


def _grid(panels: int, height: float = PANEL, width: float = 3.7) -> tuple[Figure, list[Axes]]:
    across = 2 if panels == 4 else min(3, panels)
    down = -(-panels // across)
    figure = Figure(figsize=(max(4.5, width * across), height * down))
    return figure, list(figure.subplots(down, across, squeeze=False).flat)


def _finish(
    figure: Figure,
    grid: Sequence[Axes],
    panels: int,
    looks: Mapping[str, Look],
    marked: bool,
    ylabel: str = "accuracy / %",
) -> None:
    for axes in grid:
        if _is_left(axes):
            axes.set_ylabel(ylabel)
    _remove(grid, panels)
    handles, labels = [handle(look) for look in looks.values()], list(looks)
    if marked:
        handles.append(handle(Look("#555555", "o", "none"), hollow=True))
        labels.append("hollow: marked †")
    legend_above(figure, handles, labels)


def _is_left(axes: Axes) -> bool:
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def _remove(grid: Sequence[Axes], panels: int) -> None:
    for axes in grid[panels:]:
        axes.remove()
