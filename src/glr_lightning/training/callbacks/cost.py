"""What a training has cost: forward passes and seconds."""

import time
from typing import Any

import pytorch_lightning as pl

from glr_lightning.training.callbacks.base import TrainingCallback
from glr_lightning.training.module import GLRModule, glr_module


class Cost(TrainingCallback):
    """Counts forward passes of one sample, over all ranks, and seconds; both go on where a run is resumed.

    Checkpoints hold them as `cost`, where a run's result looks them up.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.train_seconds = 0.0
        self._clock = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the passes of a step."""
        self.forwards += glr_module(pl_module).outcome.forwards

    def end_epoch(self, trainer: pl.Trainer, module: GLRModule) -> dict[str, float]:
        """Return the passes since the first epoch, and take the time."""
        now = time.perf_counter()
        self.train_seconds += now - self._clock
        self._clock = now
        return {"forwards": self.forwards}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save both counts."""
        checkpoint["cost"] = {"forwards": self.forwards, "train_seconds": self.train_seconds}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from the counts of a checkpoint."""
        self.forwards, self.train_seconds = checkpoint["cost"]["forwards"], checkpoint["cost"]["train_seconds"]
