"""Configurations of earlier versions, brought into the present shape in memory; run folders are never rewritten."""

from collections.abc import Callable, Mapping
from typing import Any


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration in the shape that this version composes.

    A configuration that has this shape already is returned as an equal copy. Nothing in it is built or checked.

    Args:
        config: what a config.yaml holds, of version 0.4 or later.
    """
    upgraded = dict(config)
    for step in STEPS:
        upgraded = step(upgraded)
    return upgraded


STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = ()
"""Each takes a configuration in the shape of an earlier version or of the present one, and changes only the former."""
