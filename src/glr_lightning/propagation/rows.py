"""Check on a batch that a graph is its network, and treats samples alike, each by itself, however many there are.

Modules have declared, known or probed facts; of the functions that a network calls by itself only its values tell. So
this looks at them, for networks that call any.
"""

from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.networks.modules import add_branches
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import facts_of
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.propagation.row_layout import repeated
from glr_lightning.propagation.values import CleanPass

SAMPLES, TOLERANCE, SHARE = 4, 1e-3, 0.01
"""Samples that are looked at; difference of two numbers, relative to the largest, that counts; and the share of such
numbers that rounding may cause, where something jumps."""


@torch.no_grad()
def require_rows(network: nn.Module, graph: Graph, x: Tensor) -> None:
    """Refuse a network that its graph misses, of which a function mixes samples, or fails for noise copies of a batch.

    Args:
        network: the network.
        graph: its graph.
        x: a batch [batch, ...].

    Raises:
        ConfigurationError: such a network, with the line of the function.
    """
    if x.shape[1:] in graph.checked:
        return
    modules = [module for node in graph.nodes for module in node.module.modules()]
    require_separate_samples([(m.name, m) for m in modules if isinstance(m, FunctionCall)])
    x = x[:SAMPLES]
    x = x.repeat(-(-2 // len(x)), *[1] * (x.dim() - 1))  # two samples at least
    facts = [facts_of(module) for module in modules]
    if not any(fact.draws or fact.couples for fact in facts):  # of modules, where an estimator allows them
        with torch.autocast(x.device.type, enabled=False):  # its rounding is another for other rows
            clean = graph.clean(x)
            _require_same(network(x), clean.logits, network)
            if any(_may_move_rows(node.module) for node in graph.nodes):
                _require_rows(graph, x, clean)
    graph.checked.add(x.shape[1:])


def _may_move_rows(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return module.start_dim == 0 if isinstance(module, nn.Flatten) else module.dim == 0
    return isinstance(module, FunctionCall) and module.function is not add_branches


def _require_same(own: Any, logits: Any, network: nn.Module) -> None:
    """Refuse a network whose graph returns other logits than itself."""
    if not isinstance(logits, Tensor) or _differ(own, logits):
        raise ConfigurationError(
            f"{type(network).__name__} returns other logits than the calls that were traced of it; its forward must "
            "not depend on the type of x, on hooks of the network itself, or on values that an in-place operation "
            "changes under another name.",
            option="network",
        )


def _require_rows(graph: Graph, x: Tensor, clean: CleanPass) -> None:
    _require_separate(graph, clean.values, graph.clean(torch.cat([x[:1], _mirrored(x)[1:]])).values)
    noise = {site: torch.zeros_like(torch.stack([v, v])) for site, v in enumerate(clean.preactivations)}
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
        if not isinstance(once, Tensor):
            continue
        rows = graph.rows_of(number)
        if _differ(once if rows is None else repeated(once, rows, 2), both):
            raise ConfigurationError(
                f"{graph.nodes[number].what} returns another value for noise copies of a batch, which are rows of one "
                "tensor; take the number of rows from the tensor that is reshaped (h.flatten(1), or h.shape[0]), and "
                "keep them first."
            )


def _mirrored(x: Tensor) -> Tensor:
    """Other inputs in the range of these: numbers of words stay such."""
    low, high = x.aminmax()
    return low + high - x if low < high else 1 - x


def _require_separate(graph: Graph, values: list[Any], others: list[Any]) -> None:
    """Refuse a node whose first sample changed with the other samples."""
    for number in sorted(graph.with_rows - {0}):
        one, other, rows = values[number], others[number], graph.rows_of(number)
        if not isinstance(one, Tensor):
            continue
        if rows is not None and one.dim() and one.shape == other.shape:
            one, other = (value.narrow(rows.axis, 0, rows.each) for value in (one, other))
        if _differ(one, other):
            raise ConfigurationError(
                f"{graph.nodes[number].what} couples the samples of a batch, or mixes them with another axis, which "
                "breaks an estimate from each sample's own loss; let it work sample by sample."
            )


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return True
    rounding = 8 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    a, b = a.double(), b.double()
    far = (a - b).abs() > max(TOLERANCE, rounding) * a.abs().amax().clamp_min(1e-30) if a.numel() else a.new_zeros(1)
    return bool(far.double().mean() > SHARE)
