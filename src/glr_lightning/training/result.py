"""result.json: what has become of a training, in the run folder."""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glr_lightning.config import config_hash, experiment_hash
from glr_lightning.data import ImageDataModule
from glr_lightning.runs.environment import PACKAGES
from glr_lightning.runs.trained_run import BEST, LAST, RESULT, accuracy, load_checkpoint, load_weights
from glr_lightning.storage import write_atomically
from glr_lightning.training.dead_classes import dead_classes


def write_result(
    folder: Path, config: dict[str, Any], network: nn.Module, family: str, data: ImageDataModule, device: torch.device
) -> dict[str, Any]:
    """Test the best checkpoint of a finished training once, and write and return result.json.

    Args:
        folder: the run folder. All figures come from its checkpoints, since a spawned process trains its own copy.
        config: what was trained.
        network: of the checkpoints; it gets the best one's weights.
        family: the estimator's, which a report cannot ask of a class in another package.
        data: the images to test with.
        device: where to test.
    """
    if data.val_dataloader() == []:  # nothing to choose by: the final weights are the ones tested, as in paper 1
        shutil.copyfile(folder / LAST, folder / BEST)
    best, last = load_checkpoint(folder / BEST), load_checkpoint(folder / LAST)
    load_weights(network, best, folder / BEST)
    result = {
        "test_accuracy": accuracy(network.to(device), *data.split("test")),
        "best_epoch": best["epoch"],
        "epochs": config["epochs"],
        "train_seconds": round(last["cost"]["train_seconds"], 3),
        "forwards": last["cost"]["forwards"],
        "dead_classes": dead_classes(last),
        "family": family,
        "parameters": sum(p.numel() for p in network.parameters()),
        "device": str(device),
        "seed": config["seed"],
        "experiment": config.get("experiment"),
        "config_hash": config_hash(config),
        "experiment_hash": experiment_hash(config),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result
