"""Check on a batch that a traced network treats its samples alike, each by itself, however many there are.

Modules have declared, known or probed facts; of the functions that a network calls by itself only its values tell. So
this looks at them, for networks that call any.
"""

from typing import Any

import torch
from torch import Tensor

from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.networks.modules import add_branches
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.graph import Graph

SAMPLES, TOLERANCE, SHARE = 4, 1e-3, 0.01
"""Samples that are looked at; difference of two numbers, relative to the largest, that counts; and the share of such
numbers that rounding may cause, where something jumps."""


@torch.no_grad()
def require_rows(graph: Graph, x: Tensor) -> None:
    """Refuse a network of which a function mixes samples, or fails for several noise copies of a batch.

    Args:
        graph: the network.
        x: a batch [batch, ...].

    Raises:
        ConfigurationError: such a function, with its line.
    """
    if not any(isinstance(n.module, FunctionCall) and n.module.function is not add_branches for n in graph.nodes):
        return
    x = x[:SAMPLES]
    x = x.repeat(-(-2 // len(x)), *[1] * (x.dim() - 1))  # two samples at least
    clean = graph.clean(x)
    _require_separate(graph, clean.values, graph.clean(torch.cat([x[:1], 1 - x[1:]])).values)
    shapes = graph.shapes(x).sites
    noise = {site: x.new_zeros(2, len(x), *shape) for site, shape in enumerate(shapes)}
    try:
        twice = graph.noisy(clean, noise, [1.0] * len(noise), keep=True).values
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"the network fails for noise copies of a batch, {2 * len(x)} rows in place of {len(x)}: "
            f"{words_of(error)}; take the number of rows from the tensor that is reshaped (h.flatten(1), or "
            "h.shape[0]), and keep them first."
        ) from error
    for number in graph.behind(tuple(noise)):
        once, both = clean.values[number], twice[number]
        if isinstance(once, Tensor) and _differ(torch.cat([once, once]), both):
            raise ConfigurationError(
                f"{graph.nodes[number].what} returns another value for noise copies of a batch, which are rows of one "
                "tensor; take the number of rows from the tensor that is reshaped (h.flatten(1), or h.shape[0]), and "
                "keep them first."
            )


def _require_separate(graph: Graph, values: list[Any], others: list[Any]) -> None:
    """Refuse a node whose first sample changed with the other samples."""
    for number in sorted(graph.with_rows - {0}):
        one, other = values[number], others[number]
        if isinstance(one, Tensor) and (one.shape != other.shape or _differ(one[:1], other[:1])):
            raise ConfigurationError(
                f"{graph.nodes[number].what} couples the samples of a batch, which breaks an estimate from each "
                "sample's own loss; let it work sample by sample."
            )


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return True
    a, b = a.double(), b.double()
    far = (a - b).abs() > TOLERANCE * a.abs().amax().clamp_min(1e-30) if a.numel() else a.new_zeros(1)
    return bool(far.double().mean() > SHARE)
