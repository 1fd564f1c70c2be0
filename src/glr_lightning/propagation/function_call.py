"""Functions that a traced network calls, such as `torch.cat`, as modules; and what is known of them."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_lightning.networks.modules import add_branches
from glr_lightning.propagation.probing import ModuleFacts

_CURVES = "relu relu6 sigmoid tanh exp sin cos abs neg softplus gelu silu elu selu leaky_relu hardtanh hardsigmoid mish"
_CURVES += " hardswish logsigmoid softsign tanhshrink softshrink celu square clone float double clamp"
_STEPS = "gt ge lt le eq ne sign floor ceil round heaviside"
_SHAPES = "flatten reshape view unflatten unsqueeze squeeze contiguous"
_OTHERS = "getitem chunk split unbind select narrow cat stack concat concatenate hstack vstack expand repeat"
_OTHERS += " pad permute transpose add sub mul truediv div matmul linear bmm mean sum amax amin maximum minimum"
_OTHERS += " einsum outer baddbmm where masked_fill"
_OTHERS += " softmax log_softmax logsumexp avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d"
_OTHERS += " layer_norm group_norm normalize prelu add_branches zeros ones zeros_like ones_like new_zeros"
_OTHERS += " new_ones full full_like getattr size"
_DRAWS = "rand randn randint rand_like randn_like randint_like bernoulli multinomial normal poisson"
_DRAWS += " dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout rrelu gumbel_softmax"
CURVES, STEPS, SHAPES, OTHERS, DRAWS = (
    frozenset(names.split()) for names in (_CURVES, _STEPS, _SHAPES, _OTHERS, _DRAWS)
)
"""Names of torch's functions and tensors' methods: elementwise and continuous; elementwise with steps; those that keep
every number of a sample; other continuous ones; random ones. What is in none of them is probed, or not known."""
SIZED = SHAPES | {"expand", "repeat", "zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_full"}
"""Those that take the sizes of what they return."""
ARITHMETIC = ("add", "sub", "mul", "truediv", "div")
_BY_NUMBER = (*ARITHMETIC, *STEPS, "where", "masked_fill", "maximum", "minimum", "add_branches")
_CATS = ("cat", "concat", "concatenate")


class Slot(NamedTuple):
    """The place of an earlier value among the arguments of a call."""

    number: int


class FunctionCall(nn.Module):
    """A call of a function, a tensor's method or a module, with its constant arguments.

    Args:
        name: of the function.
        function: what is called.
        args: its arguments, with a `Slot` for each value that `forward` takes; lists, tuples, dicts and slices are
            looked into.
        options: its arguments by keyword, likewise.
        facts: what is known of it; None: it is probed.
        line: where the network calls it, "file:line", for errors.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        options: dict[str, Any],
        facts: ModuleFacts | None,
        line: str = "",
    ) -> None:
        super().__init__()
        self.name, self.function, self.line = name, function, line
        self.args, self.options = tuple(_plain(part) for part in args), {k: _plain(part) for k, part in options.items()}
        self._open_args = tuple((place, part) for place, part in enumerate(self.args) if _is_open(part))
        self._open_options = {key: part for key, part in self.options.items() if _is_open(part)}
        if facts is not None:
            self.facts = facts

    @property
    def kind(self) -> str:
        """What is called, for errors: the class of a module, or the line that calls the function."""
        return type(self.function).__name__ if isinstance(self.function, nn.Module) else self.line

    def forward(self, *values: Any) -> Any:
        """Call the function with these values in the slots."""
        args = list(self.args)
        for place, part in self._open_args:
            args[place] = filled(part, values)
        return self.function(*args, **(self.options | filled(self._open_options, values)))

    def extra_repr(self) -> str:
        """Return the function's name."""
        return self.name


def _plain(template: Any) -> Any:
    """A template with Python's own lists in place of the tracer's, which the compiler does not take."""
    if isinstance(template, list):
        return [_plain(part) for part in template]
    if type(template) is tuple:
        return tuple(_plain(part) for part in template)
    return {key: _plain(part) for key, part in template.items()} if isinstance(template, dict) else template


