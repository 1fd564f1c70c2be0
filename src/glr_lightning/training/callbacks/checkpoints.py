"""The checkpoints of a run folder: before the first step, the best and the last."""

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from glr_lightning.runs.trained_run import BEST, LAST
from glr_lightning.storage import replacing


class LocalCheckpoints(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, as Lightning's own does, which looks for remote file systems first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint. Raises OSError if it cannot be written; the one before is kept."""
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


class InitialCheckpoint(Callback):
    """Saves before the first step, so that a run interrupted in its first epoch can be resumed as well."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the untrained network, unless the run is resumed."""
        if trainer.global_step == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST, weights_only=False)


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint with a fixed name in the run folder, which may have been moved since it was written.

    Args:
        path: where to write it.
        monitor: the metric whose largest value so far is kept; None: every epoch replaces the one before.
    """

    def __init__(self, path: Path, monitor: str | None = None) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin, without Lightning's warning of a folder that is not empty: a resumed run's never is."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best score although the folder's path differs; Lightning would forget it."""
        path = f"{self.dirpath}/{self.filename}.ckpt"
        here = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        scores = {path: state_dict["best_model_score"]} if state_dict["best_k_models"] else {}
        super().load_state_dict(state_dict | here | {"best_k_models": scores})


def run_checkpoints(folder: Path, has_validation: bool) -> list[Callback]:
    """The best checkpoint by validation accuracy, if there are images to validate with, and the last one."""
    # the best before the last, whose file then remembers it; save_last=True would save only when the best improves
    best = [RunCheckpoint(folder / BEST, "val_accuracy")] if has_validation else []
    return [InitialCheckpoint(), *best, RunCheckpoint(folder / LAST)]
