"""Run folders: what is in one, and how a trained network is rebuilt from it.

    config.yaml  result.json  metrics.csv  checkpoints/{last,best}.ckpt  robustness.csv  robustness.npz

A run folder may come from somebody else: its configuration is read as data and its checkpoints with
weights_only=True, so nothing in it is run.
"""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from glr_lightning.config import TRUSTED, build, load_yaml, trusted_prefixes
from glr_lightning.data import ImageDataModule
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.propagation.asked_values import see
from glr_lightning.runs.upgrade import upgrade
from glr_lightning.storage import write_atomically
from glr_lightning.validation import checked
from glr_lightning.validation.words import shown

CONFIG, RESULT, METRICS = "config.yaml", "result.json", "metrics.csv"
ROBUSTNESS, PER_IMAGE = "robustness.csv", "robustness.npz"
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
CHECKPOINTS = {"best": BEST, "last": LAST}


@dataclass(frozen=True)
class TrainedRun:
    """A network rebuilt from its run folder, noise-free and in eval mode.

    It comes with the data it was trained on and the whole checkpoint that its weights are from.
    """

    folder: Path
    config: dict[str, Any] = field(repr=False)
    network: nn.Module = field(repr=False)
    data: ImageDataModule = field(repr=False)
    checkpoint: dict[str, Any] = field(repr=False)


