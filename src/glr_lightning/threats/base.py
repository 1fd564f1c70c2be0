"""Threats as values: a pure function, the levels to run it at, and the facts that its rows carry.

A function is `threat(model, x, y, *, random, **parameters) -> x'`, with x and x' [B, C, H, W] in [0, 1]. The hints of
its parameters say what they accept (`glr_lightning.validation`). What an attack can do is declared once, above its
function, by `@declare(AttackFacts(...))`. `attack` and `corruption` make the values from such a function and the
constants of a configuration; the function may come from any package.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import hydra.utils
from torch import Tensor

from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.threats.facts import (
    GRADIENT_SOURCES,
    NORMS,
    GradientOptions,
    Norm,
    Source,
    facts_of,
    name_of,
    require_package,
)
from glr_lightning.validation import Count, NonEmpty, Positive, checked, checked_arguments, choice

Parameters = Mapping[str, Any]
Levels = Sequence[tuple[float | None, Parameters]]


@dataclass(frozen=True, kw_only=True)
class Threat(ABC):
    """A threat at its levels.

    Attributes:
        function: the threat function, see the module.
        levels: (label, keyword parameters) each; the label is the number that tables and figures show.
        level_name: what the label counts, "severity", "epsilon" or "".
        preset: the name of the set of constants.
        norm: the norm in which the parameter `epsilon` bounds x' - x, "" if nothing bounds it.
        gradient_sources: where the gradient is to come from, a row each. The function receives the surrogate as its
            model for "transfer", and the tested network for everything else.
        surrogates: the names of the surrogates that a transfer attack uses, a row each; empty for all there are.
        targeted: whether the function is given a wrong class of each image as `target`, int64 [B].
        recorded: whether the function looks up images that were made before, and needs no surrogate any more.
        searches: see `AttackFacts`.
        images_at_once: see `AttackFacts`.
        options: how gradients are computed.

    Raises:
        ConfigurationError: no levels, or parameters that the function does not take or accept.
    """

    function: Callable[..., Tensor]
    levels: Levels = ((None, {}),)
    level_name: str = field(default="", init=False)
    preset: str = field(default="", init=False)
    norm: str = field(default="", init=False)
    gradient_sources: tuple[str, ...] = field(default=("none",), init=False)
    surrogates: tuple[str, ...] = field(default=(), init=False)
    targeted: bool = field(default=False, init=False)
    recorded: bool = field(default=False, init=False)
    searches: bool = field(default=False, init=False)
    images_at_once: int | None = field(default=None, init=False)
    options: GradientOptions = field(default_factory=GradientOptions, init=False)

    @property
    @abstractmethod
    def kind(self) -> str:
        """The word that tables sort by: "clean", "corruption" or "attack"."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise ConfigurationError(
                f"the threat {name_of(self.function)} has no levels; give at least one.", option="levels"
            )
        for _, parameters in self.levels:
            self._check_parameters(parameters)

    def _check_parameters(self, parameters: Parameters) -> None:
        """Bind the call now: a misspelt keyword is to fail before an hour of evaluation, not after it."""
        target = {"target": None} if self.targeted else {}
        try:
            inspect.signature(self.function).bind(None, None, None, random=None, **target, **parameters)
        except TypeError as error:
            raise ConfigurationError(
                f"{name_of(self.function)} cannot be called as "
                f"threat(model, x, y, random=..., **{dict(parameters)}): {error}."
            ) from error


@final
@dataclass(frozen=True, kw_only=True)
class Corruption(Threat):
    """A corruption at some severities of a preset; made by `corruption`."""

    level_name: str = "severity"
    preset: str = ""

    @property
    def kind(self) -> str:
        """Corruptions know nothing of the network."""
        return "corruption"


@final
@dataclass(frozen=True, kw_only=True)
class Attack(Threat):
    """An attack at some epsilons, or without a bound; made by `attack`.

    Raises:
        ConfigurationError: beside what `Threat` refuses, an unknown norm or source, and a level without its epsilon.
    """

    level_name: str = ""
    norm: str = ""
    gradient_sources: tuple[str, ...] = ("none",)
    surrogates: tuple[str, ...] = ()
    targeted: bool = False
    recorded: bool = False
    searches: bool = True
    images_at_once: int | None = None
    options: GradientOptions = field(default_factory=GradientOptions)

    @property
    def kind(self) -> str:
        """Attacks choose their change for the network."""
        return "attack"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("norm", self.norm, ("", *NORMS))
        if not self.gradient_sources:
            raise ConfigurationError(
                f"the attack {name_of(self.function)} has no gradient_source; use 'none' for that.",
                option="gradient_sources",
            )
        for source in self.gradient_sources:
            choice("gradient_source", source, GRADIENT_SOURCES)
        if self.norm and not all("epsilon" in parameters for _, parameters in self.levels):
            raise ConfigurationError(
                f"{name_of(self.function)} has norm={self.norm!r} but a level without epsilon; give every level its "
                "epsilon."
            )


