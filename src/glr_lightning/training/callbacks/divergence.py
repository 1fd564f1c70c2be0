"""Stop a training that meets a NaN or an infinite number."""

import math

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.optim import Optimizer

from glr_lightning.errors import DivergenceError
from glr_lightning.training.module import GLRModule, glr_module

CHECK_EVERY = 50
"""Steps between looks at the loss on an accelerator, where each look waits for the device."""


class DivergenceCheck(Callback):
    """Raises DivergenceError at a loss, a gradient or a weight that is not finite.

    On a CPU loss and gradient are looked at before every step, so that no NaN reaches the weights; on an accelerator
    every `CHECK_EVERY` steps and at the end of each epoch. Weights are looked at before an epoch's checkpoint.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at loss and gradient. Raises DivergenceError."""
        module = glr_module(pl_module)
        outcome = module.outcome
        look = outcome.loss.device.type == "cpu" or trainer.global_step % CHECK_EVERY == 0 or trainer.is_last_batch
        if look and not (math.isfinite(outcome.loss.item()) and math.isfinite(outcome.gradient_norm.item())):
            raise DivergenceError(_report(trainer, module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the weights. Raises DivergenceError."""
        for name, parameter in glr_module(pl_module).trained.items():  # an overflow may leave a finite 0-1 loss
            if not torch.isfinite(parameter).all():
                raise DivergenceError(
                    f"'{name}' is no longer finite at the end of epoch {trainer.current_epoch + 1} "
                    f"(step {trainer.global_step}). "
                    "Lower optimizer.lr or set clip_norm=1.0; the last checkpoint of the run is kept."
                )


def _report(trainer: pl.Trainer, module: GLRModule) -> str:
    """What diverged, the norms of all parameters and gradients, and what to do."""
    lines = "\n".join(
        f"  {name:<24} |weights| {parameter.detach().norm().item():.4g}   |gradient| {parameter.grad.norm().item():.4g}"
        for name, parameter in module.trained.items()
        if parameter.grad is not None
    )
    learned = " or callbacks.learned_sigma.lr" if "log_sigma.0" in module.trained else ""
    noisy = ", or raise sigma" if module.estimator.objective != "noise_free" else ""
    outcome = module.outcome
    return (
        f"training diverged at step {trainer.global_step} (epoch {trainer.current_epoch + 1}): "
        f"loss {outcome.loss.item():.4g}, gradient norm {outcome.gradient_norm.item():.4g}.\n{lines}\n"
        f"Lower optimizer.lr{learned}, or set clip_norm=1.0{noisy}; the last checkpoint of the run is kept."
    )
