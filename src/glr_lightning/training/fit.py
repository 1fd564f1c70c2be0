"""Train what a configuration describes, and leave a run folder."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from glr_lightning.config import TRUSTED, TrainConfig, build, checked_root, compose
from glr_lightning.errors import ConfigurationError
from glr_lightning.runs.trained_run import LAST, create_run_folder
from glr_lightning.training.callbacks import (
    ClassCollapse,
    Cost,
    DivergenceCheck,
    EpochMetrics,
    GradientClipping,
    TrainingCallback,
    TrainingProgress,
)
from glr_lightning.training.callbacks.checkpoints import run_checkpoints
from glr_lightning.training.module import GLRModule, require_working_optimizer
from glr_lightning.training.result import write_result
from glr_lightning.training.resume import require_resumable, restore_metrics, start_metrics
from glr_lightning.training.trainer import checked_options, make_trainer

log = logging.getLogger(__name__)


def train(
    config: Mapping[str, Any] | Sequence[str],
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Train what a configuration describes and test it once.

    What is going to be trained, and classes that die, are logged under `glr_lightning`.

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
    if isinstance(config, str):
        raise ConfigurationError(
            f"train takes a configuration or a list of overrides, got {config!r}; give [{config!r}]."
        )
    config = checked_root(TrainConfig, _whole(config if isinstance(config, Mapping) else compose(config)))
    checked_options(config["trainer"])
    folder = Path(config["run_dir"] if run_dir is None else run_dir)
    allowed = (*TRUSTED, *(f"{package}." for package in trusted)) if resume else None
    if resume:
        require_resumable(folder)

    pl.seed_everything(config["seed"], verbose=False)
    data = build(config["data"], where="data", trusted=allowed)
    data.prepare_data()
    data.setup()  # the test files too: damage shows now and not after hours
    kind = {"image_shape": data.image_shape, "classes": data.classes}
    network = build(config["network"], where="network", trusted=allowed, **kind)
    parts = {key: config[key] for key in ("estimator", "loss", "optimizer", "scheduler", "callbacks")}
    built = build(parts, trusted=allowed)
    chosen = built.pop("callbacks")
    module = GLRModule(network, **built, seed=config["seed"])
    module.estimator.check(network, module.loss, data.split("train", 8)[0])  # with images, some of it depends on them
    require_working_optimizer(module)
    has_validation = data.val_dataloader() != []
    callbacks = [*_callbacks(config, chosen), *run_checkpoints(folder, has_validation)]
    loggers = _loggers(config, folder, resume)
    trainer = make_trainer(config, folder, callbacks, loggers, has_validation)
    _check_callbacks(trainer, module)

    if trainer.is_global_zero:
        if not resume:
            create_run_folder(folder, config)
            start_metrics(loggers)
        for line in module.estimator.describe(network, module.loss):
            log.info(line)
    try:
        trainer.fit(module, data, ckpt_path=str(folder / LAST) if resume else None, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt(f"Go on with: glr-train resume={folder}") from None
    if not trainer.is_global_zero:
        return {}
    return write_result(folder, config, network, data, trainer.strategy.root_device)


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with all root keys. Raises ConfigurationError unless it has them, `trusted` aside."""
    missing = sorted({key.name for key in dataclasses.fields(TrainConfig)} - {"trusted", *config})
    if missing:
        raise ConfigurationError(
            f"the configuration has no {', '.join(missing)}; it is damaged, or of an earlier glr-train. Train "
            "again, or go on with the version that began."
        )
    return {"trusted": [], **config}


def _check_callbacks(trainer: pl.Trainer, module: GLRModule) -> None:
    """Let callbacks refuse the training before anything is written. Raises ConfigurationError."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TrainingCallback):
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
                f"is a conf/callbacks/{name}.yaml, else give it a _target_, or leave it out: ~callbacks.{name}"
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
    loggers: list[Logger] = [
        build(node, where=f"logger.{name}", trusted=None, save_dir=str(folder)) for name, node in chosen.items()
    ]
    if resume:
        restore_metrics(loggers, folder)
    return loggers
