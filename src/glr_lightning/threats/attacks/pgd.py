"""Projected gradient descent."""

import itertools

from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.ball import direction, project, uniform_in_ball
from glr_lightning.threats.attacks.input_gradient import ATTACK_LOSSES, AttackLoss, LossName, Scores
from glr_lightning.threats.attacks.objective import Best, Objective
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import WHITE_BOX, AttackFacts, Norm, declare
from glr_lightning.validation import Count, NonEmpty, Positive


@declare(AttackFacts(norms=("linf", "l2"), gradient_sources=(*WHITE_BOX, "transfer")))
def pgd(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom,
    epsilon: Positive,
    norm: Norm = "linf",
    steps: Count = 40,
    step_size: Positive | None = None,
    restarts: Count = 1,
    random_start: bool = True,
    loss: LossName | NonEmpty[LossName] = "cross_entropy",
    early_stop: bool = True,
    target: Tensor | None = None,
) -> Tensor:
    """Ascend the loss within the ball, x' <- project(x' + step_size * n(d/dx' loss)); x [B, C, H, W] in [0, 1].

    n is the sign for linf, and the division by the L2 norm for l2; the projection is onto the ball of radius epsilon
    (pixel units) and onto [0, 1]. With a target, int64 [B], it descends the loss against that.

    step_size: by default 2.5 * epsilon / steps, which reaches every point of the ball from every other and leaves room
        to turn.
    restarts: the number of starts, each uniform in the ball if random_start, of images that no earlier one has fooled.
    loss: one of `input_gradient.ATTACK_LOSSES`, or a list of them: images that the first has not fooled start again
        with the next. The margin goes for the class that is next, the cross-entropy for a mixture of all.
    early_stop: every image keeps the first iterate, x itself being the first, that the model mispredicts, and else the
        one of the highest loss; images that are done cost nothing more. That is what a white-box attack should do. If
        false, the last iterate of the one start is returned whatever it is predicted as. That is what a transfer attack
        should do: there "mispredicted" is said of the surrogate, and an image that has only just fooled it seldom fools
        another network. With a single start it is also what is done with a randomized network.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards deep learning models resistant to adversarial attacks",
    ICLR 2018.

    Raises:
        ConfigurationError: several restarts without early_stop or random_start.
    """
    query = Query.of(model, x)
    if restarts > 1 and not (early_stop and random_start):
        raise ConfigurationError(
            f"restarts={restarts} needs early_stop=true, to know which is the best, and random_start=true, to have "
            "different ones; set both, or restarts=1."
        )
    objective = Objective.of(y, target)
    losses = [ATTACK_LOSSES[name] for name in ([loss] if isinstance(loss, str) else loss)]
    size = 2.5 * epsilon / steps if step_size is None else step_size

    def start(rows: Tensor, number: int) -> Tensor:
        if not random_start:
            return x[rows]
        own = ImageRandom(random.seed, random.index[rows])
        return uniform_in_ball(x[rows], epsilon, norm, own, stream=2 * number)

    def ascend(moved: Tensor, rows: Tensor, climbed: AttackLoss) -> Tensor:
        gradient = objective.take(rows).uphill(query.take(rows), moved, climbed)
        step = gradient.sign() if norm == "linf" else direction(gradient)
        return project(moved + size * step, x[rows], epsilon, norm)

    best = Best(x, objective, losses[-1])
    rows = best.open
    if not early_stop or (query.randomized and restarts == 1):
        moved = start(rows, 0)
        for _ in range(steps):
            moved = ascend(moved, rows, losses[0])
        return moved
    best.offer(rows, x, query(x))
    for number, climbed in enumerate(itertools.chain.from_iterable([each] * restarts for each in losses)):
        rows = best.open
        moved = start(rows, number)
        if random_start:
            moved, rows = _offer(best, query, moved, rows)
        for _ in range(steps):
            if not len(rows):
                break
            moved, rows = _offer(best, query, ascend(moved, rows, climbed), rows)
    return best.images


def _offer(best: Best, query: Query, moved: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Offer the iterates, and keep those of images that are not done."""
    best.offer(rows, moved, query.take(rows)(moved))
    remaining = ~best.reached[rows]
    return moved[remaining], rows[remaining]
