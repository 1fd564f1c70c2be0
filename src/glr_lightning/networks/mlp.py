"""Multi-layer perceptrons."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from torch import nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.networks.blocks import Builder, Init, Widths, initialise
from glr_lightning.validation import Positive, ReadIf, Size, checked


@checked
def mlp(
    *,
    image_shape: Sequence[int],
    classes: Size,
    hidden: Widths,
    activation: Annotated[nn.Module, ReadIf("hidden")],
    centre: Annotated[float, ReadIf("hidden")] = 0.0,
    bias: bool | Sequence[bool] = True,
    init: Init = "torch",
    spread: Annotated[Positive | Sequence[Positive | None] | None, ReadIf("hidden")] = None,
    preprocess: nn.Module | None = None,
) -> nn.Sequential:
    """Build flatten -> (linear -> activation -> centre) x hidden -> linear, as a plain nn.Sequential.

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
        init: how the first weights are drawn; see `initialise`.
        spread: the biases of the hidden layers start uniform in [-spread, spread], one value or one per hidden layer;
            None: as `init` has them. A centred network with small biases is nearly an odd function of its centred
            input, whatever its weights, and an image and its negative show the same thing.
        preprocess: the first module, for the pixels.

    Raises:
        ConfigurationError: an option out of range, a list of biases or spreads of the wrong length, or a spread of
            biases that are not there.
    """
    widths = [math.prod(image_shape), *hidden, classes]
    biases = [bias] * (len(widths) - 1) if isinstance(bias, bool) else list(bias)
    if len(biases) != len(widths) - 1:
        raise ConfigurationError(
            f"network.bias has {len(biases)} values but the network has {len(widths) - 1} layers; "
            "give true, false, or one value per layer.",
            option="bias",
        )
    spreads = list(spread) if isinstance(spread, Sequence) else [spread] * len(hidden)
    if len(spreads) != len(hidden):
        raise ConfigurationError(
            f"network.spread has {len(spreads)} values but the network has {len(hidden)} hidden layers; give null, a "
            "positive number, or one for each.",
            option="spread",
        )
    without = [at for at, (s, with_bias) in enumerate(zip(spreads, biases, strict=False), 1) if s and not with_bias]
    if isinstance(spread, Sequence) and without:
        raise ConfigurationError(
            f"network.spread gives hidden layer {without[0]} a range for its bias, but network.bias gives it none; "
            "write null in its place, or give it a bias.",
            option="spread",
        )
    if isinstance(spread, float | int) and len(without) == len(hidden):
        raise ConfigurationError(
            f"network.spread={spread} has no effect: no hidden layer has a bias; use network.spread=null, or give a "
            "hidden layer a bias.",
            option="spread",
        )

    built = Builder(activation, centre, preprocess)
    built.add("flatten", nn.Flatten())
    *below, last = enumerate(zip(itertools.pairwise(widths), biases, strict=True), start=1)
    for number, ((fan_in, fan_out), with_bias) in below:
        linear = initialise(nn.Linear(fan_in, fan_out, bias=with_bias), init)
        bound = spreads[number - 1]
        if linear.bias is not None and bound is not None:
            nn.init.uniform_(linear.bias, -bound, bound)
        built.activated(f"linear{number}", linear)
    number, ((fan_in, fan_out), with_bias) = last
    built.add(f"linear{number}", initialise(nn.Linear(fan_in, fan_out, bias=with_bias), init))
    return built.network()