def _is_open(template: Any) -> bool:
    """Whether a template holds a `Slot`."""
    if isinstance(template, Slot):
        return True
    if isinstance(template, slice):
        template = (template.start, template.stop, template.step)
    parts = template.values() if isinstance(template, dict) else template
    return isinstance(template, list | tuple | dict) and any(map(_is_open, parts))


def filled(template: Any, values: Sequence[Any]) -> Any:
    """Return the template with each `Slot` replaced by its value."""
    if isinstance(template, Slot):
        return values[template.number]
    if isinstance(template, list | tuple):
        return type(template)([filled(part, values) for part in template])
    if isinstance(template, dict):
        return {key: filled(part, values) for key, part in template.items()}
    if isinstance(template, slice):
        return slice(*(filled(part, values) for part in (template.start, template.stop, template.step)))
    return template


def facts_of_function(
    name: str, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], values: int
) -> ModuleFacts | None:
    """Return what is known of a function or method, None if it can be probed.

    Args:
        name: of the function.
        function: what is called.
        args: its arguments, as `FunctionCall` takes them.
        options: its arguments by keyword, likewise.
        values: the number of slots.
    """
    if _is_torchs(name, function):
        given = [*args, *options.values()]
        once = values == 1 and sum(isinstance(part, Slot) for part in given) == 1  # h * h is not affine
        if name in CURVES:
            return ModuleFacts(elementwise=once)
        if name in STEPS and values == 1:
            return ModuleFacts(elementwise=True, jumps=True, flat=True)
        if name in SHAPES:
            return ModuleFacts(affine=True, isometry=True)
        if name == "scaled_dot_product_attention":
            return ModuleFacts(draws=bool(options.get("dropout_p", args[4] if len(args) > 4 else 0.0)))
        if name in DRAWS and options.get("training", True):
            return ModuleFacts(draws=True)
        if name in ("truediv", "div") and isinstance(args[-1], Slot):
            return ModuleFacts(elementwise=once, jumps=True)  # a / x, at 0
        if name in ARITHMETIC and all(isinstance(part, Slot | int | float) for part in given):
            return ModuleFacts(elementwise=values == 1, affine=once)
        if name in OTHERS and "rounding_mode" not in options:
            return ModuleFacts()
    return None if values == 1 else ModuleFacts(jumps=True, found="not known here")


def _is_torchs(name: str, function: Callable[..., Any]) -> bool:
    """Whether a function is one of torch, of Python's operators or of this package that has this name."""
    places = (torch, functional, operator, torch._C._nn, Tensor)
    return function is add_branches or any(getattr(place, name, None) is function for place in places)


def works_by_number(call: FunctionCall) -> bool:
    """Whether each number of the result rests on those at its place in the values alone; smaller ones broadcast."""
    return call.name in _BY_NUMBER and _is_torchs(call.name, call.function)


def adds(call: FunctionCall) -> bool:
    """Whether a call adds two values to each other, or a constant to one, and no multiples of them."""
    if call.name not in ("add", "sub", "add_branches") or not _is_torchs(call.name, call.function):
        return False
    if call.options or len(call.args) != 2:
        return False
    one, other = call.args
    if isinstance(one, Slot) and isinstance(other, Slot):
        return one != other and call.name != "sub"
    return isinstance(one, Slot) or call.name != "sub"


def keeps_order(module: nn.Module) -> bool:
    """Whether the numbers of a sample stay as they are, in the same order, in another shape."""
    if isinstance(module, FunctionCall):
        return module.name in SHAPES and _is_torchs(module.name, module.function)
    return type(module) in (nn.Flatten, nn.Unflatten)


def parts_of_cat(call: FunctionCall) -> tuple[int, ...]:
    """Which values a call of `torch.cat` puts side by side along the first axis of a sample; none if it is another."""
    if call.name not in _CATS or not _is_torchs(call.name, call.function):
        return ()
    given = dict(zip(("tensors", "dim"), call.args, strict=False)) | call.options
    parts = given.get("tensors")
    if given.get("dim") not in (1, -1) or not isinstance(parts, list | tuple):
        return ()
    return tuple(part.number for part in parts) if all(isinstance(part, Slot) for part in parts) else ()
