"""Gradient estimators, one file per method, all with the same `estimate(...)`."""

from glr_lightning.estimators.backprop import Backprop, NoisyBackprop
from glr_lightning.estimators.base import Estimate, Estimator
from glr_lightning.estimators.likelihood_ratio import LikelihoodRatio

__all__ = ["Backprop", "Estimate", "Estimator", "LikelihoodRatio", "NoisyBackprop"]
