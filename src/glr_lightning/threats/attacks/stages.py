"""A network as dense affine maps with piecewise-constant activations or ReLU between them."""

import copy
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.asked_values import see
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import facts_of

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Stage:
    """An affine map and the activation behind it: h = activation(weight h' + bias).

    Attributes:
        weight: [units, inputs].
        bias: [units].
        activation: a `PiecewiseConstant`, `nn.ReLU`, or None at the logits.
    """

    weight: Array
    bias: Array
    activation: nn.Module | None


@torch.no_grad()
def stages_of(network: nn.Module, shape: torch.Size) -> list[Stage]:
    """Read a network as affine maps and activations, for images of a shape [C, H, W]; each map is a dense matrix.

    Raises:
        ConfigurationError: the network is no chain of affine layers with piecewise-constant or ReLU activations.
    """
    network = copy.deepcopy(network).cpu().double().eval()
    see(network, torch.zeros(1, *shape, dtype=torch.float64))
    graph = Graph.of(network)
    stages: list[Stage] = []
    start, size = 0, shape
    while True:
        number = start
        while (user := graph.only_user(number)) is not None:
            node = graph.nodes[user]
            if len(node.inputs) != 1:
                raise _refused(f"{node.what} reads several values")
            if not facts_of(node.module).affine:
                break
            number = user
        weight, bias, after = _affine(graph, start, number, size)
        if number == graph.output:
            return [*stages, Stage(weight, bias, None)]
        if user is None:
            raise _refused(f"the value of {graph.nodes[number].what} is read several times")
        activation = graph.nodes[user].module
        if not isinstance(activation, PiecewiseConstant | nn.ReLU):
            raise _refused(f"{graph.nodes[user].what} is neither affine nor piecewise constant nor ReLU")
        stages.append(Stage(weight, bias, activation))
        start, size = user, after


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the exact verifier takes chains of affine layers with piecewise-constant activations or ReLU, and {why}; "
        "leave threat=exact out: the worst case of attacks is an upper bound.",
        option="threat.exact",
    )


def _affine(graph: Graph, start: int, end: int, shape: torch.Size) -> tuple[Array, Array, torch.Size]:
    """The matrix and offset of the nodes behind `start` up to `end`, and the shape of their value."""
    inputs = torch.cat([torch.zeros(1, shape.numel()), torch.eye(shape.numel())]).double().view(-1, *shape)
    values: list[Any] = [None] * len(graph.nodes)
    values[start] = value = inputs
    number = start
    while number != end:
        number = graph.users[number][0]
        values[number] = value = graph.nodes[number].module(values[graph.nodes[number].inputs[0]])
    flat = value.flatten(1).numpy()
    return (flat[1:] - flat[0]).T.copy(), flat[0].copy(), value.shape[1:]
