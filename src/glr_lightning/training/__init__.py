"""Training: the LightningModule, the fit of a run, and callbacks around the estimator.

The public names are imported when they are first used: what reads a run's noise or tests it needs no Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glr_lightning.training.images import LightningImages
    from glr_lightning.training.module import GLRModule

__all__ = ["GLRModule", "LightningImages"]

_HOME = {"GLRModule": "glr_lightning.training.module", "LightningImages": "glr_lightning.training.images"}


def __getattr__(name: str) -> Any:
    """Import a public name. Raises AttributeError for any other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
