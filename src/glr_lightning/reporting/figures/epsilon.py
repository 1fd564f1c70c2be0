"""Accuracy by the budget of attacks."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from glr_lightning.evaluation.worst_case import WORST_CASE
from glr_lightning.reporting.columns import Column
from glr_lightning.reporting.drawing import Point, Points, curve, finish, mean_curves
from glr_lightning.reporting.figures import report_figure
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.style import Look, nth_look, panel_grid, wrapped

WORST = Look("#000000", "o", "-")


@report_figure(
    "Accuracy by the budget epsilon of each attack, from the clean images at 0 on, the mean over seeds; black: the "
    "worst case over all attacks",
    place=40,
)
def epsilon(comparison: Comparison) -> Figure | None:
    """Draw a panel for each experiment and norm, a line for each attack and source of gradients."""
    panels: list[tuple[str, dict[Column, Points]]] = []
    for label, runs in comparison.seeds.items():
        curves = mean_curves(runs, "attack", WORST_CASE)
        for norm in dict.fromkeys(way.norm for way in curves):
            own = {way: _from_clean(way, points, runs) for way, points in curves.items() if way.norm == norm}
            panels.append((": ".join(filter(None, [label, norm])), own))
    if not panels:
        return None
    attacks = dict.fromkeys(way.way for _, curves in panels for way in curves if way.kind != WORST_CASE)
    looks = {words: _not_black(nth_look(place)) for place, words in enumerate(attacks)}
    figure, grid = panel_grid(len(panels))
    for axes, (title, curves) in zip(grid, panels, strict=False):
        for way, points in sorted(curves.items(), key=lambda item: item[0].kind != WORST_CASE):  # below the others
            worst = way.kind == WORST_CASE
            curve(axes, points, WORST if worst else looks[way.way], width=4.5 if worst else 1.3)
        axes.set(title=wrapped(title, 34), xlabel="epsilon", ylim=(-2, 102))
    if any(way.kind == WORST_CASE for _, curves in panels for way in curves):
        looks["worst case"] = WORST
    finish(figure, grid, [curves.values() for _, curves in panels], looks)
    return figure


def _not_black(look: Look) -> Look:
    """Black is for the worst case."""
    return look._replace(colour="#7f7f7f") if look.colour == WORST.colour else look


def _from_clean(way: Column, points: Points, runs: Sequence[Run]) -> Points:
    """Add the clean images, with the same noisy passes, as epsilon 0."""
    clean = [
        cell
        for run in runs
        for column, cell in run.cells.items()
        if column.kind == "clean" and column.noisy_passes == way.noisy_passes
    ]
    return {0.0: Point.of(clean), **points} if clean else points
