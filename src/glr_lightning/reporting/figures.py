"""The figures of a report, as PNG files in memory.

An experiment has a colour and a marker of its own, the same in every figure and safe for colour-blind readers
(Okabe and Ito); its seeds share them. A hollow marker is a number that must not be read as robustness.
"""

import dataclasses
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glr_lightning.evaluation.row import Row
from glr_lightning.reporting.results import Cell, Column, Run, is_marked

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, LINES = "osD^v<>", ("-", "--", ":", "-.")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "lines.markersize": 5,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
}
PANEL = 3.3  # inches, the height of a panel
MOST = 20  # threats in one figure
Experiments = Mapping[str, Sequence[Run]]


class Look(NamedTuple):
    colour: str
    marker: str
    line: str


def draw(experiments: Experiments, columns: Sequence[Column]) -> dict[str, bytes]:
    """The figures there are data for, by file name."""
    figures = {}
    with matplotlib.style.context(["default", STYLE]):  # not the reader's own style: the same data, the same file
        if any(run.metrics for _, _, run in _each(experiments)):
            figures["learning_curves.png"] = png(learning_curves(experiments))
        if any(column.kind != "certificate" for column in columns):
            figures["accuracy_per_threat.png"] = png(accuracy_per_threat(experiments, columns))
        if any(column.kind == "corruption" and column.levels for column in columns):
            figures["severity.png"] = png(severity(experiments, columns))
    return figures


def learning_curves(experiments: Experiments) -> Figure:
    """Accuracy by epoch, on the validation images or, as thin lines, the training images of a run that has no others;
    then the training loss, with a panel for each loss: values of different losses cannot be compared."""
    losses = list(dict.fromkeys(run.target("loss") for _, _, run in _each(experiments) if run.metrics))
    figure = Figure(figsize=(3.9 * (1 + len(losses)), PANEL + 0.3))
    accuracy, *panels = figure.subplots(1, 1 + len(losses))
    held_out = trained_on = False
    for _, look, run in _each(experiments):
        validated = any("val_accuracy" in values for values in run.metrics.values())
        held_out |= validated
        trained_on |= bool(run.metrics) and not validated
        key, width = ("val_accuracy", 1.5) if validated else ("train_accuracy", 0.7)
        epochs, values = _curve(run, key)
        _line(accuracy, epochs, [100 * value for value in values], look, width)
        if run.metrics:
            _line(panels[losses.index(run.target("loss"))], *_curve(run, "train_loss"), look)
    accuracy.set(title="Accuracy while training", ylabel="accuracy on validation images / %")
    if trained_on:
        both = "accuracy on validation images\n(thin: on training images) / %"
        accuracy.set_ylabel(both if held_out else "accuracy on training images / %")
    for panel, loss in zip(panels, losses, strict=True):
        panel.set(title=plain(f"Training loss: {loss}"), ylabel="mean loss per image")
    for panel in (accuracy, *panels):
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, [shown for shown in _each(experiments) if shown.run.metrics])
    return figure


def accuracy_per_threat(experiments: Experiments, columns: Sequence[Column]) -> Figure:
    """A strip of the figure for each threat, in it a line for each experiment, with a dot and its 95 % interval for
    each run. Certificates are no threats. Of more than MOST, attacks with a curve by epsilon are left out."""
    columns = [column for column in columns if column.kind != "certificate"]
    if len(columns) > MOST:
        columns = [column for column in columns if column.kind != "attack" or not column.levels]
    evaluated = [shown for shown in _each(experiments) if shown.run.cells]
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
    _legend(figure, evaluated, [cell for _, _, run in evaluated for cell in run.cells.values()])
    return figure


def severity(experiments: Experiments, columns: Sequence[Column]) -> Figure:
    """A panel for each corruption: accuracy by severity, from the clean images on, with 95 % intervals unless so
    many runs are compared that they would hide everything."""
    panels = list(dict.fromkeys(panel_of(c) for c in columns if c.kind == "corruption" and c.levels))
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(4.5, 2.6 * across + 0.6), 2.7 * down + 0.4))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    evaluated = [shown for shown in _each(experiments) if shown.run.cells]
    shown: list[Cell] = []
    for axes, panel in zip(grid.flat, panels, strict=False):
        for place, (_, look, run) in enumerate(evaluated):
            cells = [cell for c, cell in run.cells.items() if c.levels and panel_of(c) == panel]
            shift = 0.24 * ((place + 0.5) / len(evaluated) - 0.5)  # so that the intervals do not hide each other
            _severities(axes, _by_severity(run, cells), shift, look, intervals=len(evaluated) <= 8)
            shown += cells
        axes.set_title(plain("\n".join(panel)))
        axes.set(ylim=(-2, 102))
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy / %")
    _severity_ticks(grid, panels, [row.level or 0.0 for cell in shown for row in cell.rows])
    _legend(figure, evaluated, shown)
    return figure


