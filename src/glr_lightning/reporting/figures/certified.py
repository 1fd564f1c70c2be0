"""Certified accuracy by radius."""

from matplotlib.figure import Figure

from glr_lightning.evaluation.certificate import NORMS
from glr_lightning.reporting.columns import Column
from glr_lightning.reporting.drawing import curve, finish, mean_curves
from glr_lightning.reporting.figures import report_figure
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.style import LINES, Look, nth_look, panel_grid, plain


@report_figure(
    "Certified accuracy: the share of images that no change within the radius can make wrong, the mean over seeds. W "
    "is each network's own first layer, so radii measured behind it are no comparison of networks",
    place=60,
)
def certified(comparison: Comparison) -> Figure | None:
    """Draw a panel for each norm that a radius bounds: of the image, or of the first pre-activation.

    Each experiment has a colour, each certificate a kind of line.
    """
    curves = {label: mean_curves(runs, "certificate") for label, runs in comparison.seeds.items()}
    norms = list(dict.fromkeys(_measure(way) for ways in curves.values() for way in ways))
    if not norms:
        return None
    names = list(dict.fromkeys(way.way for ways in curves.values() for way in ways))
    looks: dict[str, Look] = {}
    figure, grid = panel_grid(len(norms))
    for place, (label, ways) in enumerate(curves.items()):
        for way, points in ways.items():
            look = nth_look(place)._replace(line=LINES[names.index(way.way) % len(LINES)])
            looks[f"{label}: {way.way}" if len(names) > 1 else label] = look
            curve(grid[norms.index(_measure(way))], points, look)
    for axes, norm in zip(grid, norms, strict=False):
        axes.set(title=plain(norm), xlabel="radius", ylim=(-2, 102))
    panels = [[points for ways in curves.values() for way, points in ways.items() if _measure(way) == n] for n in norms]
    finish(figure, grid, panels, looks, "certified accuracy / %")
    return figure


def _measure(certificate: Column) -> str:
    """Return what its radius bounds; ||W d||_2 and ||d||_2 do not belong on one axis."""
    return NORMS.get(certificate.preset, certificate.preset or certificate.norm)
