"""The published protocol's L-BFGS attack."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import Scores, cross_entropy
from glr_lightning.threats.attacks.objective import Objective
from glr_lightning.threats.attacks.quasi_newton import InverseHessian, dot
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import WHITE_BOX, AttackFacts, declare
from glr_lightning.validation import Positive

HISTORY = 100  # and the tolerances: torch.optim.LBFGS's defaults
TOLERANCE_GRADIENT = 1e-7
TOLERANCE_CHANGE = 1e-9


@declare(AttackFacts(gradient_sources=("transfer", *WHITE_BOX)))
def lbfgs(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom | None,
    learning_rate: Positive = 0.05,
    iterations: Annotated[int, Interval(ge=1, le=HISTORY)] = 20,
    target: Tensor | None = None,
) -> Tensor:
    """Make one call of torch.optim.LBFGS(lr=0.05, max_iter=20).step on the pixels of each image by itself.

    It maximises the cross-entropy, or with a target, int64 [B], minimises that against it; there is no distance term
    and no bound, and only the result, x' [B, C, H, W], is clamped to [0, 1]. So this is not the attack of Szegedy et
    al., which looks for a small change: that is `penalised_lbfgs`. `random` is ignored.

    Steps are learning_rate * H g without line search, the first learning_rate * min(1, 1 / ||g||_1) * g, with torch's
    history and tolerances. torch takes one loss for all it is given; which reduction over which batch the publication
    took is not said, and curvature shared by a batch would make an image's result depend on its company. Here every
    image has its own loss, curvature and end, as in a batch of one.

    Source of the parameters: the protocol of Jiang et al., "One forward is enough for neural network training via
    likelihood ratio method", ICLR 2024. There are at most as many iterations as the history holds.
    """
    query = Query.of(model, x)
    objective = Objective.of(y, target)
    result, rows = x.clone(), torch.arange(len(x), device=x.device)

    def evaluate(pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [m, 1] and gradient [m, N] of what is minimised."""
        here, own, images = query.take(rows), objective.take(rows), pixels.view(len(rows), *x.shape[1:])
        scores, slope = here.scores_and_gradient(images, own.classes, cross_entropy)
        return -own.height(scores, cross_entropy)[:, None], (-own.sign * slope).flatten(1)

    pixels = x.flatten(1)
    loss, gradient = evaluate(pixels, rows)
    hessian = InverseHessian(HISTORY)
    moving = gradient.abs().amax(1) > TOLERANCE_GRADIENT
    for number in range(iterations):
        rows, pixels, loss, gradient = _those(moving, rows, pixels, loss, gradient)
        hessian.take(moving)
        direction = -(hessian @ gradient)
        first = (1.0 / gradient.abs().sum(1, keepdim=True)).clamp_max(1.0) if number == 0 else 1.0
        step = learning_rate * first * direction
        downhill = (dot(gradient, direction) <= -TOLERANCE_CHANGE).squeeze(1)
        rows, pixels, loss, gradient, step = _those(downhill, rows, pixels, loss, gradient, step)
        hessian.take(downhill)
        if not len(rows):
            break
        pixels = pixels + step
        result[rows] = pixels.view(len(rows), *x.shape[1:])
        if number == iterations - 1:
            break
        old_loss, old_gradient = loss, gradient
        loss, gradient = evaluate(pixels, rows)
        hessian.update(step, gradient - old_gradient)
        moving = (
            (gradient.abs().amax(1) > TOLERANCE_GRADIENT)
            & (step.abs().amax(1) > TOLERANCE_CHANGE)
            & ((loss - old_loss).abs() >= TOLERANCE_CHANGE).squeeze(1)
        )
    return result.clamp(0.0, 1.0)


def _those(chosen: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The chosen rows, bool [B], of tensors [B, ...]; the tensors themselves if that is all."""
    if chosen.all():
        return values
    rows = chosen.nonzero().squeeze(1)
    return tuple(each.index_select(0, rows) for each in values)
