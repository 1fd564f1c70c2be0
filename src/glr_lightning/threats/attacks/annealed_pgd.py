"""Projected gradient descent on a smoothed network that sharpens from step to step."""

import torch
from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.ball import direction, project, uniform_in_ball
from glr_lightning.threats.attacks.input_gradient import AttackLoss, Scores, margin
from glr_lightning.threats.attacks.objective import Best, Objective
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import AttackFacts, Norm, declare
from glr_lightning.validation import Count, Positive

FIRST_STEP, LAST_STEP = 1.0, 0.05
"""Lengths of the first and the last step, as shares of epsilon."""
FORWARD = 0.75
"""The share of a step that follows the gradient; the rest repeats the step before (APGD)."""


@declare(AttackFacts(norms=("linf", "l2"), gradient_sources=("straight_through",)))
def annealed_pgd(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom,
    epsilon: Positive,
    norm: Norm = "linf",
    steps: Count = 100,
    restarts: Count = 1,
    rivals: Count = 9,
    widest: Positive = 0.2,
    narrowest: Positive = 0.01,
) -> Tensor:
    """For each rival class c ascend score_c - score_y of the smoothed network; x [B, C, H, W] in [0, 1].

    At step t of T every threshold phi(v) of unit i is replaced, forwards and backwards, by its mean under Gaussian
    noise, E phi(v + s_t ||w_i|| z), with s_t falling geometrically from `widest` to `narrowest`. The wide ones see far
    and say little about the thresholds; the narrow ones are the network but for the units about to switch. The steps
    shrink alike, from epsilon to a twentieth of it, along the sign of the gradient (linf) or its direction (l2),
    with a quarter of the step before. After every step the network itself judges, and an image keeps the first iterate
    that it mispredicts. On a network without thresholds all this is plain ascent with one run a class.

    epsilon: in pixel units. steps: T, of a run. restarts: runs of each class, from uniform points of the ball.
    rivals: classes that are tried, those of the largest score first.

    Sources: Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020 (the momentum, a run a class); Athalye, Carlini & Wagner, ICML 2018 (smooth in place of hard).

    Raises ConfigurationError if narrowest is above widest, or the network cannot be traced.
    """
    query = Query.of(model, x)
    if narrowest > widest:
        raise ConfigurationError(
            f"narrowest={narrowest} is above widest={widest}; the network is to become sharper.", option="narrowest"
        )
    objective = Objective.of(y, None)
    best = Best(x, objective, margin)
    scores = query(x)
    best.offer(best.open, x, scores)
    if not len(best.open):
        return best.images
    classes = scores.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
    shares = [step / max(steps - 1, 1) for step in range(steps)]
    smoothed = [query.smoothed(widest * (narrowest / widest) ** share) for share in shares]
    lengths = [epsilon * FIRST_STEP * (LAST_STEP / FIRST_STEP) ** share for share in shares]
    for number in range(restarts):
        for rival in classes.T[:rivals]:
            rows = best.open
            own = ImageRandom(random.seed, random.index[rows])
            moved = before = uniform_in_ball(x[rows], epsilon, norm, own, stream=2 * number)
            for network, length in zip(smoothed, lengths, strict=True):
                if not len(rows):
                    break
                gradient = network.take(rows).gradient(moved, rival[rows], _lead_over(y[rows]))
                step = gradient.sign() if norm == "linf" else direction(gradient)
                ahead = project(moved + length * step, x[rows], epsilon, norm)
                mixed = moved + FORWARD * (ahead - moved) + (1 - FORWARD) * (moved - before)
                moved, before = project(mixed, x[rows], epsilon, norm), moved
                best.offer(rows, moved, query.take(rows)(moved))
                left = ~best.reached[rows]
                moved, before, rows = moved[left], before[left], rows[left]
    return best.images


def _lead_over(y: Tensor) -> AttackLoss:
    """The lead of a rival over the label, score_c - score_y, [rows]."""

    def lead(scores: Tensor, rival: Tensor) -> Tensor:
        return (scores.gather(1, rival[:, None]) - scores.gather(1, y[:, None])).squeeze(1)

    return lead
