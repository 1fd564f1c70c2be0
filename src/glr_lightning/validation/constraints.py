"""Types with a range, to declare parameters with."""

from dataclasses import dataclass
from typing import Annotated, TypeVar

from glr_lightning.validation.ranges import Interval, MinLen

MOST = 10**6
"""The largest count: more copies than that, or passes, would never end."""

Count = Annotated[int, Interval(ge=1, le=MOST)]
"""A number of things, at least one."""
Size = Annotated[int, Interval(ge=1, le=2**31 - 1)]
"""A length in memory, such as the width of a layer or the side of an image."""
Threads = Annotated[int, Interval(ge=1, le=1024)]
"""Threads of the CPU: many more than there are cores end the process."""
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
"""A seed that every generator takes, those of numpy included."""
Scale = Annotated[float, Interval(ge=1e-12, le=1e12)]
"""A noise scale: float32 holds its square."""
Positive = Annotated[float, Interval(gt=0)]
NonNegative = Annotated[float, Interval(ge=0)]
Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class ReadIf:
    """Beside the type of a parameter: it is read only if other options of the same call are neither empty nor off.

    `centre: Annotated[float, ReadIf("hidden")]` says that without hidden layers nothing is centred. Two runs that
    differ in such an option where it is not read are one (see `glr_lightning.config.config_hash`).
    """

    options: tuple[str, ...]

    def __init__(self, *options: str) -> None:
        object.__setattr__(self, "options", options)


T = TypeVar("T")
NonEmpty = Annotated[tuple[T, ...], MinLen(1)]
"""`NonEmpty[Scale]`: a tuple of at least one noise scale."""
ScalePerLayer = Scale | NonEmpty[Scale]
"""One noise scale for all layers, or one for each."""
CountPerLayer = Count | NonEmpty[Count]
"""One number for all layers, or one for each."""
