"""Types and ranges of options, declared beside the parameter and checked in one place.

A parameter states what it accepts in its type hint: `sigma: Scale`, `copies: Count | tuple[Count, ...]`,
`score: Literal["plain", "auto"]`. Three entry points read the hints of a callable and answer in the same words:

- `checked_arguments(target, arguments, where)` checks a mapping of arguments before a call (configurations);
- `@checked` checks every call of a function or method (`mlp(hidden=[0])`);
- `Checked` is the base of frozen dataclasses that are checked when one is made (`LikelihoodRatio(sigma=-1)`).

Rules, of which pydantic's strict mode supplies most: a boolean is never a number, nor is a string; an integer is
accepted for a float; NaN, infinity and integers beyond 64 bits are refused everywhere; a list is accepted for a tuple
and becomes one. A hint that says nothing checkable (Any, a callable, a protocol) is skipped.
"""

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from annotated_types import Interval, Len, MinLen

from glr_lightning.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")

MOST = 10**6
"""The largest count: more copies than that, or passes, would never end."""

Count = Annotated[int, Interval(ge=1, le=MOST)]
"""A number of things, at least one."""
Size = Annotated[int, Interval(ge=1, le=2**31 - 1)]
"""A length in memory, such as the width of a layer or the side of an image."""
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
"""A seed that every generator takes, those of numpy included."""
Scale = Annotated[float, Interval(ge=1e-12, le=1e12)]
"""A noise scale: float32 holds its square."""
Positive = Annotated[float, Interval(gt=0)]
NonNegative = Annotated[float, Interval(ge=0)]
Share = Annotated[float, Interval(ge=0, le=1)]

T = TypeVar("T")
NonEmpty = Annotated[tuple[T, ...], MinLen(1)]
"""`NonEmpty[Scale]`: a tuple of at least one noise scale, such as one for every layer."""

_LARGEST_INTEGER = 2**63 - 1
_LONGEST_VALUE = 80


