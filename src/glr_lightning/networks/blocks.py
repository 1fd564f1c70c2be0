"""Parts of the networks: the types of their options, and layers with the activation and normalisation behind them."""

import copy
import math
import string
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.networks.modules import Shift
from glr_lightning.validation import Size
from glr_lightning.validation.ranges import Len, MinLen

Init = Literal["torch", "paper"]
Norm = Literal["none", "group", "layer"]
Widths = Sequence[Size]
"""Widths of hidden layers; none: no hidden layer."""
Channels = Annotated[Sequence[Size], MinLen(1)]
"""Channels of at least one convolution."""
TwoChannels = Annotated[Sequence[Size], Len(2, 2)]


class Builder:
    """Collects the modules of a network, numbered by layer, and hands out the nn.Sequential.

    Args:
        activation: copied after every layer but the logits.
        centre: subtracted from every activation before the next layer reads it; see `mlp`.
        preprocess: the first module, for the pixels; an nn.Identity is left out.
        norm: normalisation between a convolution and its activation, with a learned scale and shift per channel: none;
            group, over groups of at most 8 channels of a sample; layer, over all channels of a sample.
    """

    def __init__(
        self, activation: nn.Module, centre: float = 0.0, preprocess: nn.Module | None = None, norm: Norm = "none"
    ) -> None:
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.activation = activation
        self.centre = centre
        self.norm = norm
        if preprocess is not None and not isinstance(preprocess, nn.Identity):
            self.modules["preprocess"] = copy.deepcopy(preprocess)

    def branch(self) -> "Builder":
        """Return an empty builder with the same activation, centre and normalisation, for a residual block's body."""
        return Builder(self.activation, self.centre, norm=self.norm)

    def add(self, name: str, module: nn.Module) -> None:
        """Add a module."""
        self.modules[name] = module

    def activated(self, name: str, layer: nn.Module) -> None:
        """Add a layer, its normalisation if it is a convolution, the activation, and the shift by `centre`."""
        self.normalised(name, layer)
        self.modules[f"activation{_number(name)}"] = copy.deepcopy(self.activation)
        if self.centre:
            self.modules[f"centre{_number(name)}"] = Shift(-self.centre)

    def normalised(self, name: str, layer: nn.Module) -> None:
        """Add a layer, and its normalisation if it is a convolution."""
        self.modules[name] = layer
        if self.norm != "none" and isinstance(layer, nn.Conv2d):
            groups = groups_of(layer.out_channels) if self.norm == "group" else 1
            self.modules[f"norm{_number(name)}"] = nn.GroupNorm(groups, layer.out_channels)

    def network(self) -> nn.Sequential:
        """The modules in sequence."""
        return nn.Sequential(self.modules)


def _number(name: str) -> str:
    """The number at the end of a name: conv12 -> 12."""
    return name.lstrip(string.ascii_lowercase)


def groups_of(channels: int) -> int:
    """Return the smallest number of groups of at most 8 channels, all of the same size."""
    return next(groups for groups in range(-(-channels // 8), channels + 1) if channels % groups == 0)


def size_behind(size: tuple[int, int], kernel: int, stride: int, padding: int, what: str) -> tuple[int, int]:
    """Return the (height, width) of a map after a convolution or pooling.

    Args:
        size: (height, width) before it.
        kernel: side of the window.
        stride: step of the window.
        padding: zeros added on each side.
        what: the layer, for the error.

    Raises:
        ConfigurationError: the window does not fit into the map.
    """
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    if height < 1 or width < 1:
        raise ConfigurationError(
            f"images of {size[0]} x {size[1]} are too small for {what} with a window of {kernel}; "
            "use fewer layers, smaller windows or strides, or larger images (data.resize)."
        )
    return height, width


def initialise(layer: nn.Linear | nn.Conv2d, init: Init) -> nn.Linear | nn.Conv2d:
    """Draw the first weights of a layer, in place, and return it.

    Args:
        layer: a new layer, whose weights torch has drawn.
        init: "torch" keeps torch's; "paper" draws weights and biases from N(0, 4 / fan_in), as published with the
            authors' code of Peng et al. 2022 (W = randn * 2 / sqrt(n_in), the bias being the weight of a constant
            input 1, which counts towards n_in).
    """
    if init == "paper":
        fan_in = layer.weight[0].numel() + (layer.bias is not None)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=2.0 / math.sqrt(fan_in))
    return layer
