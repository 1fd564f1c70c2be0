"""No threat: the row that every other row is compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.base import Threat


def clean(model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom | None) -> Tensor:
    """Return x itself, [B, C, H, W] in [0, 1]; model, y and random are ignored."""
    return x


@final
@dataclass(frozen=True, kw_only=True)
class Clean(Threat):
    """The images as they are."""

    function: Callable[..., Tensor] = clean

    @property
    def kind(self) -> str:
        """Rows of this kind are not averaged with corruptions."""
        return "clean"
