"""Classes that a network does not predict any more: when one counts as dead, and which a checkpoint tells of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

DEAD_BELOW = 0.01
"""A class is dead when it is predicted for less than this share of the number of images that bear its label."""


def dead(labels: Tensor, predictions: Tensor) -> Tensor:
    """Which classes are dead, [classes] bool, from how often each was the label and the prediction, [classes] int64."""
    return (labels > 0) & (predictions < DEAD_BELOW * labels)


def dead_classes(checkpoint: Mapping[str, Any]) -> list[int]:
    """The dead classes that a checkpoint tells of; earlier ones have them in the state of the callback."""
    state = checkpoint if "dead_classes" in checkpoint else checkpoint["callbacks"]["ClassCollapse"]
    classes: list[int] = state["dead_classes"]
    return classes
