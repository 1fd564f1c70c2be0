"""Attacks and corruptions: one pure, batched function a file, and the value that tells how to run it.

A new threat is one file here and one YAML file in conf/threat. `robustness.evaluate` runs and judges them.
"""

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.base import Threat, attack, corruption

__all__ = ["ImageRandom", "Threat", "attack", "corruption"]
