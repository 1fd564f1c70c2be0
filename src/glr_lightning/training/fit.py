"""Train what a configuration describes, and leave a run folder."""

import copy
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from glr_lightning.config import TrainConfig, build, checked_root, compose, trusted_prefixes
from glr_lightning.data import ImageDataModule
from glr_lightning.errors import ConfigurationError, GLRError, words_of
from glr_lightning.estimators import Estimator
from glr_lightning.losses import Loss
from glr_lightning.runs.trained_run import LAST, build_data, build_network, create_run_folder
from glr_lightning.terminal import quieted_libraries
from glr_lightning.training.callbacks import (
    ClassCollapse,
    Cost,
    DivergenceCheck,
    EpochMetrics,
    GradientClipping,
    TrainingProgress,
)
from glr_lightning.training.callbacks.base import training_callbacks
from glr_lightning.training.callbacks.checkpoints import run_checkpoints
from glr_lightning.training.images import LightningImages
from glr_lightning.training.module import GLRModule, require_working_optimizer
from glr_lightning.training.result import write_result
from glr_lightning.training.resume import require_resumable, restore_metrics, start_metrics
from glr_lightning.training.trainer import checked_options, make_trainer, require_a_batch
from glr_lightning.validation import checked

log = logging.getLogger(__name__)


