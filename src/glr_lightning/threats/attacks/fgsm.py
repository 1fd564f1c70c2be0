"""The fast gradient sign method."""

from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import Scores
from glr_lightning.threats.attacks.query import Attacked


def fgsm(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom | None,
    epsilon: float,
    target: Tensor | None = None,
) -> Tensor:
    """clip(x + epsilon * sign(d/dx cross-entropy(model(x), y))) for x [B, C, H, W] in [0, 1], y int64 [B].

    With a target, int64 [B], the step goes down the cross-entropy against it. `model` is the network whose gradient is
    used: an `Attacked`, or a bare one; random is ignored. One step, so the exact worst case within the L-infinity ball
    on a linear model with two classes, and a weak attack elsewhere. Source: Goodfellow, Shlens & Szegedy, "Explaining
    and harnessing adversarial examples", ICLR 2015.
    """
    gradient = Attacked.of(model, x).gradient(x, y if target is None else target)
    step = epsilon * gradient.sign()
    return (x + step if target is None else x - step).clamp(0.0, 1.0)
