"""The ranges that hints state: those of annotated_types, or their like where torch alone is installed.

pydantic checks them. Without it nothing does; networks and estimators need nothing but torch and numpy then.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from annotated_types import Interval, Len, MinLen
else:
    try:
        from annotated_types import Interval, Len, MinLen
    except ModuleNotFoundError:

        @dataclass(frozen=True, slots=True)
        class Interval:
            """The values between two bounds."""

            gt: Any = None
            ge: Any = None
            lt: Any = None
            le: Any = None

        @dataclass(frozen=True, slots=True)
        class Len:
            """A length between two bounds."""

            min_length: int = 0
            max_length: int | None = None

        @dataclass(frozen=True, slots=True)
        class MinLen:
            """The least length."""

            min_length: int


__all__ = ["Interval", "Len", "MinLen"]
