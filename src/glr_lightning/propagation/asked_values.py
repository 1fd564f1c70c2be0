"""What Python asks of the stand-ins for tensors while a network is traced: lengths, shapes, whether a branch is taken.

A trace records calls and computes nothing. Where the code needs an answer at once, as in `for t in range(x.shape[1])`,
the calls that lead to it are made of tensors without values (torch's meta device), for two numbers of rows. An answer
that is the same for both is a constant of the network for inputs of this shape; one that rests on the rows is not, for
noise copies are more rows, and one that rests on values there is none.
"""

import builtins
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from glr_lightning.errors import ConfigurationError

ROWS = (11, 13)
"""Two numbers of rows that no size within a sample is likely to be."""
_MAKERS = "zeros ones empty full eye arange linspace"
"""Functions of torch that take sizes alone, and do not see that one of them is a stand-in."""
_Function: Any = torch.autograd.Function
_DEVICES = ("device", "is_cuda", "is_cpu", "is_mps")


class Like(NamedTuple):
    """The shape of a sample, and the type, of the inputs of a network."""

    shape: torch.Size
    dtype: torch.dtype


_seen: WeakKeyDictionary[nn.Module, tuple[Like, torch.device]] = WeakKeyDictionary()


def see(network: nn.Module, x: Tensor) -> None:
    """Keep what the inputs of a network are like; x [batch, ...]."""
    _seen[network] = (like(x), x.device)


def seen(network: nn.Module) -> Like | None:
    """What the inputs of a network are like, None if none was seen."""
    return _seen[network][0] if network in _seen else None


def like(x: Tensor) -> Like:
    """What a batch [batch, ...] is like."""
    return Like(x.shape[1:], x.dtype)


class UnseenError(ConfigurationError):
    """The network's code asks for the shape of its input, and no input was seen yet."""


class StandIn(fx.Proxy):
    """A tensor, a shape or a number of a traced network; it answers what its tracer knows."""

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)

    def __index__(self) -> int:
        return self.tracer.answer(self).__index__()  # type: ignore[no-any-return]

    def __int__(self) -> int:
        return int(self.tracer.answer(self))

    def __float__(self) -> float:
        return float(self.tracer.answer(self))

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "it writes into a tensor, of which a pass keeps the old value; join parts by torch.cat or torch.stack, "
            "choose by torch.where"
        )


class _Attribute(fx.proxy.Attribute, StandIn):
    """An attribute of a stand-in, or a method until it is called."""


class AnsweringTracer(fx.Tracer):
    """A tracer whose stand-ins answer.

    Attributes:
        asked: whether an answer rested on the shape of the input.
        is_answering: whether calls are made for an answer, and not recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.is_answering = False

    def proxy(self, node: fx.Node) -> StandIn:
        """Return the stand-in for a node."""
        return StandIn(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer `if obj`."""
        return bool(self.answer(obj))

    def iter(self, obj: Any) -> Iterator[Any]:
        """Answer `for part in obj`."""
        return (obj[i] for i in range(self.length(obj).__index__()))

    def length(self, obj: fx.Proxy) -> Any:
        """len(obj): a number, or where it is the number of rows, a stand-in for it."""
        first, second = self._values(obj.node)
        if len(first) == len(second):
            return len(first)
        return obj.size(0)

    def answer(self, obj: fx.Proxy) -> Any:
        """The value of a stand-in that is no tensor, and is the same for any number of rows."""
        first, second = self._values(obj.node)
        if isinstance(first, Tensor):
            raise TypeError("it asks for the value of a tensor")
        if first != second:
            raise TypeError("it asks for the number of rows, which noise copies multiply")
        return first

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the call of a module, or make it for an answer."""
        return forward(*args, **kwargs) if self.is_answering else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record that an attribute is read, or read it for an answer."""
        return attr_val if self.is_answering else super().getattr(attr, attr_val, parameter_proxy_cache)

    @torch.no_grad()
    def _values(self, node: fx.Node) -> list[Any]:
        """The values of a node without numbers, for both numbers of rows."""
        if self.root not in _seen:
            raise UnseenError(
                f"{type(self.root).__name__} asks for the shape of its input ({node.meta['line']}), and none was seen "
                "yet; give some: estimator.check(network, loss, x)."
            )
        self.asked = self.is_answering = True
        try:
            needed = {node}
            for earlier in reversed(node.graph.nodes):
                if earlier in needed and "values" not in earlier.meta:
                    needed.update(earlier.all_input_nodes)
            for earlier in node.graph.nodes:
                if earlier in needed and "values" not in earlier.meta:
                    earlier.meta["values"] = [self._value(earlier, number) for number in range(len(ROWS))]
        finally:
            self.is_answering = False
        return node.meta["values"]  # type: ignore[no-any-return]

    def _value(self, node: fx.Node, number: int) -> Any:
        seen, device = _seen[self.root]
        if node.op == "placeholder":
            return torch.empty((ROWS[number], *seen.shape), dtype=seen.dtype, device="meta")
        if node.op == "get_attr":
            return _without_values(functools.reduce(getattr, str(node.target).split("."), self.root))
        given: Any = fx.node.map_aggregate(
            (node.args, node.kwargs),
            lambda value: value.meta["values"][number] if isinstance(value, fx.Node) else _without_values(value),
        )
        args, options = given
        if node.target is builtins.getattr and args[1] in _DEVICES:
            return getattr(torch.empty(0, device=device), args[1])
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **options)
        if node.op == "call_function":
            return node.target(*args, **options)  # type: ignore[operator]
        module = self.root.get_submodule(str(node.target))
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return functional_call(module, {name: _without_values(value) for name, value in tensors.items()}, args, options)


def _without_values(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


@contextlib.contextmanager
def recorded(tracer: AnsweringTracer) -> Iterator[None]:
    """Record calls that do not see a stand-in among their arguments: `len`, torch's makers, functions of one's own."""
    length, apply = builtins.len, vars(_Function)["apply"]

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if _holds_stand_in([*args, *options.values()]):
                return tracer.create_proxy("call_function", function, args, options)
            return function(*args, **options)

        return call

    changed: list[tuple[Any, str, Any]] = [(torch, name, recording(getattr(torch, name))) for name in _MAKERS.split()]
    changed.append((builtins, "len", lambda v: tracer.length(v) if isinstance(v, StandIn) else length(v)))
    own = classmethod(lambda kind, *args: recording(apply.__get__(None, kind))(*args))
    changed.append((_Function, "apply", own))
    with contextlib.ExitStack() as stack:
        for place, name, value in changed:
            stack.callback(setattr, place, name, vars(place)[name])
            setattr(place, name, value)
        yield


def _holds_stand_in(values: Any) -> bool:
    return isinstance(values, StandIn) or (isinstance(values, list | tuple) and any(map(_holds_stand_in, values)))
