"""Clip the norm of the gradient."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.optim import Optimizer

from glr_lightning.training.module import glr_module
from glr_lightning.validation import Positive, checked


class GradientClipping(Callback):
    """Scales the whole gradient down to a largest 2-norm; `Trainer(gradient_clip_val=)` refuses manual optimization.

    Callbacks that come before this one see the gradient before it is clipped.

    Args:
        max_norm: the largest norm.
    """

    @checked
    def __init__(self, max_norm: Positive) -> None:
        self.max_norm = max_norm

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip the gradient in place."""
        module = glr_module(pl_module)
        torch.nn.utils.clip_grads_with_norm_(module.trained.values(), self.max_norm, module.outcome.gradient_norm)
