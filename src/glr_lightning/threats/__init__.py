"""Attacks and corruptions: one pure, batched function a file, and the value that tells how to run it.

A new threat is one file here, or in a package of one's own, and one YAML file in conf/threat.
"""

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.base import Attack, Corruption, Threat, attack, corruption
from glr_lightning.threats.clean import Clean
from glr_lightning.threats.facts import AttackFacts, declare

__all__ = ["Attack", "AttackFacts", "Clean", "Corruption", "ImageRandom", "Threat", "attack", "corruption", "declare"]
