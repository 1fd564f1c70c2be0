"""Train neural networks without backpropagation, by the generalized likelihood ratio method.

The public names are imported when they are first used, so that `import glr_lightning` stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if TYPE_CHECKING:
    from glr_lightning import activations, estimators, losses, networks, noise
    from glr_lightning.config import compose
    from glr_lightning.evaluation.evaluate import evaluate
    from glr_lightning.runs.trained_run import load_run
    from glr_lightning.training.fit import train

__all__ = ["activations", "compose", "estimators", "evaluate", "load_run", "losses", "networks", "noise", "train"]

_HOME = {
    "compose": "glr_lightning.config",
    "evaluate": "glr_lightning.evaluation.evaluate",
    "load_run": "glr_lightning.runs.trained_run",
    "train": "glr_lightning.training.fit",
}
"""The modules of the public functions; the other public names are modules themselves."""


def __getattr__(name: str) -> Any:
    """Import a public name. Raises AttributeError for any other."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
