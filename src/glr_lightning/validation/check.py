"""Check arguments against the hints of what they are given to."""

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from glr_lightning.errors import ConfigurationError
from glr_lightning.validation.constraints import ReadIf
from glr_lightning.validation.hints import checker, takes_one_for_all
from glr_lightning.validation.words import closest, describe, shown

P = ParamSpec("P")
R = TypeVar("R")

_LARGEST_INTEGER = 2**63 - 1
_TYPING = {name: getattr(typing, name) for name in typing.__all__}
"""Names that torch's schedulers use in hints and import for type checkers only."""


class Checked:
    """Base of frozen dataclasses whose fields are checked against their hints, and coerced, when one is made.

    A subclass that has more to check, such as how two fields fit together, calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        """Check and coerce the fields. Raises ConfigurationError, whose `option` is the field's name."""
        for name, parameter in parameters(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
            object.__setattr__(self, name, parameter.checked(getattr(self, name), name))


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check and coerce the arguments of every call against the hints of a function's parameters.

    Raises:
        ConfigurationError: (from the call) an argument that its hint does not accept; `option` is its name.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        known = parameters(function)
        for name, value in bound.arguments.items():
            if name in known:
                bound.arguments[name] = known[name].checked(value, name)
        return function(*bound.args, **bound.kwargs)

    return call


def checked_arguments(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    where: str = "",
    *,
    hints: Mapping[str, Any] | None = None,
    complete: bool = False,
) -> dict[str, Any]:
    """The arguments, each checked against the hint of the target's parameter of that name, and coerced.

    Args:
        target: a class or a function.
        arguments: keyword arguments for it.
        where: the dotted path of the arguments in a configuration, which the error names: "estimator" has it speak
            of estimator.sigma.
        hints: narrower hints for parameters that the target does not annotate, or too widely.
        complete: refuse arguments that lack one without a default.

    Raises:
        ConfigurationError: a parameter that the target does not have, or a value that it does not accept.
    """
    known = parameters(target)
    open_ended = _takes_any_keyword(target)
    values = {}
    for name, value in arguments.items():
        option = f"{where}.{name}" if where else name
        if name in known:
            parameter = known[name]
            if hints is not None and name in hints:
                parameter = Parameter(hints[name], parameter.default)
            values[name] = parameter.checked(value, option)
        elif open_ended:
            values[name] = Parameter(Any).checked(value, option)
        else:
            raise ConfigurationError(
                f"there is no option {option!r}.{closest(name, known)} {_name(target)} {_list_of(known)}",
                option=option,
            )
    if complete:
        for name in known.keys() & _signature(target).keys() - arguments.keys():
            parameter = known[name]
            if not parameter.has_default:
                option = f"{where}.{name}" if where else name
                raise ConfigurationError(
                    f"{option} must be given; it is {parameter.allowed or 'an option without a default'}.",
                    option=option,
                )
    return values


class Parameter:
    """What one parameter accepts, how to say so, and when it is read."""

    def __init__(self, hint: Any, default: Any = inspect.Parameter.empty) -> None:
        self.default = default
        self.has_default = default is not inspect.Parameter.empty
        self.allowed = describe(hint)
        self.read_if = tuple(name for each in _metadata(hint) if isinstance(each, ReadIf) for name in each.options)
        """Other options without which this one has no effect."""
        self.takes_one_for_all = takes_one_for_all(hint)
        """Whether one value stands for a list that repeats it."""
        self._hint = hint

    @functools.cached_property
    def _adapter(self) -> Any:
        return checker(self._hint) if self.allowed else None

    def checked(self, value: Any, option: str) -> Any:
        """The value as the hint has it. Raises ConfigurationError."""
        if (number := _huge_integer(value)) is not None:
            wanted = f"must be {self.allowed}" if self.allowed else "needs another value"
            raise ConfigurationError(f"{option} {wanted}; {number} has more than 64 bits.", option=option)
        if self._adapter is None:
            return value
        from pydantic import ValidationError

        try:
            return self._adapter.validate_python(value)
        except ValidationError:
            example = "" if self._is_no_example(value) else f"; for example {option}={shown(self.default)}"
            if isinstance(value, str) and _accepts(self._adapter, [value]):
                example = f"; for example {option}=[{shown(value)}]"
            message = f"{option} must be {self.allowed}, got {shown(value)}{example}."
            raise ConfigurationError(message, option=option) from None

    def _is_no_example(self, value: Any) -> bool:
        nothing = ("", "???")  # OmegaConf's sign for a value that has to be given
        plain = isinstance(self.default, str | int | float | tuple) and self.default not in nothing
        return not plain or not self.has_default or shown(self.default) == shown(value)


def _accepts(adapter: Any, value: Any) -> bool:
    from pydantic import ValidationError

    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


@functools.cache
def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters that may be given by keyword, those that a constructor passes on to its base included."""
    hints = _hints(target)
    found = dict(parameters(base)) if (base := _base_that_gets_the_rest(target)) else {}
    for name, parameter in _signature(target).items():
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            hint = hints[name] if name in hints else _hint_of_default(parameter.default)
            found[name] = Parameter(hint, parameter.default)
    return found


def _base_that_gets_the_rest(target: Callable[..., Any]) -> type | None:
    """The class whose constructor `super().__init__(**options)` calls, if that of a class takes any keyword."""
    if not isinstance(target, type) or not _takes_any_keyword(target):
        return None
    constructors = [base for base in target.__mro__[:-1] if "__init__" in vars(base)]
    return constructors[1] if len(constructors) > 1 else None


def _signature(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters; any keyword, where a builtin does not tell them."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return {"keywords": inspect.Parameter("keywords", inspect.Parameter.VAR_KEYWORD)}


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The hints of a function, or of a class's constructor; none where they cannot be resolved."""
    function = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009  # of the class itself
    try:
        return typing.get_type_hints(function, localns=_TYPING, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _metadata(hint: Any) -> tuple[Any, ...]:
    """What stands beside the type in an `Annotated` hint."""
    return getattr(hint, "__metadata__", ())


def _hint_of_default(default: Any) -> Any:
    """A parameter without a hint takes what its default is, and any number where that is a number."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):
        return float
    return str if isinstance(default, str) else Any


def _takes_any_keyword(target: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in _signature(target).values())


def _huge_integer(value: Any) -> int | None:
    """The first integer that no 64 bits hold, in a list too; what is in a mapping is an argument elsewhere."""
    if isinstance(value, int) and not -_LARGEST_INTEGER - 1 <= value <= _LARGEST_INTEGER:
        return value
    found = map(_huge_integer, value) if isinstance(value, list | tuple) else iter(())
    return next((number for number in found if number is not None), None)


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", repr(target))


def _list_of(known: Collection[str]) -> str:
    return f"has {', '.join(known)}." if known else "has none."


def choice(what: str, value: str, choices: Sequence[str]) -> str:
    """Return the value if it is one of the choices, for choices that a hint cannot name.

    Raises:
        ConfigurationError: it is none of them.
    """
    if value not in choices:
        raise ConfigurationError(f"unknown {what} {value!r}; choose from {', '.join(map(repr, choices))}.", option=what)
    return value
