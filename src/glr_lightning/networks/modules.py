"""Modules that torch has not, for networks that are chains."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError


class Shift(nn.Module):
    """x + offset; no parameters."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset

    def extra_repr(self) -> str:
        return f"{self.offset:+g}"


class Standardise(nn.Module):
    """(x - mean) / std with fixed numbers, the same for all pixels.

    Raises:
        ConfigurationError: numbers that are not finite, or a std that is not positive.
    """

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        if not (_is_number(mean) and _is_number(std) and std > 0):
            raise ConfigurationError(
                f"standardised inputs need a mean and a positive std, such as 0.5 and 0.25, got {mean!r} and {std!r}."
            )
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean:g}, std={self.std:g}"


class Sine(nn.Module):
    """sin(x): what the inputs of paper 1's Tiny-ImageNet networks pass through, as published with the authors' code."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Residual(nn.Module):
    """body(x) + shortcut(x), the block of a residual network (He, Zhang, Ren, Sun, CVPR 2016).

    A chain looks into both branches, so layers in them get noise as all others do.

    Args:
        body: modules in sequence.
        shortcut: how the input reaches the sum; None: as it is. Both must return the same shape.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
