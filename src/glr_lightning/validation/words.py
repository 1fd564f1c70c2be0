"""What a hint accepts, and other words for an error."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from glr_lightning.validation.ranges import Interval, Len, MinLen

_LONGEST_VALUE = 80
PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
CONTAINERS: dict[Any, str] = {
    tuple: "a list",
    list: "a list",
    Sequence: "a list",
    Collection: "a list",
    Iterable: "a list",
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
        words = [shown(value) for value in arguments]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if hint in PLAIN:
        return PLAIN[hint]
    if origin in CONTAINERS or hint in CONTAINERS:
        return _container(origin or hint, arguments)
    if is_class(hint) and not getattr(hint, "_is_protocol", False):
        return f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
    return ""


def _narrowed(words: str, metadata: Sequence[Any]) -> str:
    for each in metadata:
        if isinstance(each, Interval):
            words += _range(each)
        elif isinstance(each, MinLen) and words:
            words = words.replace("a list", "a non-empty list", 1).replace("text", "text that is not empty", 1)
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
    words = CONTAINERS[kind]
    if kind is tuple and arguments and arguments[-1] is not ...:
        return f"a list of {len(arguments)}, each {_either(list(map(describe, arguments))) or 'of any kind'}"
    item = describe(arguments[-2] if kind is tuple else arguments[-1]) if arguments else ""
    return f"{words} of which each is {item}" if item else words


def _either(words: list[str]) -> str:
    """Join words as in `a number, or a list of them, or null`; empty if one of them is, since anything may pass."""
    if not all(words):
        return ""
    # a tensor is for callers in Python; no configuration can give one
    plain = [word for word in dict.fromkeys(words) if word != "null" and "a Tensor" not in word]
    first, *others = plain or ["a Tensor"]
    for item, short in (
        (f" of which each is {first}, or null", " of them and nulls"),
        (f" of which each is {first}", " of them"),
    ):
        others = [word.replace(item, short) for word in others]
    return ", or ".join([first, *others, *(["null"] if "null" in words else [])])


def is_class(hint: Any) -> bool:
    """Whether instances of the hint are objects of a class, rather than plain values."""
    plain = hint in PLAIN or hint in CONTAINERS or hint in (Any, object, NoneType)
    return isinstance(hint, type) and get_origin(hint) is None and not plain


def closest(name: Any, known: Iterable[str]) -> str:
    """Return a question, after a space, with at most two names that come close to one; nothing if none does.

    Names that go on after it, as pgd_linf and pgd_l2 after pgd, come before those that are spelled like it.
    """
    names = list(dict.fromkeys(known))
    longer = [each for each in names if each.startswith(f"{name}_")]
    close = dict.fromkeys([*longer, *difflib.get_close_matches(str(name), names, n=2)])
    return f" Did you mean {' or '.join(list(close)[:2])}?" if close else ""


def shown(value: Any) -> str:
    """A value as a configuration spells it, in one line of bounded length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    is_list = isinstance(value, list | tuple)
    text = f"[{', '.join(map(shown, value))}]" if is_list else " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
