"""Lightning without what torchmetrics imports beside it, for plots and for metrics of sounds and images."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from glr_lightning.config import targets

OPTIONAL = ("matplotlib", "scipy", "torchvision")
WITHOUT = ("glr_lightning.", "torch.", "pytorch_lightning.")
"""Code that takes no metric and no plot of torchmetrics that needs them."""


@contextmanager
def without_optional_packages(config: Mapping[str, Any] | None) -> Iterator[None]:
    """Have torchmetrics take matplotlib, scipy and torchvision for missing if it is imported within the block.

    Lightning imports all of torchmetrics, and torchmetrics all of these, which takes a second. Everybody else imports
    them as ever. Nothing changes for a configuration that names code of another package: that may need them.

    Args:
        config: what this process is going to train, and nothing else; None: not known.
    """
    if config is None or "torchmetrics" in sys.modules or not all(name.startswith(WITHOUT) for name in targets(config)):
        yield
        return
    imports: Any = importlib.import_module("lightning_utilities.core.imports")
    package_available, met = imports.package_available, imports.RequirementCache.__bool__
    imports.package_available = lambda name: name not in OPTIONAL and package_available(name)
    imports.RequirementCache.__bool__ = lambda self: not str(self.requirement).startswith(OPTIONAL) and met(self)
    try:
        yield
    finally:
        imports.package_available, imports.RequirementCache.__bool__ = package_available, met
