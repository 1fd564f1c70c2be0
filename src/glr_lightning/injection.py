"""Injections: which layers are noisy in which forward pass.

A site is a layer with weights, where noise enters. An injection partitions the sites: every site appears in exactly one
pass, and its gradient is estimated from the losses of that pass.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from glr_lightning.validation import Checked


class Injection(Checked, ABC):
    """A partition of the sites 0 .. n-1 into passes."""

    @abstractmethod
    def passes(self, sites: int) -> list[tuple[int, ...]]:
        """Return the noisy sites of each pass, in ascending order."""


@dataclass(frozen=True)
class Joint(Injection):
    """Noise at all sites in one pass (papers 1 and 2): the gradient of ONE smoothed objective E[L]."""

    def passes(self, sites: int) -> list[tuple[int, ...]]:
        """One pass with all sites."""
        return [tuple(range(sites))]


@dataclass(frozen=True)
class Layerwise(Injection):
    """One pass per site, noise at that site alone (paper 3): far lower variance in deep networks.

    Each layer descends an objective of its own, E[L] smoothed by that layer's noise only, so the estimate
    differs from the joint one in expectation, not just in variance.
    """

    def passes(self, sites: int) -> list[tuple[int, ...]]:
        """A pass for every site."""
        return [(site,) for site in range(sites)]
