"""What an attack can do, declared once above its function, and the checks of a threat function's parameters."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, ParamSpec, final, get_args

from annotated_types import Interval
from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import MOST, Checked, Count, checked_arguments, choice

P = ParamSpec("P")

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)
BlackBox = Literal["none", "transfer"]
BLACK_BOX: tuple[BlackBox, ...] = get_args(BlackBox)
"""What an attack may follow in place of the attacked network's gradient."""
WhiteBox = Literal["autograd", "straight_through", "likelihood_ratio"]
WHITE_BOX: tuple[WhiteBox, ...] = get_args(WhiteBox)
"""Where the gradient of the attacked network itself can come from."""
Source = Literal[BlackBox, WhiteBox]
GRADIENT_SOURCES: tuple[Source, ...] = get_args(Source)
ARGUMENTS = ("model", "x", "y", "random", "target")
"""What the evaluation hands to a threat function; its other arguments are parameters."""


@final
@dataclass(frozen=True)
class GradientOptions(Checked):
    """How an attack's gradients are computed.

    Attributes:
        smoothing: of straight-through slopes and of the likelihood ratio, see `attacks.input_gradient.scales`.
        copies: of the noise in a likelihood-ratio gradient, an even number.
        eot: where the network's own predictions are random, scores and gradients are means over at least this many
            noisy passes: the expectation over the transformation (Athalye, Engstrom, Ilyas & Kwok, ICML 2018).

    Raises:
        ConfigurationError: a value out of range.
    """

    smoothing: Annotated[float, Interval(ge=1e-6, le=1e6)] = 0.25
    copies: Annotated[int, Interval(ge=4, le=MOST)] = 64
    eot: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies % 2:
            raise ConfigurationError(f"copies must be an even number, got {self.copies}.", option="copies")


@final
@dataclass(frozen=True)
class AttackFacts:
    """What an attack's function can do.

    Attributes:
        norms: the norms in which its parameter `epsilon` can bound the change, the usual one first; empty for a
            function without that parameter.
        gradient_sources: where its gradient can come from, some of GRADIENT_SOURCES, the usual one first.
        searches: whether it follows the gradients or scores of the network it is given. Random points do not, and
            say nothing about robustness.
        requires: a package that has to be installed for it and is an extra of this one.
        images_at_once: the most images of a batch, for one that takes long over each; None for any number.

    Raises:
        ConfigurationError: an unknown norm or gradient source.
    """

    norms: tuple[str, ...] = ()
    gradient_sources: tuple[str, ...] = ("none",)
    searches: bool = True
    requires: str = ""
    images_at_once: int | None = None

    def __post_init__(self) -> None:
        for norm in self.norms:
            choice("norm", norm, NORMS)
        for source in self.gradient_sources:
            choice("gradient_source", source, GRADIENT_SOURCES)


def checked_parameters(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Check the parameters of every call of a threat function against their hints.

    Raises:
        ConfigurationError: (from the call) a parameter that its hint does not accept.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        parameters = {name: value for name, value in kwargs.items() if name not in ARGUMENTS}
        kwargs.update(checked_arguments(function, parameters))
        return function(*args, **kwargs)

    return call


def declare(facts: AttackFacts) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Mark a function as an attack with these facts, and check its parameters as `checked_parameters` does."""

    def mark(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            require_package(function, facts)
            return checking(*args, **kwargs)

        checking = checked_parameters(function)
        call.facts = facts  # type: ignore[attr-defined]  # no attribute of functions
        return call

    return mark


def require_package(function: Callable[..., Tensor], facts: AttackFacts) -> None:
    """Refuse an attack whose package is not installed.

    Raises:
        ConfigurationError: says what to install.
    """
    try:
        if facts.requires:
            importlib.import_module(facts.requires)
    except ImportError:
        name, extra = name_of(function), facts.requires
        raise ConfigurationError(
            f'{name} needs {extra}, which is not installed; run pip install "glr-lightning[{extra}]" (in a checkout '
            f'".[{extra}]"), or leave {name} out of threat=...'
        ) from None


def facts_of(function: Callable[..., Tensor]) -> AttackFacts:
    """The declared facts of an attack's function.

    Raises:
        ConfigurationError: the function is not declared to be an attack.
    """
    facts = getattr(function, "facts", None)
    if not isinstance(facts, AttackFacts):
        raise ConfigurationError(
            f"{name_of(function)} does not say what it can do as an attack; put "
            "@glr_lightning.threats.declare(AttackFacts(...)) above it.",
            option="function",
        )
    return facts


def name_of(function: Callable[..., Tensor]) -> str:
    """Return the name of a function, or what an object without one shows of itself."""
    return getattr(function, "__name__", repr(function))
