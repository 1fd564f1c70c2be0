"""The kinds of score by which a likelihood ratio weights each draw, and where a network allows them."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from glr_lightning.activations import PiecewiseConstant, is_above
from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.values import NoisySite

Score = Literal["plain", "conditional", "coupled", "auto"]
"""The plain score; its mean given the cell of a draw; given the cells of both mirrored partners; by the layer."""


def has_cells(graph: Graph, site: int) -> bool:
    """Whether the loss depends on a layer's pre-activations only through the cells of a piecewise-constant function."""
    return isinstance(graph.follower(site), PiecewiseConstant)


def require_cells_for(score: Score, graph: Graph, passes: Sequence[tuple[int, ...]]) -> None:
    """Refuse a score that no layer of these passes can have. Raises ConfigurationError."""
    if score == "conditional":
        sites, where = [site for noisy in passes for site in noisy], "right after a layer"
    elif score == "coupled":
        sites, where = [noisy[0] for noisy in passes], "right after the first noisy layer"
    else:
        return
    if not any(has_cells(graph, site) for site in sites):
        raise ConfigurationError(
            f"score={score} needs a piecewise-constant activation (activation=threshold or sign) {where}; "
            "this network has none. Use estimator.score=plain or auto.",
            option="estimator.score",
        )


def mean_over_cell(
    mean_between: Callable[[Tensor | None, Tensor | None], Tensor],
    activation: PiecewiseConstant,
    at: NoisySite,
    sigma: float | Tensor,
) -> Tensor:
    """Replace a function of each draw by its mean over the activation's cell that the draw fell in.

    Args:
        mean_between: the mean of the function over lower < z < upper, None for a side without a bound. If it declares
            the mean of a mirrored cell (`noise.base.mirrored`), a threshold costs one mean for each draw, not two.
        activation: what reads the pre-activation.
        at: the draws.
        sigma: the noise scale there.

    Returns:
        [copies, batch, *site].
    """
    mirror = getattr(mean_between, "mirror", None)
    if mirror is not None and len(activation.cuts) == 1 and at.v0.shape == at.v.shape:
        side = is_above(at.v, activation.cuts[0]).mul_(2.0).sub_(1.0)
        # (-inf, t) mirrors (-t, inf), so one mean for each draw is enough
        mean = mean_between((activation.cuts[0] - at.v0).div_(sigma).mul_(side), None)
        return mean * side if mirror < 0 else mean
    per_cell = [
        mean_between(*(None if cut is None else (cut - at.v0) / sigma for cut in cell)) for cell in activation.cells
    ]
    return activation.select(at.v, per_cell)
