"""The figure of a diagnosis: relative variance against time."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from glr_lightning.diagnosis.finding import DECLARED, Finding, layer_names
from glr_lightning.reporting.style import PANEL, STYLE, Look, handle, legend_above, nth_look, png


def variance_against_time(findings: Sequence[Finding]) -> bytes:
    """Draw relative variance against milliseconds, both logarithmic, in a panel for each layer, as a PNG.

    A line is an estimator; its points are the numbers of copies, the larger the more. Averaging moves along the grey
    diagonals of equal variance x time, of which a lower one is better. An estimator without variance has no point, and
    a panel without points says so.
    """
    layers = layer_names(findings)
    labels = list(dict.fromkeys(f.estimator for f in findings if f.layer in layers))
    looks = {label: nth_look(place)._replace(line="-") for place, label in enumerate(labels)}
    with matplotlib.style.context(["default", STYLE]):
        across = min(3, max(1, len(layers)))
        down = -(-max(1, len(layers)) // across)
        figure = Figure(figsize=(max(4.5, 3.9 * across), (PANEL + 0.3) * down))
        grid = figure.subplots(down, across, squeeze=False)
        for axes, layer in zip(grid.flat, layers, strict=False):
            own = [f for f in findings if f.layer == layer and f.relative_variance and f.milliseconds]
            for label, look in looks.items():
                points = sorted((f for f in own if f.estimator == label), key=lambda f: f.copies or 0)
                x, y = [f.milliseconds or 0.0 for f in points], [f.relative_variance or 0.0 for f in points]
                axes.plot(x, y, color=look.colour, linewidth=1.2)
                sizes = [22.0 + 16 * place for place in range(len(points))]
                biased = any(f.outcome == DECLARED for f in points)
                face = "white" if biased else look.colour
                axes.scatter(x, y, sizes, marker=look.marker, facecolor=face, edgecolor=look.colour, zorder=3)
            axes.set_title(layer or "network")
            if not own:  # matplotlib refuses a logarithmic axis without anything on it
                axes.set(xticks=[], yticks=[])
                axes.text(0.5, 0.5, "no variance to show", transform=axes.transAxes, ha="center", va="center")
                continue
            axes.set(xscale="log", yscale="log", xlabel="milliseconds of one estimate")
            axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
            axes.xaxis.set_major_formatter("{x:g}")
            _iso_lines(axes)
        for axes in list(grid.flat)[len(layers) :]:
            axes.remove()
        for axes in grid[:, 0]:
            axes.set_ylabel("relative variance of one estimate")
        biased = any(f.outcome == DECLARED for f in findings)
        handles = [handle(look) for look in looks.values()]
        drawn = {f.estimator for f in findings if f.relative_variance}
        names = [label if label in drawn else f"{label} (no variance)" for label in labels]
        if biased:
            handles.append(handle(Look("#555555", "o", "none"), hollow=True))
            names.append("hollow: biased (declared)")
        if drawn:
            handles.append(handle(Look("#bdbdbd", "", "--")))
            names.append("equal variance × ms")
        legend_above(figure, handles, names)
        return png(figure)


def _iso_lines(axes: Axes) -> None:
    """Equal variance x time, a diagonal for each power of ten, labelled at the left or lower edge of the panel."""
    axes.margins(0.12)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=(left, right), ylim=(low, high))
    for power in range(math.ceil(math.log10(left * low)), math.floor(math.log10(right * high)) + 1):
        product = 10.0**power
        axes.plot([left, right], [product / left, product / right], color="#bdbdbd", lw=0.8, ls="--", zorder=1)
        x = max(left, product / high)  # where the line enters the panel
        across, up = math.log(x / left) / math.log(right / left), math.log(product / x / low) / math.log(high / low)
        if across < 0.85 and up > 0.08:  # else the words would be cut
            at: dict[str, Any] = {"color": "#8a8a8a", "fontsize": 7, "va": "top", "ha": "left", "zorder": 2}
            axes.text(
                x, product / x, f" {product:g}", **at, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            )
