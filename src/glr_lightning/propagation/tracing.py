"""Trace a network by torch.fx into the calls that it makes, in order."""

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.networks.modules import Recurrence, Residual
from glr_lightning.propagation import asked_values
from glr_lightning.propagation.asked_values import AnsweringTracer, recorded
from glr_lightning.propagation.layer_vjp import has_weights
from glr_lightning.propagation.module_facts import without_probe
from glr_lightning.propagation.network_state import unchanged
from glr_lightning.propagation.traced_nodes import OUT_OF_PLACE, Made, Node, nodes_of


class Trace(NamedTuple):
    """The calls that a network makes.

    Attributes:
        nodes: the calls; node 0 is the input.
        output: the number of the one that returns the logits.
        asked: whether the calls rest on the shape of the input.
    """

    nodes: tuple[Node, ...]
    output: int
    asked: bool


def trace(network: nn.Module) -> Trace:
    """Return the calls that a network makes.

    Modules that hold layers with weights, or piecewise-constant activations, are looked into; others are called.

    Raises:
        ConfigurationError: what cannot be traced, with the line. UnseenError: the network asks for the shape of its
            input, and none was seen (`asked_values.see`).
    """
    if not _is_entered(network):
        raise ConfigurationError(
            f"noise is injected into a network of layers, got {type(network).__name__} alone; put it into an "
            "nn.Sequential.",
            option="network",
        )
    _require_one_input(network)
    try:
        tracer = _Tracer()
        with unchanged(network) as made, recorded(tracer):
            graph = tracer.trace(network)
    except ConfigurationError:
        raise
    except Exception as error:  # of the tracer, or of the network's own code on a stand-in for a tensor
        raise ConfigurationError(
            f"{type(network).__name__} cannot be traced at {_line_of(error)}: {words_of(error)}; noise needs a network "
            "whose calls do not depend on the values of tensors: write it so, or move what is not a layer into a "
            "module without layers, which is called as it is.",
            option="network",
        ) from error
    for node in graph.nodes:
        _require_own_output(node)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return Trace(*nodes_of(network, graph, made), tracer.asked)


class _Tracer(AnsweringTracer):
    proxy_buffer_attributes = True  # a buffer is read in every pass

    def __init__(self) -> None:
        super().__init__()
        self.grad_mode = torch.is_grad_enabled()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The one input; the other arguments have their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def create_node(self, *args: Any, **options: Any) -> fx.Node:
        node = super().create_node(*args, **options)
        node.meta["line"] = _line()  # the tracer's own record of it imports the compiler
        if torch.is_grad_enabled() != self.grad_mode:
            raise ConfigurationError(
                f"the network switches the recording of gradients ({node.meta['line']}), which a trace does not see; "
                "freeze the layers in place of that (requires_grad=False), or use h.detach()."
            )
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.submodule_paths is None or m in self.submodule_paths:
            return super().call_module(m, forward, args, kwargs)
        if self.is_answering or _is_entered(m):  # made by `forward`, as self.layers[:2] is
            return forward(*args, **kwargs)
        if next(m.parameters(), None) is not None:
            raise ConfigurationError(f"forward makes a layer, {type(m).__name__} ({_line()}); make it in __init__.")
        return self.create_proxy("call_function", Made(m), args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_entered(m)


def _is_entered(module: nn.Module) -> bool:
    forward = type(module).forward
    if forward in (nn.Sequential.forward, Residual.forward, Recurrence.forward):
        return True
    if type(module).__module__.startswith("torch.") or without_probe(module) is not None or has_weights(module):
        return False
    inner = [part for part in module.modules() if part is not module]
    return any(has_weights(part) or isinstance(part, PiecewiseConstant) for part in inner)


def _require_one_input(network: nn.Module) -> None:
    """Refuse a network that must be given more than x. Raises ConfigurationError."""
    _, *others = inspect.signature(network.forward).parameters.values()
    for other in others:
        if other.default is other.empty and other.kind not in (other.VAR_POSITIONAL, other.VAR_KEYWORD):
            raise ConfigurationError(
                f"the network must take one input x, and it takes '{other.name}' as well; give that a default value.",
                option="network",
            )


def _require_own_output(node: fx.Node) -> None:
    """Refuse a call that writes into its input. Raises ConfigurationError."""
    if node.op not in ("call_function", "call_method") or node.target in OUT_OF_PLACE:
        return
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    writes = node.kwargs.get("inplace") or node.kwargs.get("out") is not None or name == "setitem"
    if writes or (name.endswith("_") and not name.endswith("__")):
        raise ConfigurationError(
            f"'{name}' ({node.meta['line']}) writes into its input, which may be the pre-activation that noise is "
            "added to; use its form that returns a new tensor."
        )


_OWN = (__file__, asked_values.__file__)


def _line() -> str:
    """Where a network makes the present call: the innermost line that is neither torch's nor of this file."""
    for frame, number in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if file == __file__ and frame.f_code.co_name == trace.__name__:
            break
        if not _is_torchs(file) and file not in _OWN:
            return f"{Path(file).name}:{number}"
    return "a line of torch"


def _line_of(error: Exception) -> str:
    """Where in a network's code an error was raised, with the code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_torchs(f.filename)]
    frames = [frame for frame in frames if frame.filename not in _OWN]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} ({frames[-1].line})" if frames else "its first line"


def _is_torchs(file: str) -> bool:
    return Path(file).is_relative_to(Path(torch.__file__).parent)
