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
_ARITHMETIC = ("add", "sub", "mul", "truediv", "div")


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
        self.name, self.function, self.args, self.options, self.line = name, function, tuple(args), options, line
        if facts is not None:
            self.facts = facts

    @property
    def kind(self) -> str:
        """What is called, for errors: the class of a module, or the line that calls the function."""
        return type(self.function).__name__ if isinstance(self.function, nn.Module) else self.line

    def forward(self, *values: Any) -> Any:
        """Call the function with these values in the slots."""
        return self.function(*_filled(self.args, values), **_filled(self.options, values))

    def extra_repr(self) -> str:
        """Return the function's name."""
        return self.name


def _filled(template: Any, values: Sequence[Any]) -> Any:
    """The template with each `Slot` replaced by its value."""
    if isinstance(template, Slot):
        return values[template.number]
    if isinstance(template, list | tuple):
        return type(template)([_filled(part, values) for part in template])
    if isinstance(template, dict):
        return {key: _filled(part, values) for key, part in template.items()}
    if isinstance(template, slice):
        return slice(*(_filled(part, values) for part in (template.start, template.stop, template.step)))
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
    if function is add_branches or any(
        getattr(place, name, None) is function for place in (torch, functional, operator, torch._C._nn, Tensor)
    ):
        given = [*args, *options.values()]
        once = values == 1 and sum(isinstance(part, Slot) for part in given) == 1  # h * h is not affine
        if name in CURVES:
            return ModuleFacts(elementwise=once)
        if name in STEPS and values == 1:
            return ModuleFacts(elementwise=True, jumps=True, flat=True)
        if name in SHAPES:
            return ModuleFacts(affine=True, isometry=True)
        if name in DRAWS and options.get("training", True):
            return ModuleFacts(draws=True)
        if name in ("truediv", "div") and isinstance(args[-1], Slot):
            return ModuleFacts(elementwise=once, jumps=True)  # a / x, at 0
        if name in _ARITHMETIC and all(isinstance(part, Slot | int | float) for part in given):
            return ModuleFacts(elementwise=values == 1, affine=once)
        if name in OTHERS and "rounding_mode" not in options:
            return ModuleFacts()
    return None if values == 1 else ModuleFacts(jumps=True, found="not known here")
