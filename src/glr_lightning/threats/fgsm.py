"""The fast gradient sign method."""

from torch import Tensor, nn

from glr_lightning.threats.gradient import input_gradient
from glr_lightning.threats.random import ImageRandom


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, random: ImageRandom | None, epsilon: float) -> Tensor:
    """clip(x + epsilon * sign(d/dx cross-entropy(model(x), y))) for x [B, C, H, W] in [0, 1], y int64 [B].

    `model` is the network whose gradient is used: the attacked one (white box) or a surrogate (transfer);
    random is ignored. One step, so the exact worst case within the L-infinity ball on a linear model with two
    classes, and a weak attack elsewhere. Source: Goodfellow, Shlens & Szegedy, "Explaining and harnessing
    adversarial examples", ICLR 2015.
    """
    return (x + epsilon * input_gradient(model, x, y).sign()).clamp(0.0, 1.0)
