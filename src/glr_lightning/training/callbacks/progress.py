"""Progress bars that cost a small network nothing: one bar for a whole run, drawn a few times a second."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

from glr_lightning.terminal import progress_bar


class TrainingProgress(Callback):
    """Epochs done, loss, validation accuracy and the time left.

    Lightning's own bars start anew each epoch and redraw on every batch, which costs more than a small network's
    epoch; this one hands a batch count to rich now and then, and rich draws from a thread of its own.
    """

    EVERY = 10  # batches

    def __init__(self) -> None:
        self._bar = progress_bar(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            enabled=True,
        )
        self._task = self._bar.add_task("")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar, in the first process."""
        self._bar.update(self._task, total=trainer.max_epochs, completed=trainer.current_epoch)
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, every few batches."""
        if batch_idx % self.EVERY == 0:
            part = (batch_idx + 1) / trainer.num_training_batches
            self._bar.update(self._task, completed=trainer.current_epoch + part)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch before."""
        self._show(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last epoch and end the bar."""
        self._show(trainer, trainer.current_epoch)
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End the bar."""
        self._bar.stop()

    def _show(self, trainer: pl.Trainer, epoch: int) -> None:
        """The metrics of the epoch that has just ended."""
        names = {"train_loss": "loss", "train_accuracy": "train", "val_accuracy": "val"}
        known = trainer.callback_metrics
        words = "  ".join(f"{short} {known[name]:.4g}" for name, short in names.items() if name in known)
        self._bar.update(self._task, completed=epoch, description=words)
