"""Multi-layer perceptrons."""

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError

Init = Literal["torch", "paper"]


def mlp(
    *,
    image_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int],
    activation: nn.Module,
    centre: float = 0.0,
    bias: bool | Sequence[bool] = True,
    init: Init = "torch",
) -> nn.Sequential:
    """Flatten -> (linear -> activation -> centre) x hidden -> linear, as a plain nn.Sequential.

    Args:
        image_shape: (channels, height, width) of an input in [0, 1].
        classes: the number of logits.
        hidden: widths of the hidden layers.
        activation: copied after every hidden layer.
        centre: subtracted from every activation before the next layer reads it. The next bias can absorb it, so
            the network can represent the same functions; but with 0-valued and 1-valued features (centre 0) the
            noise of a gradient moves all of a class's weights together. Cross-entropy pulls a class back that
            drifts away so; 0-1 loss does not, and may never predict that class again. 0.5 for sigmoid and
            threshold prevents it.
        bias: for all layers, or one per layer (hidden layers, then the logit layer).
        init: "torch" is torch's own; "paper" draws weights and biases from N(0, 4 / fan_in), as published with
            the authors' code of Peng et al. 2022 (W = randn * 2 / sqrt(n_in), the bias being the weight of a
            constant input 1, which counts towards n_in).

    Raises:
        ConfigurationError: a width below 1, a bias list of the wrong length, an unknown init.
    """
    if not isinstance(hidden, Sequence) or isinstance(hidden, str) or not all(_is_width(width) for width in hidden):
        raise ConfigurationError(f"network.hidden must be a list of positive widths such as [50], got {hidden!r}.")
    widths = [math.prod(image_shape), *hidden, classes]
    biases = [bias] * (len(widths) - 1) if isinstance(bias, bool) else list(bias)
    if len(biases) != len(widths) - 1:
        raise ConfigurationError(
            f"network.bias has {len(biases)} values but the network has {len(widths) - 1} layers; "
            "give true, false, or one value per layer."
        )
    if isinstance(centre, bool) or not isinstance(centre, int | float) or not math.isfinite(centre):
        raise ConfigurationError(f"network.centre must be a number such as 0.5, or 0 for none, got {centre!r}.")
    if init not in get_args(Init):
        raise ConfigurationError(f"network.init must be one of {', '.join(get_args(Init))}, got {init!r}.")

    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    pairs = list(itertools.pairwise(widths))
    for number, ((fan_in, fan_out), with_bias) in enumerate(zip(pairs, biases, strict=True), start=1):
        linear = nn.Linear(fan_in, fan_out, bias=with_bias)
        if init == "paper":
            _paper_init(linear)
        layers[f"linear{number}"] = linear
        if number < len(pairs):
            layers[f"activation{number}"] = copy.deepcopy(activation)
            if centre:
                layers[f"centre{number}"] = Shift(-centre)
    return nn.Sequential(layers)


class Shift(nn.Module):
    """x + offset; no parameters."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset

    def extra_repr(self) -> str:
        return f"{self.offset:+g}"


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _paper_init(layer: nn.Linear) -> None:
    fan_in = layer.in_features + (layer.bias is not None)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=2.0 / math.sqrt(fan_in))