class Checked:
    """Base of frozen dataclasses whose fields are checked against their hints, and coerced, when one is made.

    A subclass that has more to check, such as how two fields fit together, calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        """Check and coerce the fields. Raises ConfigurationError, whose `option` is the field's name."""
        for name, parameter in _parameters(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
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
        parameters = _parameters(function)
        for name, value in bound.arguments.items():
            if name in parameters:
                bound.arguments[name] = parameters[name].checked(value, name)
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
    known = _parameters(target)
    open_ended = _takes_any_keyword(target)
    values = {}
    for name, value in arguments.items():
        option = f"{where}.{name}" if where else name
        if name in known:
            parameter = known[name]
            if hints is not None and name in hints:
                parameter = _Parameter(hints[name], parameter.default)
            values[name] = parameter.checked(value, option)
        elif open_ended:
            values[name] = _Parameter(Any).checked(value, option)
        else:
            raise ConfigurationError(
                f"{_name(target)} has no option {name!r}.{_closest(name, known)} {_list_of(known)}", option=option
            )
    if complete:
        for name in known.keys() & _signature(target).keys() - arguments.keys():
            parameter = known[name]
            if parameter.default is inspect.Parameter.empty:
                option = f"{where}.{name}" if where else name
                raise ConfigurationError(
                    f"{option} must be given; it is {parameter.allowed or 'an option without a default'}.",
                    option=option,
                )
    return values


class _Parameter:
    """What one parameter accepts, and how to say so."""

    def __init__(self, hint: Any, default: Any = inspect.Parameter.empty) -> None:
        self.default = default
        self.allowed = describe(hint)
        self._adapter = _adapter(hint) if self.allowed else None

    def checked(self, value: Any, option: str) -> Any:
        """The value as the hint has it. Raises ConfigurationError."""
        if _has_huge_integer(value):
            wanted = self.allowed or "a number"
            raise ConfigurationError(
                f"{option} must be {wanted}; {_shown(value)} has more than 64 bits.", option=option
            )
        if self._adapter is None:
            return value
        from pydantic import ValidationError

        try:
            return self._adapter.validate_python(value)
        except ValidationError:
            example = "" if self._is_no_example(value) else f"; for example {option}={_shown(self.default)}"
            message = f"{option} must be {self.allowed}, got {_shown(value)}{example}."
            raise ConfigurationError(message, option=option) from None

    def _is_no_example(self, value: Any) -> bool:
        plain = isinstance(self.default, str | int | float | tuple) and self.default != ""
        return not plain or self.default is inspect.Parameter.empty or self.default == value


@functools.cache
def _parameters(target: Callable[..., Any]) -> dict[str, _Parameter]:
    """The parameters that may be given by keyword, those that a constructor passes on to its base included."""
    hints = _hints(target)
    found = dict(_parameters(base)) if (base := _base_that_gets_the_rest(target)) else {}
    for name, parameter in _signature(target).items():
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            hint = hints[name] if name in hints else _hint_of_default(parameter.default)
            found[name] = _Parameter(hint, parameter.default)
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
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _hint_of_default(default: Any) -> Any:
    """A parameter without a hint takes what its default is, and any number where that is a number."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):
        return float
    return str if isinstance(default, str) else Any


def _takes_any_keyword(target: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in _signature(target).values())


@functools.cache
def _adapter_type() -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return functools.partial(
        TypeAdapter, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    )


def _adapter(hint: Any) -> Any:
    """Return pydantic's checker of a hint, or None where it has none."""
    from pydantic.errors import PydanticUserError
    from pydantic_core import SchemaError

    try:
        return _adapter_type()(_strict(hint))
    except (PydanticUserError, SchemaError, TypeError):  # a forward reference, a protocol of data, ...
        return None


def _strict(hint: Any) -> Any:
    """The hint for pydantic: lists pass for tuples, and of a class an instance is wanted, dataclasses included."""
    from pydantic import BeforeValidator, InstanceOf

    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_strict(arguments[0]), *arguments[1:])]
    if origin in (Union, UnionType):
        return Union.__getitem__(tuple(_strict(each) for each in arguments))
    if origin is tuple:
        inner = GenericAlias(tuple, tuple(each if each is ... else _strict(each) for each in arguments))
        return Annotated[inner, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
    if origin in _CONTAINERS:
        return GenericAlias(origin, tuple(_strict(each) for each in arguments))
    instance_of: Any = InstanceOf
    return instance_of[hint] if _is_class(hint) else hint


def _is_class(hint: Any) -> bool:
    """Whether instances of the hint are objects of a class, rather than plain values."""
    plain = hint in _PLAIN or hint in _CONTAINERS or hint in (Any, object, NoneType)
    return isinstance(hint, type) and get_origin(hint) is None and not plain


_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_CONTAINERS: dict[Any, str] = {
    tuple: "a list",
    list: "a list",
    Sequence: "a list",
    Collection: "a list",
    dict: "a mapping",
    Mapping: "a mapping",
}


def describe(hint: Any) -> str:
    """What a hint accepts, in words that follow "must be"; empty where it says nothing that can be checked."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is None or hint is NoneType:
        return "null"
    if origin is Annotated:
        return _narrowed(describe(arguments[0]), arguments[1:])
    if origin in (Union, UnionType):
        return _either([describe(each) for each in arguments])
    if origin is Literal:
        words = [_shown(value) for value in arguments]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in _CONTAINERS or hint in _CONTAINERS:
        return _container(origin or hint, arguments)
    if _is_class(hint) and not getattr(hint, "_is_protocol", False):
        return f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
    return ""


def _narrowed(words: str, metadata: Sequence[Any]) -> str:
    for each in metadata:
        if isinstance(each, Interval):
            words += _range(each)
        elif isinstance(each, MinLen) and words:
            words = words.replace("a list", "a non-empty list", 1)
        elif isinstance(each, Len) and words:
            words = words.replace("a list of which", f"a list of {each.min_length}, of which", 1)
    return words


def _range(interval: Interval) -> str:
    low = interval.ge if interval.ge is not None else interval.gt
    high = interval.le if interval.le is not None else interval.lt
    below = "" if interval.lt is None else "below "
    if low is None:
        return f" below {_number(high)}" if below else f" of at most {_number(high)}"
    if high is None:
        return f" above {_number(low)}" if interval.ge is None else f" of at least {_number(low)}"
    return f" {'from' if interval.gt is None else 'above'} {_number(low)} to {below}{_number(high)}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _container(kind: Any, arguments: Sequence[Any]) -> str:
    words = _CONTAINERS[kind]
    if kind is tuple and arguments and arguments[-1] is not ...:
        return f"a list of {len(arguments)}, each {_either(list(map(describe, arguments))) or 'of any kind'}"
    item = describe(arguments[-2] if kind is tuple else arguments[-1]) if arguments else ""
    return f"{words} of which each is {item}" if item else words


def _either(words: list[str]) -> str:
    """Join words as in `a number, or a list of them, or null`; empty if one of them is, since anything may pass."""
    if not all(words):
        return ""
    first, *others = (word for word in dict.fromkeys(words) if word != "null")
    for item, short in (
        (f" of which each is {first}, or null", " of them and nulls"),
        (f" of which each is {first}", " of them"),
    ):
        others = [word.replace(item, short) for word in others]
    return ", or ".join([first, *others, *(["null"] if "null" in words else [])])


def _has_huge_integer(value: Any) -> bool:
    if isinstance(value, int):
        return not -_LARGEST_INTEGER - 1 <= value <= _LARGEST_INTEGER
    if isinstance(value, dict):
        return any(map(_has_huge_integer, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_huge_integer, value))


def _shown(value: Any) -> str:
    """A value as a configuration spells it, in one line of bounded length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    is_list = isinstance(value, list | tuple)
    text = f"[{', '.join(map(_shown, value))}]" if is_list else " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", repr(target))