@checked
@quieted_libraries()
def train(
    config: Mapping[str, Any] | Sequence[str],
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Train what a configuration describes and test it once.

    What is going to be trained, and classes that die, are logged under `glr_lightning`. Lightning's own banners and
    advice are kept quiet meanwhile.

    Args:
        config: a resolved configuration, as `glr_lightning.compose` returns it; or a list of overrides for it, such
            as ["experiment=lrtz", "data=mnist"].
        run_dir: the run folder to make, or with `resume` to go on with; None: the configuration's own `run_dir`.
        resume: continue from the folder's last checkpoint. The folder's configuration must then be passed.
        trusted: packages beside this one and torch whose code the configuration of a resumed run may name.

    Returns:
        The content of result.json; of several processes, in the first one.

    Raises:
        ConfigurationError: an option, or a combination, that cannot work; a folder that is taken.
        DataError, CheckpointError: files that are missing or damaged.
        DivergenceError: a NaN or infinite loss; the last checkpoint is kept.
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    config = checked_root(TrainConfig, _whole(config if isinstance(config, Mapping) else compose(config)))
    options = checked_options(config["trainer"])
    folder = Path(config["run_dir"] if run_dir is None else run_dir)
    allowed = trusted_prefixes(trusted) if resume else None
    if resume:
        require_resumable(folder)

    pl.seed_everything(config["seed"], verbose=False)
    data, module, chosen = _built(config, allowed)
    require_a_batch(options, data)
    has_validation = data.val_dataloader() != []
    callbacks = [*_callbacks(config, chosen), *run_checkpoints(folder, has_validation)]
    loggers = _loggers(config, folder, resume)
    trainer = make_trainer(options, config["epochs"], folder, callbacks, loggers, has_validation)
    _check_callbacks(trainer, module)

    if trainer.is_global_zero:
        if not resume:
            create_run_folder(folder, config | {"run_dir": str(folder)})
            start_metrics(loggers)
        for line in module.estimator.describe(module.network, module.loss):
            log.info(line)
    added = {f"callbacks.{name}": callback for name, callback in chosen.items()}
    added |= {f"logger.{name}": logger for name, logger in zip(config["logger"], loggers, strict=False)}
    try:
        with _naming(added):
            trainer.fit(
                module, LightningImages(data), ckpt_path=str(folder / LAST) if resume else None, weights_only=True
            )
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt(f"Go on with: glr-train resume={folder}") from None
    if not trainer.is_global_zero:
        return {}
    return write_result(folder, config, module.network, module.estimator.family, data, trainer.strategy.root_device)


def _built(
    config: Mapping[str, Any], trusted: Sequence[str] | None
) -> tuple[ImageDataModule, GLRModule, dict[str, Any]]:
    """Return the data, the module that trains on them, checked together, and the chosen callbacks by name."""
    data = build_data(config, trusted)
    data.prepare_data()
    data.setup()  # the test files too: damage shows now and not after hours
    network = build_network(config, data, trusted)
    parts = build({key: config[key] for key in ("optimizer", "scheduler", "callbacks")}, trusted=trusted)
    chosen = parts.pop("callbacks")
    for key, kind in {"estimator": Estimator, "loss": Loss}.items():
        parts[key] = build(config[key], where=key, trusted=trusted, kind=kind)
    images = data.split("train", 8)[0]
    _require_logits(network, images, data.classes)
    module = GLRModule(network, **parts, seed=config["seed"], compile=config.get("compile", False))
    module.estimator.check(network, module.loss, images)  # with images, some of it depends on them
    require_working_optimizer(module)
    return data, module, chosen


@torch.no_grad()
def _require_logits(network: nn.Module, images: Tensor, classes: int) -> None:
    """Run the network once. Raises ConfigurationError unless it takes the images and returns a logit for each class."""
    try:
        logits = copy.deepcopy(network).eval()(images.to(next(network.parameters(), images).dtype))
    except Exception as error:  # torch's modules raise many
        raise ConfigurationError(
            f"the network does not take images of shape {list(images.shape[1:])}: {words_of(error)}. Change "
            "network, activation or preprocess, or the data."
        ) from error
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != [len(images), classes]:
        raise ConfigurationError(
            f"the network must return {[len(images), classes]} logits for {len(images)} images of {classes} classes, "
            f"got {shape}; change network, activation or preprocess."
        )


@contextmanager
def _naming(added: Mapping[str, Any]) -> Iterator[None]:
    """Name the callback or logger of another package in which an error is raised within the block.

    Raises:
        ConfigurationError: instead of the error.
    """
    try:
        yield
    except GLRError:
        raise
    except Exception as error:
        inside = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
        for option, each in added.items():
            if not type(each).__module__.startswith("glr_lightning.") and any(each is other for other in inside):
                raise ConfigurationError(
                    f"{option} failed in the training: {type(error).__name__}: {words_of(error)}; change its options, "
                    f"or leave it out: ~{option}",
                    option=option,
                ) from error
        raise


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with all root keys. Raises ConfigurationError unless it has them; some may be left out."""
    optional: dict[str, Any] = {"trusted": [], "compile": False}
    missing = sorted({key.name for key in dataclasses.fields(TrainConfig)} - {*optional, *config})
    if missing:
        raise ConfigurationError(
            f"the configuration has no {', '.join(missing)}; it is damaged, or of an earlier glr-train. Train "
            "again, or go on with the version that began."
        )
    return optional | dict(config)


def _check_callbacks(trainer: pl.Trainer, module: GLRModule) -> None:
    """Let callbacks refuse the training before anything is written. Raises ConfigurationError."""
    for callback in training_callbacks(trainer):
        callback.check(trainer, module)


def _callbacks(config: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[Callback]:
    """The chosen callbacks, and after them those that every training has.

    Raises:
        ConfigurationError: a name that has options and is not chosen, or is no callback.
    """
    for name, callback in chosen.items():
        if not isinstance(callback, Callback):
            raise ConfigurationError(
                f"callbacks.{name} is no Lightning callback but {callback!r}; choose it as callbacks=[{name}] if there "
                f"is a conf/callbacks/{name}.yaml, else give it a _target_, or leave it out: ~callbacks.{name}",
                option=f"callbacks.{name}",
            )
    callbacks = list(chosen.values())
    if not any(isinstance(callback, ClassCollapse) for callback in callbacks):
        callbacks.append(ClassCollapse())
    callbacks.append(DivergenceCheck())
    if config["clip_norm"] is not None:
        callbacks.append(GradientClipping(config["clip_norm"]))
    callbacks += [EpochMetrics(), Cost()]
    return [*callbacks, TrainingProgress()] if config["progress"] else callbacks


def _loggers(config: Mapping[str, Any], folder: Path, resume: bool) -> list[Logger]:
    # of a run folder's loggers only the choice is taken, since a logger may write anywhere
    chosen = compose([f"logger={list(config['logger'])[-1]}"])["logger"] if resume else config["logger"]
    loggers: list[Logger] = []
    for name, node in chosen.items():
        place = {"save_dir": str(folder)} if isinstance(node, dict) else {}
        loggers.append(build(node, where=f"logger.{name}", trusted=None, kind=Logger, **place))
    if resume:
        restore_metrics(loggers, folder)
    return loggers
