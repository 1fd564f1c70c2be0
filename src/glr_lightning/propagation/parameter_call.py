"""Calls in which a network reads parameters by itself, as layers: h @ self.w + self.b, functional.linear(h, self.w).

Noise enters behind such a call as it does behind a layer, and the gradient of the parameters is the vector-Jacobian
product of this one call.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.function_call import ARITHMETIC, CURVES, OTHERS, SHAPES, Slot, filled
from glr_lightning.propagation.layer_vjp import rows_of, weight_vjp
from glr_lightning.propagation.probing import ModuleFacts

AFFINE = frozenset(("linear", "matmul", "mm", "addmm", "conv1d", "conv2d", "conv3d", "add", "sub", "mul"))
"""Functions that are affine in what stands once among their arguments."""


class Call(NamedTuple):
    """A call of a function: its arguments have a `Slot` for each of `values`, which are x, parameters, or results."""

    name: str
    function: Callable[..., Any]
    args: Any
    options: Any
    values: tuple[str | int, ...]
    line: str


class ParameterCall(nn.Module):
    """v = f(x; theta), with theta some parameters of a network.

    Args:
        calls: one after another; a value "" is x, a name a parameter's, a number an earlier result.
        owners: the modules that hold the parameters, and the names that these have there, by the network's names.
    """

    def __init__(self, calls: Sequence[Call], owners: Mapping[str, tuple[nn.Module, str]]) -> None:
        super().__init__()
        self.calls = tuple(calls)
        # a reference to an owner would keep a network alive that knows its graph
        self.owners = {name: (weakref.ref(owner), own) for name, (owner, own) in owners.items()}
        once = all(call.values.count("") <= 1 for call in calls)
        self.facts = ModuleFacts(affine=once and all(call.name in AFFINE for call in calls))

    @property
    def kind(self) -> str:
        """Where it is called, for errors."""
        return self.calls[-1].line

    @property
    def weight(self) -> Tensor:
        """The first of the parameters."""
        return next(self.parameters())

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the network's parameters that are read, by the network's names."""
        for name, (owner, own) in self.owners.items():
            yield name, getattr(owner(), own)

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x; theta)."""
        return self.of(dict(self.named_parameters()), x)

    def of(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return f(x; theta) for these parameters."""
        results: list[Any] = []
        for call in self.calls:
            values = [
                results[place] if isinstance(place, int) else parameters[place] if place else x for place in call.values
            ]
            results.append(call.function(*filled(call.args, values), **filled(call.options, values)))
        return results[-1]  # type: ignore[no-any-return]


@weight_vjp.register
def _(layer: ParameterCall, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """By reverse mode through the call."""
    own = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    v, pull = torch.func.vjp(lambda parameters: layer.of(parameters, x), own)[:2]
    gradients: dict[str, Tensor] = pull(rows_of(x, signal).to(v.dtype))[0]
    return gradients


# ---- from the record of a trace --------------------------------------------------------------------------------------

_KNOWN = AFFINE | CURVES | SHAPES | OTHERS | {"embedding", "rms_norm", "bilinear", "conv_transpose2d"}
_FACTS = ("dtype", "device", "shape", "ndim")


@dataclass(frozen=True)
class Reading:
    """What a node of a trace makes of parameters, and of at most one other value.

    Attributes:
        calls: that lead to it.
        owners: of the parameters, as for `ParameterCall`.
        result: a name or a number, as for `Call.values`.
        data: the node of the other value, None: there is none.
        extends: the node of a reading that is a part of this one, as h @ w is of h @ w + b.
    """

    calls: tuple[Call, ...]
    owners: dict[str, tuple[nn.Module, str]]
    result: str | int
    data: fx.Node | None = None
    extends: fx.Node | None = None


def is_asked(node: fx.Node) -> bool:
    """Whether a node is a tensor of the network of which facts are asked, such as its shape."""
    return node.op == "get_attr" and any(map(_asks, node.users))


def reading_of(
    network: nn.Module, node: fx.Node, readings: Mapping[fx.Node, Reading], function_of: Callable[[fx.Node], Any]
) -> Reading | None:
    """What a node makes of trained parameters that the network reads by itself, None if of none.

    Args:
        network: the network.
        node: the node.
        readings: of the nodes before it.
        function_of: the name and function that a node calls.

    Raises:
        ConfigurationError: more than one tensor is taken beside the parameters, or a derivative may be missing.
    """
    if node.op == "get_attr":
        name = str(node.target)
        owner, _, own = name.rpartition(".")
        module = network.get_submodule(owner)
        value = getattr(module, own, None)
        trained = isinstance(value, nn.Parameter) and value.requires_grad
        return Reading((), {name: (module, own)}, name) if trained and not all(map(_asks, node.users)) else None
    inputs = node.all_input_nodes
    parts = {part: readings[part] for part in inputs if part in readings and readings[part].data is None}
    if not parts or _asks(node):
        return None
    others = [part for part in inputs if part not in parts]
    called = node.op in ("call_function", "call_method")
    name, function = function_of(node) if called else (str(node.target), None)
    if function is None or len(others) > 1 or (others and (_is_size(others[0]) or name not in _KNOWN)):
        names = ", ".join(f"'{own}'" for part in parts.values() for own in part.owners)
        raise ConfigurationError(
            f"the network reads its parameter {names} by itself ({node.meta['line']}), and '{name}' is no function "
            "that is known to be smooth, or takes other than one tensor beside it (for rows write "
            "self.w + x.new_zeros(x.shape[0], 1)); put it into a layer, or freeze it (requires_grad=False)."
        )
    data = others[0] if others else None
    if data is not None and data in readings and name in ARITHMETIC and list(data.users) == [node]:
        joined = _joined(node, name, function, {data: readings[data], **parts})
        return replace(joined, data=readings[data].data, extends=data)
    return replace(_joined(node, name, function, parts), data=data)


def _joined(node: fx.Node, name: str, function: Callable[..., Any], parts: Mapping[fx.Node, Reading]) -> Reading:
    """The calls of the readings among a node's inputs, one after another, and then its own."""
    calls: list[Call] = []
    results: dict[fx.Node, str | int] = {}
    owners: dict[str, tuple[nn.Module, str]] = {}
    for part, reading in parts.items():
        first = len(calls)
        results[part] = _shifted(reading.result, first)
        calls += [call._replace(values=tuple(_shifted(v, first) for v in call.values)) for call in reading.calls]
        owners |= reading.owners
    inputs = node.all_input_nodes
    given: Any = fx.node.map_arg((node.args, node.kwargs), lambda part: Slot(inputs.index(part)))
    args, options = given
    values = tuple(results.get(part, "") for part in inputs)
    calls.append(Call(name, function, args, options, values, node.meta["line"]))
    return Reading(tuple(calls), owners, len(calls) - 1)


def _shifted(value: str | int, first: int) -> str | int:
    """A value of `Call.values` behind `first` other calls: the numbers of results grow, names stay."""
    return value if isinstance(value, str) else value + first


def _asks(node: fx.Node) -> bool:
    """Whether a node asks for facts about a tensor that are no numbers of it."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    return node.target is getattr and node.args[1] in _FACTS


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a shape, or calculated from shapes alone."""
    inputs = node.all_input_nodes
    return _asks(node) or (node.op == "call_function" and bool(inputs) and all(map(_is_size, inputs)))
