"""The calls that a network makes, from the record of its trace."""

import functools
import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.function_call import FunctionCall, Slot, facts_of_function
from glr_lightning.propagation.module_facts import without_probe
from glr_lightning.propagation.parameter_call import ParameterCall, Reading, is_asked, reading_of
from glr_lightning.propagation.probing import ModuleFacts

OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}
"""`h += g` of a traced network, as h = h + g: the value that was there may be a pre-activation that a pass keeps."""


@dataclass(frozen=True, eq=False)
class Node:
    """A call that a network makes.

    Attributes:
        name: of the module in the network, or of the function.
        module: what is called; a function is a `FunctionCall`.
        inputs: the numbers of the nodes whose values it takes.
        line: where the network calls it, "file:line", for errors.
    """

    name: str
    module: nn.Module
    inputs: tuple[int, ...]
    line: str

    @property
    def what(self) -> str:
        """The call in an error."""
        if isinstance(self.module, FunctionCall):
            return f"'{self.module.name}' ({self.line})"
        return f"'{self.name}' ({type(self.module).__name__})"


class Made:
    """A module that a network makes in its forward pass, as a function."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.__name__ = type(module).__name__

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the module."""
        return self.module(*args, **options)


def nodes_of(network: nn.Module, graph: fx.Graph, made: dict[str, Any]) -> tuple[tuple[Node, ...], int]:
    """The calls in order, and the number of the one that returns the logits.

    Args:
        network: the network.
        graph: the record of its trace.
        made: tensors that it made by itself, by their names in the record.

    Raises:
        ConfigurationError: what the network returns, or how it reads a parameter by itself, cannot be handled.
    """
    number: dict[fx.Node, int] = {}
    nodes: list[Node] = []
    readings: dict[fx.Node, Reading] = {}
    for node in graph.nodes:
        line: str = node.meta.get("line", "")
        if node.op == "output":
            (value,) = node.args
            if not isinstance(value, fx.Node) or value not in number:
                kind = "a parameter" if isinstance(value, fx.Node) else f"{type(value).__name__} of values"
                raise ConfigurationError(
                    f"the network must return logits [batch, classes], got {kind}; return the logits alone.",
                    option="network",
                )
            return tuple(nodes), number[value]
        reading = reading_of(network, node, readings, function_of)
        if reading is not None:
            readings[node] = reading
        if node.op == "placeholder":
            nodes.append(Node("x", nn.Identity(), (), line))
        elif reading is None or is_asked(node):
            nodes.append(_call(network, node, number, made))
        elif reading.data is None:
            continue  # of parameters alone
        else:
            call = ParameterCall(reading.calls, reading.owners)
            nodes.append(Node(", ".join(reading.owners), call, (number[reading.data],), line))
        number[node] = len(nodes) - 1
        if reading is not None and reading.extends is not None:  # h @ w + b in the place of h @ w, which only it reads
            number[node] = number[reading.extends]
            nodes[number[node]] = nodes.pop()
    raise AssertionError("a graph ends with its output")


def _constant(value: Any) -> Any:
    return value


def _call(network: nn.Module, node: fx.Node, number: dict[fx.Node, int], made: dict[str, Any]) -> Node:
    """The node of a module, function, method or attribute."""
    line: str = node.meta["line"]
    if node.op == "get_attr" and node.target in made:
        constant = FunctionCall(str(node.target), _constant, (made[str(node.target)],), {}, ModuleFacts(), line)
        return Node(str(node.target), constant, (), line)
    if node.op == "get_attr":
        return _attribute(network, node, line)
    inputs: list[fx.Node] = []

    def slot(value: fx.Node) -> Slot:
        if value not in inputs:
            inputs.append(value)
        return Slot(inputs.index(value))

    args: Any = fx.node.map_arg(node.args, slot)
    options: Any = fx.node.map_arg(node.kwargs, slot)
    places = tuple(number[value] for value in inputs)
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if [*args, *options.values()] == [Slot(0)]:
            return Node(str(node.target), module, places, line)
        own = without_probe(module) or ModuleFacts(jumps=True, found="not known here")
        return Node(str(node.target), FunctionCall(str(node.target), module, args, options, own, line), places, line)
    name, function = function_of(node)
    facts = facts_of_function(name, function, args, options, len(inputs))
    if isinstance(node.target, Made):
        function, facts = node.target.module, without_probe(node.target.module)
    return Node(name, FunctionCall(name, function, args, options, facts, line), places, line)


def function_of(node: fx.Node) -> tuple[str, Callable[..., Any]]:
    """The function or method that a node calls, with its name."""
    if node.op == "call_method":
        name = str(node.target)
        function = getattr(torch.Tensor, name, None)
        if callable(function):
            return name, function
        return name, functools.partial(_method, name)  # of a tuple, say; an unbound method of whatever the value is
    assert callable(node.target)
    function = OUT_OF_PLACE.get(node.target, node.target)
    return function.__name__, function


def _method(name: str, value: Any, *args: Any, **options: Any) -> Any:
    return getattr(value, name)(*args, **options)


def _attribute(network: nn.Module, node: fx.Node, line: str) -> Node:
    """A tensor of a module that the network reads itself."""
    owner, _, name = str(node.target).rpartition(".")
    module = network.get_submodule(owner)
    # a reference to the owner would keep a network alive that knows its graph
    read = functools.partial(_read, weakref.ref(module), name)
    return Node(str(node.target), FunctionCall(str(node.target), read, (), {}, ModuleFacts(), line), (), line)


def _read(owner: "weakref.ref[nn.Module]", name: str) -> Any:
    return getattr(owner(), name)
