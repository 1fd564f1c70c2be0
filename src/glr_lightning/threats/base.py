"""What a threat is to the evaluation: a function, levels to run it at, and facts that its rows must carry."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, final

from torch import Tensor

from glr_lightning.errors import ConfigurationError

KINDS = ("clean", "corruption", "attack")
GRADIENT_SOURCES = ("none", "transfer", "autograd", "straight_through", "likelihood_ratio")
NORMS = ("", "linf", "l2")

Parameters = Mapping[str, Any]


@final
@dataclass(frozen=True)
class GradientOptions:
    """How an attack's gradients are computed.

    smoothing: of straight-through slopes and of the likelihood ratio, see `threats.gradient.scales`.
    copies: of the noise in a likelihood-ratio gradient, even and at least 4.
    eot: where a network's own predictions are random, scores and gradients are means over at least so many noisy
        passes: the expectation over the transformation (Athalye, Engstrom, Ilyas & Kwok, ICML 2018).

    Raises ConfigurationError for anything out of range.
    """

    smoothing: float = 0.25
    copies: int = 64
    eot: int = 8

    def __post_init__(self) -> None:
        if not (isinstance(self.smoothing, int | float) and 1e-6 <= self.smoothing <= 1e6):
            raise ConfigurationError(f"smoothing must be a number from 1e-6 to 1e6, got {self.smoothing!r}.")
        if not (isinstance(self.copies, int) and 4 <= self.copies <= 10**6 and self.copies % 2 == 0):
            raise ConfigurationError(f"copies must be an even number of at least 4, got {self.copies!r}.")
        if not (isinstance(self.eot, int) and 1 <= self.eot <= 10**6):
            raise ConfigurationError(f"eot must be a whole number of at least 1, got {self.eot!r}.")


@final
@dataclass(frozen=True)
class Threat:
    """A threat at its levels.

    function: threat(model, x, y, *, random, **parameters) -> x', pure, x and x' [B, C, H, W] in [0, 1].
    kind: one of KINDS.
    levels: (label, keyword parameters) each; the label is the number that tables and figures show.
    level_name: what the label counts, "severity", "epsilon" or "".
    preset: the name of the set of constants.
    norm: the norm in which the parameter `epsilon` bounds x' - x, "" if nothing bounds it.
    gradient_source: where an attack's gradient comes from, one or several of GRADIENT_SOURCES, a row each. The function
        receives the surrogate as its model for "transfer", and the attacked model itself for everything else.
    surrogates: the names of the surrogates that a transfer attack uses, a row each; empty for all that are given.
    targeted: the function takes the classes that it shall have predicted as `target`, int64 [B]. The harness draws one
        of the wrong ones for each image.
    recorded: the function looks up images that were made before, and needs no surrogate any more.
    options: how gradients are computed.

    Raises ConfigurationError for any other word, no levels, or parameters that the function does not take.
    """

    function: Callable[..., Tensor]
    kind: str
    levels: Sequence[tuple[float | None, Parameters]] = ((None, {}),)
    level_name: str = ""
    preset: str = ""
    norm: str = ""
    gradient_source: str | Sequence[str] = "none"
    surrogates: Sequence[str] = ()
    targeted: bool = False
    recorded: bool = False
    options: GradientOptions = field(default_factory=GradientOptions)

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("norm", self.norm, NORMS)
        if not self.gradient_sources:
            raise ConfigurationError(f"the threat {_name(self.function)} has no gradient_source; use 'none' for that.")
        for source in self.gradient_sources:
            _one_of("gradient_source", source, GRADIENT_SOURCES)
        if self.kind != "attack" and self.gradient_sources != ("none",):
            raise ConfigurationError(
                f"a threat of kind {self.kind!r} has no gradient, got "
                f"gradient_source={self.gradient_source!r}; use 'none'."
            )
        if not self.levels:
            raise ConfigurationError(f"the threat {_name(self.function)} has no levels; give at least one.")
        for _, parameters in self.levels:
            self._check_parameters(parameters)

    @property
    def gradient_sources(self) -> tuple[str, ...]:
        return (self.gradient_source,) if isinstance(self.gradient_source, str) else tuple(self.gradient_source)

    def _check_parameters(self, parameters: Parameters) -> None:
        """Bind the call now: a misspelt keyword should fail before an hour of evaluation, not after it."""
        target = {"target": None} if self.targeted else {}
        try:
            inspect.signature(self.function).bind(None, None, None, random=None, **target, **parameters)
        except TypeError as error:
            raise ConfigurationError(
                f"{_name(self.function)} cannot be called as "
                f"threat(model, x, y, random=..., **{dict(parameters)}): {error}."
            ) from error
        if self.norm and "epsilon" not in parameters:
            raise ConfigurationError(
                f"{_name(self.function)} has norm={self.norm!r} but a level without epsilon; "
                "give every level its epsilon."
            )


def corruption(
    function: Callable[..., Tensor],
    preset: str,
    presets: Mapping[str, Sequence[Parameters]],
    severities: Sequence[int] | None = None,
) -> Threat:
    """A corruption at some severities of a named preset.

    presets: by name, the parameters of the function, weakest first; presets[name][s - 1] is severity s.
    severities: None for all that the preset has.

    Raises ConfigurationError for an unknown preset, and for severities that are not a non-empty list of
    integers within 1..len(preset).
    """
    _one_of("preset", preset, tuple(presets))
    constants = presets[preset]
    most = len(constants)
    listed = isinstance(severities, Sequence) and not isinstance(severities, str)
    chosen: Sequence[Any] = range(1, most + 1) if severities is None else severities if listed else ()
    if not chosen or any(type(severity) is not int or not 1 <= severity <= most for severity in chosen):
        raise ConfigurationError(
            f"severities must be a non-empty list of integers within 1..{most}, got {severities!r}; "
            f"for example severities={list(range(1, most + 1))}."
        )
    levels = tuple((severity, dict(constants[severity - 1])) for severity in chosen)
    return Threat(function, "corruption", levels, level_name="severity", preset=preset)


def attack(
    function: Callable[..., Tensor],
    epsilon: float | Sequence[float] | None,
    norm: str,
    gradient_source: str | Sequence[str],
    gradient_sources: Sequence[str],
    surrogates: str | Sequence[str] = (),
    targeted: bool = False,
    gradient: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Threat:
    """An attack, one level an epsilon; `parameters` (say steps=40) are the same at every level.

    epsilon: one or several bounds on x' - x in `norm`, in units of the pixel range; None for an attack without bound,
        which takes no epsilon.
    norm: handed on to a function that works in several.
    gradient_source: where the gradient is to come from, one or several of `gradient_sources`, those it can use.
    surrogates, targeted: see `Threat`. gradient: the fields of `GradientOptions` that shall differ.

    Raises ConfigurationError if an epsilon is not finite and > 0, or the gradient source is not among the
    possible ones.
    """
    sources = [gradient_source] if isinstance(gradient_source, str) else list(gradient_source)
    for source in sources:
        _one_of("gradient_source", source, gradient_sources)
    options = _gradient_options(gradient or {})
    names = (surrogates,) if isinstance(surrogates, str) else tuple(surrogates)
    facts: dict[str, Any] = {
        "gradient_source": gradient_source,
        "surrogates": names,
        "targeted": targeted,
        "options": options,
    }
    if epsilon is None and not _requires_epsilon(function):
        return Threat(function, "attack", ((None, parameters),), **facts)
    if "epsilon" not in inspect.signature(function).parameters:
        raise ConfigurationError(f"{_name(function)} has no bound, got epsilon={epsilon!r}; use epsilon=null.")
    bounds: Sequence[Any] = epsilon if isinstance(epsilon, Sequence) else [epsilon]
    if not bounds or not all(_positive(bound) for bound in bounds):
        raise ConfigurationError(
            f"epsilon must be a finite number > 0 or a non-empty list of them, got {epsilon!r}; "
            "for example epsilon=[0.13]."
        )
    if "norm" in inspect.signature(function).parameters:
        parameters["norm"] = norm
    levels = tuple((float(bound), {"epsilon": float(bound), **parameters}) for bound in bounds)
    return Threat(function, "attack", levels, "epsilon", norm=norm, **facts)


def _requires_epsilon(function: Callable[..., Tensor]) -> bool:
    parameter = inspect.signature(function).parameters.get("epsilon")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _gradient_options(options: Mapping[str, Any]) -> GradientOptions:
    try:
        return GradientOptions(**options)
    except TypeError:
        known = ", ".join(each.name for each in fields(GradientOptions))
        raise ConfigurationError(f"gradient takes {known}; got {', '.join(options)}.") from None


def _positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]


def _one_of(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigurationError(f"unknown {what} {value!r}; choose from {', '.join(map(repr, choices))}.")


def _name(function: Callable[..., Tensor]) -> str:
    return getattr(function, "__name__", repr(function))