@checked
def corruption(
    function: str | Callable[..., Tensor],
    preset: str,
    presets: Mapping[str, Sequence[Parameters]],
    severities: NonEmpty[Count] | None = None,
) -> Corruption:
    """A corruption at some severities of a named preset.

    Args:
        function: the corruption, or its dotted path.
        preset: the name of the set of constants.
        presets: by name, the parameters of the function, weakest first; the first are those of severity 1.
        severities: None for all that the preset has.

    Raises:
        ConfigurationError: an unknown preset or severity, or constants that the function does not accept.
    """
    found = _function(function)
    constants = presets[choice("preset", preset, tuple(presets))]
    chosen = range(1, len(constants) + 1) if severities is None else severities
    if max(chosen, default=1) > len(constants):
        raise ConfigurationError(
            f"severities must lie within 1..{len(constants)}, got {list(chosen)}; for example "
            f"severities={list(range(1, len(constants) + 1))}.",
            option="severities",
        )
    for severity in chosen:
        checked_arguments(found, constants[severity - 1], f"presets.{preset}[{severity - 1}]")
    return Corruption(
        function=found,
        levels=tuple((severity, dict(constants[severity - 1])) for severity in chosen),
        preset=preset,
    )


@checked
def attack(
    function: str | Callable[..., Tensor],
    epsilon: Positive | NonEmpty[Positive] | None = None,
    norm: Norm | None = None,
    gradient_source: Source | NonEmpty[Source] | None = None,
    surrogates: str | tuple[str, ...] = (),
    targeted: bool = False,
    gradient: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Attack:
    """An attack, one level an epsilon; `parameters` (say steps=40) are the same at every level.

    Args:
        function: a function with declared facts, or its dotted path.
        epsilon: one or several bounds on x' - x in `norm`, in units of the pixel range; None for an attack without a
            bound.
        norm: one of the function's, by default the first; handed on to a function that works in several.
        gradient_source: where the gradient is to come from, one or several of the function's; by default the first.
        surrogates: see `Threat`; one name or several.
        targeted: see `Threat`.
        gradient: the fields of `GradientOptions` that differ from its defaults.
        parameters: of the function.

    Raises:
        ConfigurationError: a value that the function does not accept, or a norm or source that it cannot use.
    """
    found = _function(function)
    facts, known = facts_of(found), inspect.signature(found).parameters
    require_package(found, facts)
    chosen = gradient_source or facts.gradient_sources[0]
    sources: tuple[str, ...] = (chosen,) if isinstance(chosen, str) else chosen
    for source in sources:
        choice("gradient_source", source, facts.gradient_sources)
    settings: dict[str, Any] = {
        "gradient_sources": sources,
        "surrogates": (surrogates,) if isinstance(surrogates, str) else tuple(surrogates),
        "targeted": targeted,
        "searches": facts.searches,
        "images_at_once": facts.images_at_once,
        "options": GradientOptions(**checked_arguments(GradientOptions, gradient or {}, "gradient")),
    }
    checked_arguments(found, parameters)
    if epsilon is None:
        if "epsilon" in known and known["epsilon"].default is inspect.Parameter.empty:
            raise ConfigurationError(
                "epsilon must be a number above 0, or a list of them; for example epsilon=0.1.", option="epsilon"
            )
        return Attack(function=found, levels=((None, parameters),), **settings)
    if "epsilon" not in known:
        raise ConfigurationError(
            f"{name_of(found)} has no bound, got epsilon={epsilon!r}; use epsilon=null.", option="epsilon"
        )
    norm_of = choice("norm", norm or facts.norms[0], facts.norms)
    if "norm" in known:
        parameters["norm"] = norm_of
    bounds = epsilon if isinstance(epsilon, tuple) else (epsilon,)
    levels = tuple((float(bound), {"epsilon": float(bound), **parameters}) for bound in bounds)
    return Attack(function=found, levels=levels, level_name="epsilon", norm=norm_of, **settings)


def _function(function: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    if not isinstance(function, str):
        return function
    try:
        found: Callable[..., Tensor] = hydra.utils.get_method(function)
    except Exception as error:
        raise ConfigurationError(f"there is no function {function!r}: {words_of(error)}", option="function") from error
    return found
