"""A recurrent network that reads an image in bands of rows."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.networks.blocks import Builder, Init, initialise
from glr_lightning.networks.modules import Recurrence
from glr_lightning.validation import NonNegative, Positive, Size, checked


@checked
def rnn(
    *,
    image_shape: Sequence[int],
    classes: Size,
    rows: Size,
    hidden: Size,
    activation: nn.Module,
    readout: Literal["last", "all"] = "last",
    centre: float = 0.0,
    memory: NonNegative = 0.0,
    recurrent: NonNegative = 1.0,
    spread: Positive | None = None,
    init: Init = "torch",
    preprocess: nn.Module | None = None,
) -> nn.Sequential:
    """Build h_t = activation(linear([band t of the image, h_{t-1}])) - centre for every band, then linear -> logits.

    One linear layer is called at every step; noise enters each of its calls.

    Args:
        image_shape: (channels, height, width) of an input in [0, 1].
        classes: the number of logits.
        rows: of a band; the bands divide the height, and there are height / rows steps.
        hidden: the number of units of the state h.
        activation: of the states.
        readout: which states the logits read, the last one or all of them side by side.
        centre: subtracted from every activation; see `mlp`.
        memory: added to the first weight of each unit's own earlier state. It must outweigh what else reaches a
            unit for its state to last; a change of a state then stays one, where random recurrent weights make many
            of it at every step, and the loss says little about any of them.
        recurrent: factor of the other first weights of the earlier state, before `memory` is added.
        spread: the biases of the states start uniform in [-spread, spread]; None: as `init` has them.
        init: how the first weights are drawn; see `initialise`.
        preprocess: the first module, for the pixels.

    Raises:
        ConfigurationError: an option out of range, or bands that do not divide the height.
    """
    channels, height, width = image_shape
    if height % rows:
        fitting = ", ".join(str(number) for number in range(1, height + 1) if height % number == 0)
        raise ConfigurationError(
            f"network.rows={rows} does not divide the height {height} of the images; use one of {fitting}.",
            option="rows",
        )
    steps, pixels = height // rows, channels * rows * width
    layer = initialise(nn.Linear(pixels + hidden, hidden), init)
    with torch.no_grad():
        own = layer.weight[:, pixels:]
        own.mul_(recurrent).add_(memory * torch.eye(hidden))
    if spread is not None:
        assert layer.bias is not None
        nn.init.uniform_(layer.bias, -spread, spread)

    cell = Builder(activation, centre)
    cell.activated("linear1", layer)
    built = Builder(activation, preprocess=preprocess)
    built.add("recurrence", Recurrence(cell.network(), rows, steps, hidden, keep=readout == "all"))
    read = hidden * steps if readout == "all" else hidden
    built.add("linear2", initialise(nn.Linear(read, classes), init))
    return built.network()
