"""Balls around images, cut by the box of the pixels."""

import math

import torch
from torch import Tensor

from glr_lightning.randomness import ImageRandom


def length(change: Tensor) -> Tensor:
    """Return the L2 norm of each image, [B, 1, 1, 1]."""
    norms: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return norms


def direction(change: Tensor) -> Tensor:
    """Divide each image by its L2 norm; zero stays zero."""
    return change / length(change).clamp_min(1e-12)


def project(moved: Tensor, x: Tensor, epsilon: float, norm: str) -> Tensor:
    """Project onto the ball around x, and then onto [0, 1]; [B, C, H, W].

    The second step keeps the first: x lies in the box, so that no pixel moves away from it.
    """
    change = moved - x
    if norm == "linf":
        change = change.clamp(-epsilon, epsilon)
    else:
        change = change * (epsilon / length(change).clamp_min(1e-12)).clamp_max(1.0)
    return (x + change).clamp(0.0, 1.0)


def uniform_in_ball(x: Tensor, epsilon: float, norm: str, random: ImageRandom, stream: int) -> Tensor:
    """Draw a uniform point of the ball, clamped to [0, 1], from the streams `stream` and `stream + 1`."""
    if norm == "linf":
        change = (2.0 * random.uniform(x.shape[1:], stream) - 1.0) * epsilon
    else:
        radius = random.uniform((1, 1, 1), stream + 1) ** (1.0 / math.prod(x.shape[1:]))
        change = direction(random.normal(x.shape[1:], stream)) * radius * epsilon
    return (x + change.to(x)).clamp(0.0, 1.0)
