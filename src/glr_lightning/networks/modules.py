"""Modules that torch does not have."""

import torch
from torch import Tensor, fx, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import Positive, Size, checked


class Shift(nn.Module):
    """x + offset; no parameters."""

    @checked
    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """Return x + offset."""
        return x + self.offset

    def extra_repr(self) -> str:
        """Return the offset with its sign."""
        return f"{self.offset:+g}"


class Standardise(nn.Module):
    """(x - mean) / std with fixed numbers, the same for all pixels."""

    @checked
    def __init__(self, mean: float, std: Positive) -> None:
        super().__init__()
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return both numbers."""
        return f"mean={self.mean:g}, std={self.std:g}"


class Sine(nn.Module):
    """sin(x): what the inputs of paper 1's Tiny-ImageNet networks pass through, as published with the authors' code."""

    def forward(self, x: Tensor) -> Tensor:
        """Return sin(x)."""
        return torch.sin(x)


class Residual(nn.Module):
    """body(x) + shortcut(x), the block of a residual network (He, Zhang, Ren, Sun, CVPR 2016).

    Layers in both branches get noise as all others do.

    Args:
        body: modules in sequence.
        shortcut: how the input reaches the sum; None: as it is. Both must return the same shape.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return body(x) + shortcut(x)."""
        return add_branches(self.body(x), self.shortcut(x))


class Recurrence(nn.Module):
    """h_t = cell([x_t, h_{t-1}]) with h_0 = 0, where x_t is the t-th band of rows of an image, from top to bottom.

    The cell is one module that is called at every step, so a layer in it gets noise at each.

    Args:
        cell: modules in sequence, [batch, channels * rows * width + hidden] -> [batch, hidden].
        rows: of a band.
        steps: the number of bands.
        hidden: the number of units of the state.
        keep: whether to return all states side by side, [batch, steps * hidden], in place of the last one.
    """

    @checked
    def __init__(self, cell: nn.Sequential, rows: Size, steps: Size, hidden: Size, keep: bool = False) -> None:
        super().__init__()
        self.cell = cell
        self.rows = rows
        self.steps = steps
        self.hidden = hidden
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        """Return the last state, or all of them."""
        bands = [x[:, :, step * self.rows : (step + 1) * self.rows].flatten(1) for step in range(self.steps)]
        h: Tensor = self.cell(nn.functional.pad(bands[0], (0, self.hidden)))
        states = [h]
        for band in bands[1:]:
            h = self.cell(torch.cat([band, h], 1))
            states.append(h)
        return torch.cat(states, 1) if self.keep else h

    def extra_repr(self) -> str:
        """Return the number of steps, and what is read of the states."""
        return f"rows={self.rows}, steps={self.steps}, keep={self.keep}"


@fx.wrap  # tracing keeps the call, so that the check is made of tensors
def add_branches(body: Tensor, shortcut: Tensor) -> Tensor:
    """Return body + shortcut. Raises ConfigurationError if their shapes differ."""
    if body.shape[1:] != shortcut.shape[1:]:
        raise ConfigurationError(
            f"a residual block adds tensors of one shape, got {list(body.shape[1:])} and {list(shortcut.shape[1:])} of "
            "a sample; give it a shortcut whose output is shaped like the body's, such as a 1 x 1 convolution."
        )
    return body + shortcut
