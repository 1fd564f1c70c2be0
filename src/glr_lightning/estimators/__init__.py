"""Gradient estimators, one file per method, all with the same `estimate(...)`."""

from glr_lightning.estimators.backprop import Backprop
from glr_lightning.estimators.base import Estimator, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.evolution_strategies import EvolutionStrategies
from glr_lightning.estimators.forward_gradient import ForwardGradient
from glr_lightning.estimators.hybrid import Hybrid
from glr_lightning.estimators.likelihood_ratio import LikelihoodRatio
from glr_lightning.estimators.local_expectation import LocalExpectation
from glr_lightning.estimators.noisy_backprop import NoisyBackprop
from glr_lightning.estimators.straight_through import StraightThrough
from glr_lightning.estimators.tiered import Tiered

__all__ = [
    "Backprop",
    "Bound",
    "Estimate",
    "Estimator",
    "EvolutionStrategies",
    "ForwardGradient",
    "Hybrid",
    "LikelihoodRatio",
    "LocalExpectation",
    "NoisyBackprop",
    "Objective",
    "StraightThrough",
    "Tiered",
]
