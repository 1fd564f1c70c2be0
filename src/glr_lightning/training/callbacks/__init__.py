"""What surrounds the estimator in training: Lightning callbacks, one file each, chosen from conf/callbacks.

The names here are the `_target_`s of run folders.
"""

from glr_lightning.training.callbacks.annealing import Annealing
from glr_lightning.training.callbacks.base import TrainingCallback
from glr_lightning.training.callbacks.checkpoints import InitialCheckpoint, RunCheckpoint
from glr_lightning.training.callbacks.class_collapse import ClassCollapse
from glr_lightning.training.callbacks.cost import Cost
from glr_lightning.training.callbacks.divergence import DivergenceCheck
from glr_lightning.training.callbacks.epoch_metrics import EpochMetrics
from glr_lightning.training.callbacks.gradient_clipping import GradientClipping
from glr_lightning.training.callbacks.gradient_quality import GradientQuality
from glr_lightning.training.callbacks.layer_rates import LayerRates
from glr_lightning.training.callbacks.learned_sigma import LearnedSigma
from glr_lightning.training.callbacks.progress import TrainingProgress
from glr_lightning.training.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "Annealing",
    "ClassCollapse",
    "Cost",
    "DivergenceCheck",
    "EpochMetrics",
    "GradientClipping",
    "GradientQuality",
    "InitialCheckpoint",
    "LayerRates",
    "LearnedSigma",
    "RunCheckpoint",
    "TrainingCallback",
    "TrainingProgress",
    "WeightAveraging",
]