def _severity_ticks(grid: Any, panels: Sequence[Any], levels: Sequence[float]) -> None:
    ticks = [0.0, *sorted(set(levels))]
    below = [axes for place, axes in enumerate(grid.flat) if place + grid.shape[1] >= len(panels)]
    for axes in below[: len(panels)]:
        axes.set_xlabel("severity")
        axes.set_xticks(ticks, ["clean", *(f"{level:g}" for level in ticks[1:])])
        axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()


def panel_of(column: Column) -> tuple[str, ...]:
    """The heading of a corruption without its severities."""
    return tuple(dataclasses.replace(column, levels=()).words)


def _by_severity(run: Run, cells: Sequence[Cell]) -> dict[float, Row]:
    """The rows of a corruption by severity, where the clean images, judged the same way, are severity 0."""
    rows = {row.level or 0.0: row for cell in cells for row in cell.rows}
    passes = {row.noisy_passes for row in rows.values()}
    clean = [cell.rows[0] for c, cell in run.cells.items() if c.kind == "clean" and c.noisy_passes in passes]
    return {0.0: clean[0], **rows} if clean and rows else rows


def _severities(axes: Axes, points: Mapping[float, Row], shift: float, look: Look, intervals: bool) -> None:
    places, rows = [level + shift for level in sorted(points)], [points[level] for level in sorted(points)]
    _line(axes, places, [100 * row.accuracy for row in rows], look._replace(marker=""))
    for place, row in zip(places, rows, strict=True):
        low, middle, high = (100 * share for share in (row.wilson_low, row.accuracy, row.wilson_high))
        around = _around(low, middle, high) if intervals else None
        axes.errorbar(place, middle, yerr=around, **_point(look, is_marked(row)))


def _dot(axes: Axes, y: float, cell: Cell, look: Look) -> None:
    low, high = (100 * bound for bound in cell.interval)
    middle = 100 * cell.accuracy
    axes.errorbar(middle, y, xerr=_around(low, middle, high), **_point(look, bool(cell.warnings)))


def _around(low: float, middle: float, high: float) -> list[list[float]]:
    return [[max(0.0, middle - low)], [max(0.0, high - middle)]]


def _point(look: Look, hollow: bool) -> dict[str, Any]:
    face = "white" if hollow else look.colour
    return {"color": look.colour, "marker": look.marker, "markerfacecolor": face, "elinewidth": 1.0, "capsize": 2}


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], look: Look, width: float = 1.5) -> None:
    marker = look.marker if len(x) <= 30 else ""
    axes.plot(x, y, color=look.colour, linestyle=look.line, linewidth=width, marker=marker, markersize=4)


def _curve(run: Run, key: str) -> tuple[list[float], list[float]]:
    """By epoch, counted from 1."""
    points = [(epoch + 1.0, values[key]) for epoch, values in run.metrics.items() if key in values]
    return [epoch for epoch, _ in points], [value for _, value in points]


class Shown(NamedTuple):
    label: str
    look: Look
    run: Run


def _each(experiments: Experiments) -> Iterator[Shown]:
    for place, (label, runs) in enumerate(experiments.items()):
        look = nth_look(place)
        for run in runs:
            yield Shown(label, look, run)


def nth_look(place: int) -> Look:
    turn, colour = divmod(place, len(COLOURS))
    return Look(COLOURS[colour], MARKERS[(colour + turn) % len(MARKERS)], LINES[turn % len(LINES)])


def _legend(figure: Figure, shown: Sequence[Shown], cells: Sequence[Cell] = ()) -> None:
    """Above the panels, where it covers nothing."""
    looks = {label: look for label, look, _ in shown}
    handles = [handle(look) for look in looks.values()]
    labels = list(looks)
    if any(cell.warnings for cell in cells):
        handles.append(handle(Look("#555555", "o", "none"), hollow=True))
        labels.append("hollow: marked †")
    legend_above(figure, handles, labels)


def legend_above(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    most = int(13 * figure.get_figwidth())  # characters
    labels = [wrapped(label, most - 6) for label in labels]
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    width = max((len(line) for label in labels for line in label.split("\n")), default=0) + 6
    across = max(1, min(len(labels), most // width))
    figure.set_figheight(figure.get_figheight() + 0.22 * lines * -(-len(labels) // across))
    figure.legend(handles, labels, loc="outside upper left", ncols=across)


def handle(look: Look, hollow: bool = False) -> Line2D:
    face = "white" if hollow else look.colour
    return Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, markerfacecolor=face)


def _heading(column: Column) -> str:
    first, *rest = column.words
    return plain("\n".join([first, ", ".join(rest)]) if rest else first)


def plain(text: str) -> str:
    """With no sign that would start mathematics: names come from files."""
    return text.replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    return plain(textwrap.fill(text, width))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
