"""Checkers of hints: pydantic's, in strict mode. Importing this module does not import pydantic.

The package is installed with pydantic. From its sources it runs without, and then hints are not checked.
"""

from collections.abc import Iterable, Sequence
from types import GenericAlias, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from glr_lightning.validation.words import CONTAINERS, PLAIN, is_class


def checker(hint: Any) -> Any:
    """Return pydantic's checker of a hint, or None where it has none, or is not installed itself."""
    try:
        from pydantic import ConfigDict, TypeAdapter
        from pydantic.errors import PydanticUserError
        from pydantic_core import SchemaError
    except ModuleNotFoundError:
        return None

    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(_strict(hint), config=config)
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
    if origin is Iterable:  # pydantic looks at its items only when it is iterated over
        origin = Sequence
    if origin in CONTAINERS:
        return GenericAlias(origin, tuple(_strict(each) for each in arguments))
    if hint is float:  # pydantic takes whatever float() takes, such as a tensor
        return Annotated[float, BeforeValidator(_require_real)]
    instance_of: Any = InstanceOf
    return instance_of[hint] if is_class(hint) else hint


def takes_one_for_all(hint: Any) -> bool:
    """Whether a hint takes one value for all layers, or a list with one for each, as `Scale | tuple[Scale, ...]`."""
    hint = _bare(hint)
    members = [_bare(each) for each in get_args(hint)] if get_origin(hint) in (Union, UnionType) else []
    return any(get_origin(each) in (tuple, list, Sequence) for each in members) and any(
        each in PLAIN for each in members
    )


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _require_real(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise ValueError("not a number")
    return value
