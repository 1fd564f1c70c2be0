"""What the networks are put together from: checked options, and layers with what follows them."""

import copy
import math
import string
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.networks.modules import Shift

Init = Literal["torch", "paper"]
Norm = Literal["none", "group", "layer"]


class Builder:
    """Collects the modules of a network, numbered by layer, and hands out the nn.Sequential.

    Args:
        activation: copied after every layer but the logits.
        centre: subtracted from every activation before the next layer reads it; see `mlp`.
        preprocess: the first module, for the pixels; an nn.Identity is left out.
        norm: normalisation between a convolution and its activation, with a learned scale and shift a channel: none;
            group, over groups of at most 8 channels of a sample; layer, over all channels of a sample.
    """

    def __init__(
        self, activation: nn.Module, centre: float = 0.0, preprocess: nn.Module | None = None, norm: Norm = "none"
    ) -> None:
        if isinstance(centre, bool) or not isinstance(centre, int | float) or not math.isfinite(centre):
            raise ConfigurationError(f"network.centre must be a number such as 0.5, or 0 for none, got {centre!r}.")
        if norm not in get_args(Norm):
            raise ConfigurationError(f"network.norm must be one of {', '.join(get_args(Norm))}, got {norm!r}.")
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.activation = activation
        self.centre = centre
        self.norm = norm
        if preprocess is not None and not isinstance(preprocess, nn.Identity):
            self.modules["preprocess"] = copy.deepcopy(preprocess)

    def branch(self) -> "Builder":
        """An empty one with the same activation, centre and normalisation, for the body of a residual block."""
        return Builder(self.activation, self.centre, norm=self.norm)

    def add(self, name: str, module: nn.Module) -> None:
        self.modules[name] = module

    def activated(self, name: str, layer: nn.Module) -> None:
        """A layer, its normalisation if it is a convolution, the activation, and the shift by `centre`."""
        self.normalised(name, layer)
        self.modules[f"activation{_number(name)}"] = copy.deepcopy(self.activation)
        if self.centre:
            self.modules[f"centre{_number(name)}"] = Shift(-self.centre)

    def normalised(self, name: str, layer: nn.Module) -> None:
        """A layer and its normalisation if it is a convolution."""
        self.modules[name] = layer
        if self.norm != "none" and isinstance(layer, nn.Conv2d):
            groups = groups_of(layer.out_channels) if self.norm == "group" else 1
            self.modules[f"norm{_number(name)}"] = nn.GroupNorm(groups, layer.out_channels)

    def network(self) -> nn.Sequential:
        return nn.Sequential(self.modules)


def _number(name: str) -> str:
    """conv12 -> 12"""
    return name.lstrip(string.ascii_lowercase)


def groups_of(channels: int) -> int:
    """The smallest number of groups of at most 8 channels, all of the same size."""
    return next(groups for groups in range(-(-channels // 8), channels + 1) if channels % groups == 0)


def size_behind(size: tuple[int, int], kernel: int, stride: int, padding: int, what: str) -> tuple[int, int]:
    """(height, width) behind a window. Raises ConfigurationError where nothing is left."""
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    if height < 1 or width < 1:
        raise ConfigurationError(
            f"images of {size[0]} x {size[1]} are too small for {what} with a window of {kernel}; "
            "use fewer layers, smaller windows or strides, or larger images (data.resize)."
        )
    return height, width


def whole_numbers(option: str, values: Any, example: str, *, at_least_one: bool = True) -> list[int]:
    """A list of positive whole numbers. Raises ConfigurationError."""
    fine = isinstance(values, Sequence) and not isinstance(values, str) and all(is_whole(value) for value in values)
    if not fine or (at_least_one and not values):
        raise ConfigurationError(
            f"network.{option} must be a list of positive numbers such as {example}, got {values!r}."
        )
    return list(values)


def whole_number(option: str, value: Any) -> int:
    """A positive whole number. Raises ConfigurationError."""
    if not is_whole(value):
        raise ConfigurationError(f"network.{option} must be a positive whole number, got {value!r}.")
    return int(value)


def is_positive(value: Any) -> bool:
    """A positive and finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def initialise(layer: nn.Linear | nn.Conv2d, init: Init) -> nn.Linear | nn.Conv2d:
    """The layer with its first weights: "torch" is torch's own; "paper" draws weights and biases from N(0, 4 / fan_in),
    as published with the authors' code of Peng et al. 2022 (W = randn * 2 / sqrt(n_in), the bias being the weight of a
    constant input 1, which counts towards n_in). Raises ConfigurationError for another word."""
    if init not in get_args(Init):
        raise ConfigurationError(f"network.init must be one of {', '.join(get_args(Init))}, got {init!r}.")
    if init == "paper":
        fan_in = layer.weight[0].numel() + (layer.bias is not None)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=2.0 / math.sqrt(fan_in))
    return layer