def _closest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _list_of(known: Collection[str]) -> str:
    return f"It has {', '.join(known)}." if known else "It has none."


# The hand-written checks, until nothing calls them.


def is_scale(value: Any) -> bool:
    """Is it a noise scale: a number from 1e-12 to 1e12, so that float32 holds its square?"""
    return not isinstance(value, bool) and isinstance(value, int | float) and 1e-12 <= value <= 1e12


def validated_sigma(sigma: Any) -> float | tuple[float, ...]:
    """A noise scale or a tuple of them. Raises ConfigurationError unless each is one (`is_scale`)."""
    values = tuple(sigma) if isinstance(sigma, Sequence) and not isinstance(sigma, str) else (sigma,)
    for value in values:
        if not is_scale(value):
            raise ConfigurationError(
                "sigma must be a positive finite number (1e-12 to 1e12), or a list of them (one per layer), got "
                f"{sigma!r}; use for example sigma=1.0 or sigma=[1.0,0.3]."
            )
    if not values:
        raise ConfigurationError("sigma is an empty list; give one value, or one per layer.")
    return tuple(map(float, values)) if isinstance(sigma, Sequence) else float(sigma)


def validated_count(name: str, value: Any) -> int:
    """A whole number from 1 to `MOST`. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise ConfigurationError(f"{name} must be a whole number of at least 1 and at most {MOST:,}, got {value!r}.")
    return value


def validated_copies(value: Any) -> int | tuple[int, ...]:
    """A number of copies, or a tuple of one per layer. Raises ConfigurationError."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ConfigurationError("copies is an empty list; give one number, or one per layer.")
        return tuple(validated_count("copies", number) for number in value)
    return validated_count("copies", value)


def validated_passes(copies: Any) -> int:
    """A number of copies of all layers together. Raises ConfigurationError, with a list too."""
    if isinstance(copies, Sequence) and not isinstance(copies, str):
        raise ConfigurationError(
            f"this estimator takes one number of copies for all layers, got copies={list(copies)!r}; use one number, "
            "or estimator=tiered, or estimator=likelihood_ratio injection=layerwise."
        )
    return validated_count("copies", copies)


def choice(what: str, value: str, choices: Sequence[str]) -> str:
    """value, if it is one of the choices. Raises ConfigurationError."""
    if value not in choices:
        raise ConfigurationError(f"unknown {what} {value!r}; choose from {', '.join(map(repr, choices))}.")
    return value
