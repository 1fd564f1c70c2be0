"""What the passes of a network return."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class CleanPass:
    """A noise-free forward pass.

    Attributes:
        values: of every node.
        inputs, preactivations: of site i, [batch, ...] each.
        readout: [batch, ...], the value of `Graph.readout`.
        logits: [batch, classes].
    """

    values: list[Any]
    inputs: list[Tensor]
    preactivations: list[Tensor]
    readout: Tensor
    logits: Tensor


@dataclass(frozen=True)
class NoisySite:
    """Input, noise and pre-activations at one noisy site.

    Attributes:
        site: its number.
        x: the layer's input, [batch, ...] if nothing before it was noisy, else [copies * batch, ...].
        v0: the pre-activation without this site's noise, [1 or copies, batch, *site].
        v: the noisy pre-activation v0 + sigma z, [copies, batch, *site].
        z: the standardised noise, [copies, batch, *site].
    """

    site: int
    x: Tensor
    v0: Tensor
    v: Tensor
    z: Tensor


class NoisyPass(NamedTuple):
    """A pass with noise.

    Attributes:
        logits: [copies * batch, classes], copy-major.
        seen: what each noisy site saw.
        readout: the value of `Graph.readout`, [copies * batch, ...] or, below all noise, [batch, ...].
        values: of every node, with copies * batch rows behind the noise and batch rows elsewhere.
    """

    logits: Tensor
    seen: list[NoisySite]
    readout: Tensor
    values: list[Any]


class Shapes(NamedTuple):
    """Shapes of one sample.

    Attributes:
        nodes: of the value of each node, None where it is no tensor.
        sites: of the pre-activations at each site.
    """

    nodes: tuple[torch.Size | None, ...]
    sites: tuple[torch.Size, ...]
