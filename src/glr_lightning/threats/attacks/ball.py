"""Balls around images, cut by the box of the pixels."""

import math

import torch
from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom
from glr_lightning.validation import choice

BALLS = ("linf", "l2")


def check_ball(epsilon: float, norm: str) -> None:
    """Raises ConfigurationError for a norm that is not of BALLS, and a radius that is not finite and > 0."""
    choice("norm", norm, BALLS)
    if not (isinstance(epsilon, int | float) and 0 < epsilon < math.inf):
        raise ConfigurationError(f"epsilon must be a finite number > 0, got {epsilon!r}; for example epsilon=0.1.")


def length(change: Tensor) -> Tensor:
    """The L2 norm of each image, [B, 1, 1, 1]."""
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)


def direction(change: Tensor) -> Tensor:
    """Each image divided by its L2 norm; zero stays zero."""
    return change / length(change).clamp_min(1e-12)


def project(moved: Tensor, x: Tensor, epsilon: float, norm: str) -> Tensor:
    """The nearest point of the ball, and of that the nearest in [0, 1]; [B, C, H, W].

    The second step keeps the first: x lies in the box, so that no pixel moves away from it.
    """
    change = moved - x
    if norm == "linf":
        change = change.clamp(-epsilon, epsilon)
    else:
        change = change * (epsilon / length(change).clamp_min(1e-12)).clamp_max(1.0)
    return (x + change).clamp(0.0, 1.0)


def uniform_in_ball(x: Tensor, epsilon: float, norm: str, random: ImageRandom, stream: int) -> Tensor:
    """A uniform point of the ball, clamped to [0, 1]. It takes the streams `stream` and `stream + 1`."""
    if norm == "linf":
        change = (2.0 * random.uniform(x.shape[1:], stream) - 1.0) * epsilon
    else:
        radius = random.uniform((1, 1, 1), stream + 1) ** (1.0 / math.prod(x.shape[1:]))
        change = direction(random.normal(x.shape[1:], stream)) * radius * epsilon
    return (x + change.to(x)).clamp(0.0, 1.0)
