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

from glr_lightning.validation.check import Checked, Parameter, checked, checked_arguments, choice, parameters
from glr_lightning.validation.constraints import (
    MOST,
    Count,
    CountPerLayer,
    NonEmpty,
    NonNegative,
    Positive,
    ReadIf,
    Scale,
    ScalePerLayer,
    Seed,
    Share,
    Size,
    Threads,
)

__all__ = [
    "MOST",
    "Checked",
    "Count",
    "CountPerLayer",
    "NonEmpty",
    "NonNegative",
    "Parameter",
    "Positive",
    "ReadIf",
    "Scale",
    "ScalePerLayer",
    "Seed",
    "Share",
    "Size",
    "Threads",
    "checked",
    "checked_arguments",
    "choice",
    "parameters",
]
