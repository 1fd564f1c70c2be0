"""The fast gradient sign method."""

from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import Scores
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import WHITE_BOX, AttackFacts, declare
from glr_lightning.validation import Positive


@declare(AttackFacts(norms=("linf",), gradient_sources=("transfer", *WHITE_BOX)))
def fgsm(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom | None,
    epsilon: Positive,
    target: Tensor | None = None,
) -> Tensor:
    """Take one step along the sign of the gradient: clip(x + epsilon * sign(d/dx cross-entropy(model(x), y))).

    x is [B, C, H, W] in [0, 1], y int64 [B]. With a target, int64 [B], the step descends the cross-entropy against it.
    `model` is the network whose gradient is used: a `Query`, or a bare one; random is ignored. One step is the exact
    worst case within the L-infinity ball on a linear model with two classes, and a weak attack elsewhere.

    Source: Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
    """
    gradient = Query.of(model, x).gradient(x, y if target is None else target)
    step = epsilon * gradient.sign()
    return (x + step if target is None else x - step).clamp(0.0, 1.0)
