"""Train what a configuration describes, and leave a run folder."""

import csv
import dataclasses
import json
import math
import os
import platform
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from glr_lightning.config import (
    TRUSTED,
    TrainConfig,
    build,
    compose,
    config_hash,
    require_seed,
)
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.runs.environment import PACKAGES
from glr_lightning.runs.trained_run import (
    BEST,
    LAST,
    METRICS,
    RESULT,
    build_data,
    build_network,
    create_run_folder,
    load_checkpoint,
    load_weights,
)
from glr_lightning.storage import write_atomically
from glr_lightning.training.callbacks.annealing import Annealing
from glr_lightning.training.callbacks.progress import TrainingProgress
from glr_lightning.training.module import GLRModule
from glr_lightning.validation import validated_copies

PRECISIONS = ("32-true", "64-true", "bf16-mixed")


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint with a fixed name in the run folder, which may have been moved since it was written."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best score although the folder's path differs; Lightning would forget it."""
        path = f"{self.dirpath}/{self.filename}.ckpt"
        here = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        scores = {path: state_dict["best_model_score"]} if state_dict["best_k_models"] else {}
        super().load_state_dict(state_dict | here | {"best_k_models": scores})


class InitialCheckpoint(Callback):
    """Saves before the first step, so that a run interrupted in its first epoch can be resumed as well."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)


def train(
    config: dict[str, Any], run_dir: Path, *, resume: bool = False, notify: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Train what a resolved configuration describes and test it once.

    Args:
        config: a plain, resolved configuration, as `glr_lightning.config.compose` returns it.
        run_dir: the run folder to make, or with `resume` to go on with.
        resume: continue from the folder's last checkpoint. The folder's configuration must then be passed.
        notify: is told, line by line, what is going to be trained and how, and of classes that die; None: nobody is.

    Returns:
        The content of result.json; of several processes, in the first one.

    Raises:
        ConfigurationError: an option, or a combination, that cannot work; a folder that is taken.
        DataError, CheckpointError: files that are missing or damaged.
        DivergenceError: a NaN or infinite loss; the last checkpoint is kept.
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    trusted = TRUSTED if resume else None
    _check_root(config)
    if resume:
        last = load_checkpoint(run_dir / LAST)
        done = last["epoch"]
        if not last.get("optimizer_states") or not last.get("lr_schedulers"):
            raise CheckpointError(f"{run_dir / LAST} holds no optimizer to go on with; it is damaged.")
        if (run_dir / RESULT).exists():
            raise ConfigurationError(
                f"the run in {run_dir} is finished after {done + 1} epochs; there is nothing to resume."
            )
    pl.seed_everything(config["seed"], verbose=False)
    if not torch.cuda.is_available():  # Lightning sets it, and each optimizer step would open the driver library anew
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    data = build_data(config, trusted)
    data.prepare_data()
    data.setup()  # the test files too: damage shall show now, not after hours
    network = build_network(config, data, trusted)
    estimator = build(config["estimator"], where="estimator", trusted=trusted)
    sigma, copies = (build(config[name], where=name, trusted=trusted) for name in ("sigma_schedule", "copies_schedule"))
    module = GLRModule(
        network,
        estimator,
        build(config["loss"], where="loss", trusted=trusted),
        build(config["optimizer"], where="optimizer", trusted=trusted),
        build(config["scheduler"], where="scheduler", trusted=trusted),
        classes=data.classes,
        seed=config["seed"],
        clip_norm=config["clip_norm"],
        learn_sigma=config["learn_sigma"],
        sigma_lr=config["sigma_lr"],
        lr_factors=config["lr_factors"],
        annealing=Annealing(estimator, sigma, copies, config["epochs"]),
        revive=config["revive"],
        diagnostics=config["diagnostics"],
        notify=notify,
    )
    has_validation = data.val_dataloader() != []
    _check_factories(module, config)
    trainer = _trainer(config, run_dir, has_validation, resume)
    if not resume and trainer.is_global_zero:
        create_run_folder(run_dir, config)
    if notify is not None and trainer.is_global_zero:
        for line in estimator.describe(network, module.loss):
            notify(line)
    _fit(trainer, module, data, run_dir, resume)
    if not trainer.is_global_zero:
        return {}
    if not has_validation:  # nothing to choose by: the final weights are the ones tested, as in the papers
        shutil.copyfile(run_dir / LAST, run_dir / BEST)
    load_weights(network, load_checkpoint(run_dir / BEST), run_dir / BEST)
    network.to(trainer.strategy.root_device)
    result = {"test_accuracy": accuracy(network, *data.split("test"))} | _result(config, module, trainer, run_dir)
    write_atomically(run_dir / RESULT, json.dumps(result, indent=2) + "\n")
    return result


@torch.inference_mode()
def accuracy(network: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1000) -> float:
    """The share of images that the noise-free network classifies rightly. x [n, C, H, W] in [0, 1], y [n]."""
    place = next(network.parameters())
    network.eval()
    predictions = torch.cat([network(batch.to(place)).argmax(1) for batch in x.split(batch_size)])
    return float((predictions == y.to(place.device)).double().mean())


def _check_root(config: dict[str, Any]) -> None:
    fields = {key.name for key in dataclasses.fields(TrainConfig)}
    try:
        OmegaConf.merge(OmegaConf.structured(TrainConfig), {k: v for k, v in config.items() if k in fields})
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"the configuration is damaged: {str(error).splitlines()[0]}") from None
    missing = sorted(fields - set(config))
    if missing:
        raise ConfigurationError(
            f"the configuration has no {', '.join(missing)}; it is damaged, or of an earlier glr-train. Train "
            "again, or go on with the version that began."
        )
    unknown = sorted(set(config) - fields - {"experiment"})
    if unknown:
        words = ", ".join(unknown)
        raise ConfigurationError(f"the configuration has {words}, which glr-train does not know; leave it out.")
    validated_copies(config["copies"])  # also where the estimator has none
    if config["epochs"] < 1:
        raise ConfigurationError(f"epochs must be at least 1, got {config['epochs']}.")
    require_seed(config["seed"])
    for name, null in {"revive": "never", "clip_norm": "no limit", "sigma_lr": "the optimizer's own"}.items():
        if config[name] is not None and not 0 < config[name] < math.inf:
            raise ConfigurationError(f"{name} must be positive and finite, or null for {null}, got {config[name]}.")
    if config["sigma_lr"] is not None and config["learn_sigma"] is None:
        raise ConfigurationError(
            "sigma_lr is the learning rate of noise scales that are learned; add learn_sigma=layer or leave it out."
        )
    if config["precision"] not in PRECISIONS:
        raise ConfigurationError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {config['precision']!r}. "
            "(16-mixed cannot work: its gradient scaling needs a backward pass.)"
        )


def _check_factories(module: GLRModule, config: dict[str, Any]) -> None:
    """Make optimizer and scheduler once before anything is written; torch checks their options only then."""
    try:
        made = module.configure_optimizers()
        with warnings.catch_warnings():  # that the optimizer has not stepped
            warnings.simplefilter("ignore")
            made["lr_scheduler"].step()
    except (TypeError, ValueError, ArithmeticError) as error:
        options = {"optimizer": config["optimizer"], "scheduler": config["scheduler"]}
        raise ConfigurationError(f"torch refuses these options ({error}): {options}") from None


def _trainer(config: dict[str, Any], run_dir: Path, has_validation: bool, resume: bool) -> pl.Trainer:
    callbacks: list[Callback] = [InitialCheckpoint()]
    # the best before the last, whose file then remembers it; save_last=True would save only when the best improves
    for path, monitor in ((BEST, "val_accuracy"), (LAST, None)):
        if has_validation or monitor is None:
            checkpoint = RunCheckpoint(
                dirpath=run_dir / path.parent,
                filename=path.stem,
                monitor=monitor,
                mode="max",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
            callbacks.append(checkpoint)
    if config["progress"]:
        callbacks.append(TrainingProgress())
    rows = _read_metrics(run_dir) if resume else []
    # of a run folder's loggers only the choice is taken, since a logger may write anywhere
    chosen = compose([f"logger={list(config['logger'])[-1]}"])["logger"] if resume else config["logger"]
    loggers: list[Logger] = [
        build(node, where=f"logger.{name}", trusted=None, save_dir=str(run_dir)) for name, node in chosen.items()
    ]
    for logger in loggers:
        if isinstance(logger, CSVLogger) and rows:
            logger.experiment.metrics.extend(rows)  # a new CSVLogger starts an empty file
    try:
        return pl.Trainer(
            accelerator=config["device"],
            devices=config["devices"],
            strategy=config["strategy"],
            precision=config["precision"],
            max_epochs=config["epochs"],
            default_root_dir=run_dir,
            logger=loggers,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=10**9,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ModuleNotFoundError) as error:
        raise ConfigurationError(f"Lightning cannot start with these device options: {error}") from None


def _fit(trainer: pl.Trainer, module: GLRModule, data: pl.LightningDataModule, run_dir: Path, resume: bool) -> None:
    try:
        trainer.fit(module, data, ckpt_path=str(run_dir / LAST) if resume else None, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt(f"Go on with: glr-train resume={run_dir}") from None


def _read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The metrics up to the last checkpoint; later ones will be computed again."""
    path, steps = run_dir / METRICS, load_checkpoint(run_dir / LAST)["global_step"]
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: _number(text) for key, text in row.items() if text} for row in csv.DictReader(file)]
        return [row for row in rows if row["step"] < steps]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Remove it to resume without the earlier metrics.") from None


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _result(config: dict[str, Any], module: GLRModule, trainer: pl.Trainer, run_dir: Path) -> dict[str, Any]:
    last = load_checkpoint(run_dir / LAST)  # not the module: a spawned process counted in its own copy
    cost = last["cost"]
    return {
        "best_epoch": load_checkpoint(run_dir / BEST)["epoch"],
        "epochs": config["epochs"],
        "train_seconds": round(cost["train_seconds"], 3),
        "forwards": cost["forwards"],
        "dead_classes": last["dead_classes"],
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "device": str(trainer.strategy.root_device),
        "seed": config["seed"],
        "experiment": config.get("experiment"),
        "config_hash": config_hash(config),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
