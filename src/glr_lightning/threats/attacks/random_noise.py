"""Random points of the ball: the least that an attack must beat."""

import torch
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.ball import direction, uniform_in_ball
from glr_lightning.threats.attacks.input_gradient import Scores, margin
from glr_lightning.threats.attacks.objective import Best, Objective
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import AttackFacts, Norm, declare
from glr_lightning.validation import Count, Positive


@declare(AttackFacts(norms=("linf", "l2"), searches=False))
def random_noise(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom,
    epsilon: Positive,
    norm: Norm = "linf",
    draws: Count = 100,
    target: Tensor | None = None,
) -> Tensor:
    """Return the first of `draws` random x' in the ball of radius epsilon, clamped to [0, 1], that fools the model.

    x [B, C, H, W] in [0, 1]; x itself is tried first. If none fools it, the one of the largest margin
    max_{c != y} score_c - score_y; with a target, int64 [B], of the largest score_target - max_{c != target} score_c.
    For l2 the directions are uniform and the radius is epsilon. For linf the draws are in turn a corner of the cube,
    every pixel up or down by epsilon, and a uniform point in it: corners go farthest, and points within miss none of
    the smaller steps that a clamped or quantised network may need.

    An attack that does no better than this has found nothing.
    """
    query = Query.of(model, x)
    best = Best(x, Objective.of(y, target), margin)
    best.offer(best.open, x, query(x))
    for number in range(draws):
        rows = best.open
        if not len(rows):
            break
        own = ImageRandom(random.seed, random.index[rows])
        moved = _draw(x[rows], epsilon, norm, own, number)
        best.offer(rows, moved, query.take(rows)(moved))
    return best.images


def _draw(x: Tensor, epsilon: float, norm: str, random: ImageRandom, number: int) -> Tensor:
    if norm == "l2":
        change = epsilon * direction(random.normal(x.shape[1:], number))
    elif number % 2:
        return uniform_in_ball(x, epsilon, norm, random, number)
    else:
        up = random.uniform(x.shape[1:], number) < 0.5
        change = torch.where(up, epsilon, -epsilon)
    return (x + change.to(x)).clamp(0.0, 1.0)
