"""The looks of figures: colours, markers, legends, PNG files in memory.

The n-th thing shown has the same colour and marker in every figure; the colours are safe for colour-blind readers
(Okabe and Ito). A hollow marker is a number that must not be read as robustness.
"""

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
PANEL = 3.3
"""The height of a panel in inches."""


class Look(NamedTuple):
    """Colour, marker and line of something shown."""

    colour: str
    marker: str
    line: str


def styled() -> AbstractContextManager[None]:
    """Return the context to draw in; the reader's own style does not apply: the same data give the same file."""
    return matplotlib.style.context(["default", STYLE])


def nth_look(place: int) -> Look:
    """Return the look of the n-th thing, counted from 0."""
    turn, colour = divmod(place, len(COLOURS))
    return Look(COLOURS[colour], MARKERS[(colour + turn) % len(MARKERS)], LINES[turn % len(LINES)])


def handle(look: Look, hollow: bool = False) -> Line2D:
    """Return the sign of a look in a legend."""
    face = "white" if hollow else look.colour
    return Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, markerfacecolor=face)


def point_style(look: Look, hollow: bool) -> dict[str, Any]:
    """Return the options of `Axes.errorbar` for a point."""
    face = "white" if hollow else look.colour
    return {"color": look.colour, "marker": look.marker, "markerfacecolor": face, "elinewidth": 1.0, "capsize": 2}


def legend_above(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str], marked: bool = False) -> None:
    """Put a legend above the panels, where it covers nothing, and explain hollow markers if there are marked ones."""
    handles, labels = list(handles), list(labels)
    if marked:
        handles.append(handle(Look("#555555", "o", "none"), hollow=True))
        labels.append("hollow: marked †")
    most = int(13 * figure.get_figwidth())  # characters
    labels = [wrapped(label, most - 6) for label in labels]
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    width = max((len(line) for label in labels for line in label.split("\n")), default=0) + 6
    across = max(1, min(len(labels), most // width))
    figure.set_figheight(figure.get_figheight() + 0.22 * lines * -(-len(labels) // across))
    figure.legend(handles, labels, loc="outside upper left", ncols=across)


def panel_grid(panels: int, height: float = PANEL, width: float = 3.7) -> tuple[Figure, list[Axes]]:
    """Return a figure with at least as many axes as there are panels, in rows of at most three."""
    across = 2 if panels == 4 else min(3, panels)
    down = -(-panels // across)
    figure = Figure(figsize=(max(4.5, width * across), height * down))
    return figure, list(figure.subplots(down, across, squeeze=False).flat)


def remove_spare(grid: Sequence[Axes], panels: int) -> None:
    """Remove the axes after the first `panels`."""
    for axes in list(grid)[panels:]:
        axes.remove()


def is_left(axes: Axes) -> bool:
    """Whether axes stand in the first column of their grid."""
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def plain(text: str) -> str:
    """Return text without signs that start mathematics: names come from files."""
    return text.replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    """Return plain text in lines of at most `width` characters."""
    return plain(textwrap.fill(text, width))


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
