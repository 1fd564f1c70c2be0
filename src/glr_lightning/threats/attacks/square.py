"""The Square attack: random search with squares, from the scores alone."""

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.ball import direction, length
from glr_lightning.threats.attacks.input_gradient import Scores, cross_entropy, margin
from glr_lightning.threats.attacks.objective import Best, Objective
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import AttackFacts, Norm, declare
from glr_lightning.validation import MOST, Count, Positive

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 iterations; Andriushchenko et al., B.2
AHEAD = 50  # iterations whose random numbers are drawn at once


@declare(AttackFacts(norms=("linf", "l2")))
def square(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom,
    epsilon: Positive,
    norm: Norm = "linf",
    queries: Annotated[int, Interval(ge=2, le=MOST)] = 1000,
    p_init: Annotated[float, Interval(gt=0, le=1)] = 0.8,
    horizon: Count | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Search x' within epsilon of x [B, C, H, W] in [0, 1], keeping each square of change that raises the loss.

    The loss is the margin max_{c != y} score_c - score_y, or with a target, int64 [B], minus the cross-entropy against
    it. No gradient is used, so that no vanishing gradient stands in the way. For linf the search starts at vertical
    stripes of +-epsilon, and a step sets a square, in every channel, to x + epsilon or x - epsilon; for l2 it starts
    at a grid of bumps, and a step moves the change in one window to another in the shape of a bump. The squares cover
    the share `square_share(p_init, ...)` of the image, smaller and smaller.

    queries: forward passes an image at the most; the first is of x itself, the second of the start.
    p_init: the first share. The source has 0.05 (linf) and 0.1 (l2) for ImageNet, 0.3 for other data and 0.8 for
        adversarially trained networks; AutoAttack (Croce & Hein, ICML 2020) 0.8 everywhere, and so this here.
    horizon: iterations that the schedule of the share is stretched over; None for `queries`, as the source does it. Of
        more than that only the beginning is seen, with large squares: on a piecewise-constant network small ones seldom
        change a score.

    Three things differ from the authors' programs. Squares reach the last row and column, which theirs leave out and
    the source does not; a linf step that would change nothing has its signs turned, instead of being drawn again; and a
    step that changes the loss by nothing is taken (see `Best`), without which the search stands still on the plateaus
    of a threshold network. On smooth networks only the first shows, by a point or two of accuracy.

    A random search stops short of an optimum: on linear models of two classes 1,000 queries need up to 1.01 (linf) and
    1.3 times (l2) the least epsilon that there is, and with five classes up to 1.6 times (l2).

    Source: Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial attack via
    random search", ECCV 2020.
    """
    query = Query.of(model, x)
    horizon = queries if horizon is None else horizon
    best = Best(x, Objective.of(y, target), margin if target is None else cross_entropy)
    best.offer(best.open, x, query(x))
    rows = best.open
    start, step, numbers = (_stripes, _linf_step, 2) if norm == "linf" else (_bumps, _l2_step, 5)
    channels = x.shape[1]
    first = start(x[rows], epsilon, ImageRandom(random.seed, random.index[rows]))
    # The start replaces x even where it is worse, as all steps begin at the surface of the ball.
    best.restart(rows, first, query.take(rows)(first))
    for done in range(0, queries - 2, AHEAD):
        rows = best.open
        u = ImageRandom(random.seed, random.index[rows]).uniform((AHEAD, numbers + channels), 1 + done // AHEAD)
        for number in range(done, min(done + AHEAD, queries - 2)):
            if not len(rows):
                return best.images
            share = square_share(p_init, number, horizon)
            moved = step(x[rows], best.images[rows], epsilon, share, u[:, number - done])
            best.offer(rows, moved, query.take(rows)(moved))
            remaining = ~best.reached[rows]
            if not remaining.all():
                rows, u = rows[remaining], u[remaining]
    return best.images


def square_share(p_init: float, iteration: int, iterations: int) -> float:
    """The share of the image that a square covers: p_init, halved after each of HALVINGS, scaled to the iterations."""
    position = int(iteration / iterations * 10_000)
    return p_init / 2.0 ** sum(position > halving for halving in HALVINGS)


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0)


def _corners(u: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The first row and column of each image's square, uniform, from u [m, 2]."""
    return (u[:, 0] * (height - side + 1)).long(), (u[:, 1] * (width - side + 1)).long()


def _stripes(x: Tensor, epsilon: float, random: ImageRandom) -> Tensor:
    """Every column of every channel up or down."""
    signs = _signs(random.uniform((x.shape[1], 1, x.shape[3]), 0)).to(x)
    return (x + epsilon * signs).clamp(0.0, 1.0)


def _linf_step(x: Tensor, best: Tensor, epsilon: float, share: float, u: Tensor) -> Tensor:
    """Set one square; u [m, 2 + C] holds its place and its signs."""
    height, width = x.shape[2:]
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    top, left = _corners(u, side, height, width)
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    across = (row >= top[:, None]) & (row < top[:, None] + side)
    along = (column >= left[:, None]) & (column < left[:, None] + side)
    inside = (across[:, :, None] & along[:, None, :])[:, None]
    signs = _signs(u[:, 2:, None, None]).to(x)
    moved = torch.where(inside, (x + epsilon * signs).clamp(0.0, 1.0), best)
    idle = (moved == best).flatten(1).all(1).nonzero().squeeze(1)
    moved[idle] = torch.where(inside[idle], (x[idle] - epsilon * signs[idle]).clamp(0.0, 1.0), best[idle])
    return moved


def bump(side: int) -> Tensor:
    """The change of an l2 step, [side, side] with L2 norm 1: a peak in the upper half and a trough in the lower.

    A peak falls off from its centre in squares: sum_{k=d}^{r} 1 / (k + 1)^2 at the distance of d pixels, in the maximum
    norm, r being the largest half side (eta in Andriushchenko et al.).
    """

    def peak(height: int, width: int) -> Tensor:
        row, column = torch.arange(height) - height // 2, torch.arange(width) - width // 2
        distance = torch.maximum(row.abs()[:, None], column.abs()[None, :])
        terms = 1.0 / torch.arange(1.0, max(height, width) // 2 + 2) ** 2
        pattern = terms.flip(0).cumsum(0).flip(0)[distance]
        scaled: Tensor = pattern / pattern.norm().clamp_min(1e-12)
        return scaled

    pattern = torch.cat([peak(side // 2, side), -peak(side - side // 2, side)])
    unit: Tensor = pattern / pattern.norm()
    return unit


def _bumps(x: Tensor, epsilon: float, random: ImageRandom) -> Tensor:
    """A grid of five bumps a side, or what fits, each of its own sign."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    signs = _signs(random.uniform((channels, down, 1, across, 1), 0))
    change = (signs * bump(side).to(signs)[:, None, :]).reshape(len(x), channels, down * side, across * side)
    above, before = (height - down * side) // 2, (width - across * side) // 2
    below, after = height - down * side - above, width - across * side - before
    change = functional.pad(change, (before, after, above, below)).to(x)
    return (x + epsilon * direction(change)).clamp(0.0, 1.0)


def _l2_step(x: Tensor, best: Tensor, epsilon: float, share: float, u: Tensor) -> Tensor:
    """Move the change of one window to another; u [m, 5 + C]: their places, whether the bump is transposed, its signs.

    The norm that the change has in both windows, and has not used up, goes into the first, in the shape of a bump added
    to what was there; the second is emptied.
    """
    channels, height, width = x.shape[1:]
    side = max(round(math.sqrt(share * height * width)), 3)
    side = min(side + 1 - side % 2, height, width)
    places = torch.arange(side, device=x.device)

    def window(top: Tensor, left: Tensor) -> Tensor:
        row, column = top[:, None, None] + places[:, None], left[:, None, None] + places
        return (row * width + column).flatten(1)[:, None].expand(-1, channels, -1)

    first = window(*_corners(u[:, :2], side, height, width))
    second = window(*_corners(u[:, 2:4], side, height, width))
    change = (best - x).flatten(2)
    old = change.gather(2, first)
    rest = change.scatter(2, first, 0.0).scatter(2, second, 0.0)
    used = change.square().sum(2, keepdim=True)
    unused = (epsilon**2 - used.sum(1, keepdim=True)).clamp_min(0.0) / channels
    available = (used - rest.square().sum(2, keepdim=True)).clamp_min(0.0) + unused

    pattern = bump(side).to(x)
    shape = torch.where(u[:, 4, None] < 0.5, pattern.flatten(), pattern.T.flatten())[:, None]
    new = shape * _signs(u[:, 5:, None]).to(x) + old / old.norm(dim=2, keepdim=True).clamp_min(1e-12)
    new = new / new.norm(dim=2, keepdim=True).clamp_min(1e-12) * available.sqrt()
    change = rest.scatter(2, first, new).view_as(x)
    return (x + change * (epsilon / length(change).clamp_min(1e-12))).clamp(0.0, 1.0)
