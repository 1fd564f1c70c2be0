"""The row of metrics.csv of every epoch."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchmetrics import MeanMetric

from glr_lightning.training.callbacks.base import Recent, Sums, training_callbacks
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
        self._train = Means("train_loss", "train_accuracy", "grad_norm")
        # "disable": else each batch would wait for the device, to look for NaNs
        self._val = {name: MeanMetric(nan_strategy="disable") for name in ("val_loss", "val_accuracy")}
        self._recent = Recent()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the metrics to the device of the module."""
        for metric in self._val.values():
            metric.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a step."""
        outcome = glr_module(pl_module).outcome
        columns = self._recent.add(trainer, outcome.loss, outcome.gradient_norm, outcome.logits, batch[1])
        if columns is not None:
            self._update(columns)

    def _update(self, columns: list[tuple[Tensor, ...]]) -> None:
        losses, norms, logits, labels = columns
        accuracy = accuracy_of(torch.cat(logits), torch.cat(labels))
        self._train.add(train_loss=torch.stack(losses), train_accuracy=accuracy, grad_norm=torch.stack(norms))

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
        _publish(trainer, {name: float(metric.compute()) for name, metric in self._val.items()})
        for metric in self._val.values():
            metric.reset()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of the epoch."""
        module = glr_module(pl_module)
        left = self._recent.take()
        if left is not None:
            self._update(left)
        row = self._train.take(trainer)
        _publish(trainer, row)
        row |= {name: float(trainer.callback_metrics.get(name, math.nan)) for name in self._val}
        row |= {"epoch": trainer.current_epoch, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        for callback in training_callbacks(trainer):
            row |= callback.end_epoch(trainer, module)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if v == v}, step=trainer.global_step - 1)


class Means:
    """Means over the steps of an epoch and over ranks, by name; a torchmetrics one costs as much as a short epoch."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._sums = Sums()

    def add(self, **values: Tensor) -> None:
        """Add values of each name, of any shape, in single precision."""
        for name, value in values.items():
            self._sums.add(**{name: torch.stack([value.float().sum(), value.new_tensor(value.numel()).float()])})

    def take(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the means, NaN without values, and begin anew."""
        sums = self._sums.take(trainer)
        return {name: float(sums[name][0] / sums[name][1]) if name in sums else math.nan for name in self.names}


def _publish(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Give values to `monitor=` and the progress bar, as `LightningModule.log` would at twenty times the cost."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
