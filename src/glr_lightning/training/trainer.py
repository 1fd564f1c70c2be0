"""The Lightning Trainer of a training: the section `trainer` of a configuration, checked, and what is fixed here."""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from annotated_types import Interval
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from glr_lightning.data import ImageDataModule
from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.training.batch_loop import BatchLoop
from glr_lightning.training.callbacks.checkpoints import LocalCheckpoints
from glr_lightning.validation import checked_arguments
from glr_lightning.validation.words import closest

HINTS = {
    "deterministic": bool | Literal["warn"],
    "limit_train_batches": Annotated[int, Interval(ge=1)] | Annotated[float, Interval(gt=0, le=1)] | None,
    "precision": Literal["32-true", "64-true", "bf16-mixed"],  # 16-mixed scales gradients in a backward pass
}
_LENGTH = "the length of a training is given by epochs=NUMBER, which schedules and results count on"
_OPTIMIZATION = "gradients are estimated and not differentiated, so Lightning does not see them"
_ONLY_TRAINED = "a training neither tests nor predicts in batches of Lightning's"
_EVERY_EPOCH = "every epoch is validated, since the best checkpoint is chosen among all"
FIXED = {
    "gradient_clip_val": f"{_OPTIMIZATION}; use clip_norm=NUMBER",
    "gradient_clip_algorithm": f"{_OPTIMIZATION}; use clip_norm=NUMBER",
    "accumulate_grad_batches": f"{_OPTIMIZATION}; use a larger batch_size, or more copies",
    "max_epochs": _LENGTH,
    "min_epochs": _LENGTH,
    "max_steps": _LENGTH,
    "min_steps": _LENGTH,
    "max_time": _LENGTH,
    "fast_dev_run": "it writes no checkpoint; use trainer=fast epochs=1",
    "barebones": "it writes no checkpoint; use trainer=fast epochs=1",
    "overfit_batches": "it changes what is validated; use +trainer.limit_train_batches=NUMBER",
    "limit_test_batches": f"{_ONLY_TRAINED}; use glr-evaluate limit=NUMBER",
    "limit_predict_batches": f"{_ONLY_TRAINED}; use glr-evaluate limit=NUMBER",
    "limit_val_batches": "the size of the validation is data.validation=SHARE",
    "check_val_every_n_epoch": _EVERY_EPOCH,
    "val_check_interval": _EVERY_EPOCH,
    "num_sanity_val_steps": _EVERY_EPOCH,
    "inference_mode": "validation takes no gradients; nothing is gained by another mode",
    "logger": "loggers are the group logger=NAME",
    "log_every_n_steps": "metrics.csv has a row for each epoch",
    "callbacks": "callbacks are the group callbacks=[NAME]",
    "enable_checkpointing": "checkpoints are what is tested and resumed",
    "enable_progress_bar": "use progress=true or progress=false",
    "enable_model_summary": "result.json has the number of parameters",
    "default_root_dir": "the folder of a run is run_dir=FOLDER",
    "use_distributed_sampler": "the data set shares its images out among the devices itself",
    "reload_dataloaders_every_n_epochs": "the images stay in memory",
}
"""Options of Lightning's that are decided elsewhere or would break a training, each with the reason and the remedy."""


def make_trainer(
    options: Mapping[str, Any],
    epochs: int,
    folder: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    has_validation: bool,
) -> pl.Trainer:
    """Make the Trainer of a run folder. options: the section `trainer`, checked.

    Raises:
        ConfigurationError: Lightning cannot start with the options, such as devices that are not there.
    """
    if not torch.cuda.is_available():  # Lightning sets it, and each optimizer step would open the driver library anew
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    try:
        trainer = pl.Trainer(
            **options,
            max_epochs=epochs,
            default_root_dir=folder,
            logger=loggers,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=0,  # never: EpochMetrics writes a row an epoch
            limit_val_batches=1.0 if has_validation else 0,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        given = " ".join(f"trainer.{key}={value}" for key, value in options.items())
        raise ConfigurationError(f"Lightning cannot start with {given}: {words_of(error)}") from None
    trainer.fit_loop.epoch_loop = BatchLoop(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = LocalCheckpoints()
    return trainer


def checked_options(node: Any) -> dict[str, Any]:
    """Return the section `trainer` as keyword arguments; one device, unless it says how many.

    (Lightning would take all that there are, which the identity of a run does not count.)

    Raises:
        ConfigurationError: an option that Lightning does not have or that is fixed here, or a value that cannot work.
    """
    if not isinstance(node, Mapping):
        raise ConfigurationError(
            f"trainer must be a section of options, got {node!r}; use trainer=default.", option="trainer"
        )
    known = sorted(set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", *FIXED})
    for name in node:
        if name in FIXED:
            raise ConfigurationError(f"trainer.{name} cannot be set: {FIXED[name]}.", option=f"trainer.{name}")
        if name not in known:
            advice = closest(name, known) or f" Choose from {', '.join(known)}."
            raise ConfigurationError(f"Lightning's Trainer has no option {name!r}.{advice}", option=f"trainer.{name}")
    options = {**node, "devices": node.get("devices", 1)}
    _require_devices(options["devices"])
    return checked_arguments(pl.Trainer.__init__, options, "trainer", hints=HINTS)


def require_a_batch(options: Mapping[str, Any], data: ImageDataModule) -> None:
    """Refuse a share of the training batches that is less than one of them.

    Args:
        options: the section `trainer`, checked.
        data: the images that have been read.

    Raises:
        ConfigurationError: the share is too small.
    """
    share = options.get("limit_train_batches")
    if isinstance(share, float) and int(share * (batches := len(data.train_dataloader()))) < 1:  # as Lightning counts
        raise ConfigurationError(
            f"trainer.limit_train_batches={share} of {batches} batches is less than one; give a larger share, or a "
            "number of batches, such as trainer.limit_train_batches=1.",
            option="trainer.limit_train_batches",
        )


def _require_devices(devices: Any) -> None:
    """Refuse what is neither a number of devices nor a list of indices: how many there are is part of a run."""
    indices = devices if isinstance(devices, list | tuple) else [devices - 1 if type(devices) is int else None]
    whole = all(type(index) is int and 0 <= index < 2**16 for index in indices)
    if not indices or not whole or len(set(indices)) < len(indices):
        raise ConfigurationError(
            f"devices must be how many devices to use, at least 1, or a list of the indices of GPUs, got {devices!r}; "
            "use for example devices=1.",
            option="trainer.devices",
        )