def create_run_folder(folder: Path, config: dict[str, Any]) -> None:
    """Make the folder and write its configuration.

    Raises:
        ConfigurationError: the folder holds something already; nothing in it is touched.
    """
    if (folder / CONFIG).exists():
        raise ConfigurationError(
            f"run_dir={folder} already holds a run; choose another run_dir, or go on with that run: "
            f"glr-train resume={folder}",
            option="run_dir",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(
            f"run_dir={folder} is in use and holds no run; choose another run_dir.", option="run_dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, yaml.safe_dump(config, sort_keys=False))
    except OSError as error:
        raise ConfigurationError(
            f"run_dir={folder} cannot be written: {error}; choose another run_dir.", option="run_dir"
        ) from None


def find_runs(patterns: Any, option: str = "run") -> list[Path]:
    """The run folders that a path, a glob, or a list of them names, sorted.

    A folder without a config.yaml of its own stands for the runs below it. `option` names the option in errors.

    Raises:
        CheckpointError: a pattern that names no run.
        ConfigurationError: what is no pattern.
    """
    found: set[Path] = set()
    given = patterns if isinstance(patterns, list | tuple) else [patterns]
    if not given or any(isinstance(each, bool) or not isinstance(each, str | int | Path) for each in given):
        raise ConfigurationError(
            f'{option} must be a folder, a glob such as "{option}=runs/*", or a list of them, got {shown(patterns)}.',
            option=option,
        )
    for pattern in map(str, given):
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else [Path(match) for match in glob.glob(str(path), recursive=True)]
        runs = [run for match in matches for run in _runs_at(match)]
        if not runs:
            what = f"matches {len(matches)} path(s), none of them a run folder" if matches else "matches nothing"
            raise CheckpointError(
                f"{option}={pattern} {what}; a run folder holds {CONFIG} and {BEST}, as glr-train leaves it."
            )
        found.update(runs)
    return sorted(found)


def _runs_at(path: Path) -> list[Path]:
    if (path / CONFIG).is_file():
        return [path]
    return [config.parent for config in path.rglob(CONFIG)] if path.is_dir() else []


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run folder, in the present shape. Raises ConfigurationError as `load_yaml`."""
    return upgrade(load_yaml(folder / CONFIG))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint without running anything in it.

    Raises:
        CheckpointError: not there, damaged, or holding more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        last = path.with_name(LAST.name).exists()
        go_on = f"use checkpoint={LAST.stem}, or go on with glr-train resume={path.parents[1]}"
        remedy = go_on if last else "train first"
        raise CheckpointError(f"there is no checkpoint {path}; {remedy}, or name a folder that holds one.") from None
    except Exception as error:  # torch reports damage in many ways
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {path} is refused: it is damaged, or holds more than tensors and plain values "
            f"({first_line}). Nothing in it was run. Train again, or fetch the file again."
        ) from None
    needed = {"state_dict": dict, "epoch": int, "global_step": int, "cost": dict}
    content: dict[str, Any] = checkpoint if isinstance(checkpoint, dict) else {}
    for key, kind in needed.items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path} is not a checkpoint of glr-train: it has no {key}.")
    return content


def load_weights(network: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Copy a checkpoint's weights into a network. Raises CheckpointError if they do not fit."""
    prefix = "network."
    weights = {str(key): value for key, value in checkpoint["state_dict"].items()}
    state = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except Exception as error:  # missing, unexpected and misshapen entries, or no tensors at all
        raise CheckpointError(
            f"the weights of {path} do not fit the network of its {CONFIG}, another for images of another shape; put "
            f"back the {CONFIG} that it was trained with, or train again. {error}"
        ) from None
    if not all(torch.isfinite(parameter).all() for parameter in network.parameters()):
        raise CheckpointError(f"{path} holds weights that are not finite; the training diverged. Train again.")


def build_data(
    config: Mapping[str, Any], trusted: Sequence[str] | None = TRUSTED, root: str | None = None
) -> ImageDataModule:
    """The data module of a configuration; `root` replaces the data folder it names."""
    section = config.get("data")
    if not isinstance(section, dict):
        raise ConfigurationError("the configuration has no section 'data'; it is damaged or not of glr-train.")
    data: ImageDataModule = build(at_root(section, root), where="data", trusted=trusted, kind=ImageDataModule)
    return data


def at_root(section: dict[str, Any], root: str | None) -> dict[str, Any]:
    """A configuration's section `data` with its folder elsewhere; None: where it was.

    A folder for decoded images was chosen for the place where the data lay, and is forgotten with it.
    """
    if root is None or Path(root).expanduser() == Path(str(section.get("root"))).expanduser():
        return section
    return section | {"root": root} | ({"cache": None} if "cache" in section else {})


def build_network(
    config: Mapping[str, Any], data: ImageDataModule, trusted: Sequence[str] | None = TRUSTED
) -> nn.Module:
    """The untrained network of a configuration."""
    section = config.get("network")
    if not isinstance(section, dict):
        raise ConfigurationError("the configuration has no section 'network'; it is damaged or not of glr-train.")
    facts = {"image_shape": data.image_shape, "classes": data.classes}
    network: nn.Module = build(section, where="network", trusted=trusted, kind=nn.Module, **facts)
    see(network, torch.zeros(1, *data.image_shape))  # its code may ask for the shape
    return network


@checked
def load_run(
    folder: str | Path,
    *,
    trusted: Sequence[str] = (),
    root: str | Path | None = None,
    checkpoint: Literal["best", "last"] = "best",
) -> TrainedRun:
    """Rebuild a trained network from its run's own configuration.

    Args:
        folder: the run folder.
        trusted: packages beside this one and torch whose code its configuration may name, such as ["my_package"].
        root: where the data lie on this machine, if elsewhere than in training.
        checkpoint: the one with the best validation accuracy, or the last.

    Raises:
        CheckpointError, ConfigurationError: the folder cannot be used; the message says why.
    """
    folder = Path(folder).expanduser()
    config = read_config(folder)
    allowed = trusted_prefixes(trusted)
    data = build_data(config, allowed, None if root is None else str(root))
    network = build_network(config, data, allowed)
    path = folder / CHECKPOINTS[checkpoint]
    loaded = load_checkpoint(path)
    load_weights(network, loaded, path)
    return TrainedRun(folder, config, network.eval(), data, loaded)


@torch.inference_mode()
def accuracy(network: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1000) -> float:
    """The share of images that the noise-free network classifies rightly. x [n, C, H, W] in [0, 1], y [n]."""
    place = next(network.parameters())
    network.eval()
    predictions = torch.cat([network(batch.to(place)).argmax(1) for batch in x.split(batch_size)])
    return float((predictions == y.to(place.device)).double().mean())
