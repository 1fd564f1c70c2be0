"""The row of metrics.csv of every epoch."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchmetrics import MeanMetric

from glr_lightning.training.callbacks.base import Recent, training_callbacks
from glr_lightning.training.module import glr_module


def accuracy_of(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 for each row of logits [n, classes] whose largest is that of the label y [n], else 0.0."""
    return (logits.argmax(1) == y).float()


class EpochMetrics(Callback):
    """Losses, accuracies and the gradient's norm of every epoch, in the loggers and for `monitor=` of other callbacks.

    The row is completed by all callbacks that are a `TrainingCallback`. It is written before a checkpoint of the epoch
    is: Lightning would write it afterwards, and an interruption between the two would lose it.
    """

    def __init__(self) -> None:
        # torchmetrics would wait for the device at every step to look for NaNs; `DivergenceCheck` looks in its own time
        self._train = {
            name: MeanMetric(nan_strategy="disable") for name in ("train_loss", "train_accuracy", "grad_norm")
        }
        self._val = {name: MeanMetric(nan_strategy="disable") for name in ("val_loss", "val_accuracy")}
        self._recent = Recent()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the metrics to the device of the module."""
        for metric in (self._train | self._val).values():
            metric.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a step."""
        outcome = glr_module(pl_module).outcome
        columns = self._recent.add(trainer, outcome.loss, outcome.gradient_norm, outcome.logits, batch[1])
        if columns is not None:
            losses, norms, logits, labels = columns
            self._train["train_loss"].update(torch.stack(losses))
            self._train["grad_norm"].update(torch.stack(norms))
            self._train["train_accuracy"].update(accuracy_of(torch.cat(logits), torch.cat(labels)))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch of validation images."""
        self._val["val_loss"].update(outputs["loss"])
        self._val["val_accuracy"].update(accuracy_of(outputs["logits"], batch[1]))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the validation's metrics."""
        _compute_and_reset(self._val, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of the epoch."""
        module = glr_module(pl_module)
        row = _compute_and_reset(self._train, module)
        row |= {name: float(trainer.callback_metrics.get(name, math.nan)) for name in self._val}
        row |= {"epoch": trainer.current_epoch, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        for callback in training_callbacks(trainer):
            row |= callback.end_epoch(trainer, module)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if v == v}, step=trainer.global_step - 1)


def _compute_and_reset(metrics: dict[str, MeanMetric], module: pl.LightningModule) -> dict[str, float]:
    """Once an epoch: logging every step costs more than a small network's step."""
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    for name, metric in metrics.items():
        module.log(name, values[name], logger=False)  # for monitor= and the progress bar
        metric.reset()
    return values
