"""Training: the LightningModule, the fit of a run, and callbacks around the estimator."""

from glr_lightning.training.module import GLRModule

__all__ = ["GLRModule"]
