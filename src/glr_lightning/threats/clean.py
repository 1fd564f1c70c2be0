"""No threat: the row that every other row is read against."""

from torch import Tensor, nn

from glr_lightning.randomness import ImageRandom


def clean(model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom | None) -> Tensor:
    """x itself, [B, C, H, W] in [0, 1]; model, y and random are ignored."""
    return x
