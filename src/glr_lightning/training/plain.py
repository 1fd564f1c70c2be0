"""Train without Lightning what needs nothing of it, such as a surrogate: no callbacks, no validation, one CPU.

A step costs half as much then, and Lightning, which takes longer to import than a small network takes for an epoch, is
not imported.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.config import TrainConfig, build, checked_root
from glr_lightning.data.base import scaled
from glr_lightning.errors import ConfigurationError, DivergenceError, words_of
from glr_lightning.estimators import Estimator
from glr_lightning.losses import Loss
from glr_lightning.randomness import seeded
from glr_lightning.runs.trained_run import LAST, build_data, build_network, create_run_folder
from glr_lightning.training.dead_classes import dead
from glr_lightning.training.momentum import Momentum
from glr_lightning.training.result import write_result

TRAINER = {"accelerator": ("auto", "cpu"), "devices": (1,), "strategy": ("auto",), "precision": ("32-true",)}
TRAINER |= {"deterministic": (False,)}
"""The options of Lightning's Trainer, with the values that a training without it has."""
OWN = ("glr_lightning.", "torch.")


def needs_lightning(config: Mapping[str, Any]) -> bool:
    """Whether a resolved configuration asks for anything that `train_plainly` does not do.

    It trains parts of this package and of torch by a loss with a derivative, for which no news of dead classes are
    told, on images as they are.
    """
    data, trainer = config["data"], config["trainer"]
    plain = (
        not config["callbacks"]
        and config["clip_norm"] is None
        and not (data["validation"] or data["flip"] or data["crop"])
        and all(trainer[name] in TRAINER.get(name, ()) for name in trainer)
        and (trainer["accelerator"] == "cpu" or not torch.accelerator.is_available())
        and all(target.startswith(OWN) for target in _targets({**config, "logger": None}))
        and _loss(config).differentiable
    )
    return not plain


def train_plainly(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train as `training.fit.train` does, to the same weights, and leave a run folder.

    The folder has no metrics.csv, and its checkpoints, written when the training has ended, no state of the optimizer.

    Args:
        config: a resolved configuration that does not need Lightning.
        folder: the run folder to make.

    Returns:
        The content of result.json.

    Raises:
        ConfigurationError: an option, or a combination, that cannot work.
        DataError: files that are missing or damaged.
        DivergenceError: a loss or a weight that is not finite.
    """
    config = checked_root(TrainConfig, {"trusted": [], **config})
    torch.manual_seed(config["seed"])
    data = build_data(config, None)
    data.prepare_data()
    data.setup()
    network = build_network(config, data, None).train()
    estimator = build(config["estimator"], where="estimator", trusted=None, kind=Estimator)
    loss = _loss(config)
    estimator.check(network, loss, data.split("train", 8)[0])
    bound = estimator.bind(network, loss)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    step, end_epoch = _optimization(config, list(parameters.values()))
    create_run_folder(folder, {**config, "run_dir": str(folder)})
    batches, generator = data.train_dataloader(), torch.Generator()
    seen: list[tuple[Tensor, Tensor]] = []  # predictions and labels of the last epoch
    start, forwards, steps = time.perf_counter(), 0, 0
    for epoch in range(config["epochs"]):
        seen.clear()
        batches.shuffled.set_epoch(epoch)
        for images, y in batches:
            estimate = bound.estimate(scaled(images), y, seeded(generator, config["seed"], steps, 0))
            if not math.isfinite(estimate.loss.item()):
                raise _divergence(epoch)
            step([estimate.gradients[name] for name in parameters])
            forwards += estimate.diagnostics["forwards"]
            steps += 1
            seen.append((estimate.logits.argmax(1), y))
        if not all(parameter.isfinite().all() for parameter in parameters.values()):
            raise _divergence(epoch)
        end_epoch()
    predictions, labels = (torch.cat(column).bincount(minlength=data.classes) for column in zip(*seen, strict=True))
    checkpoint = {
        "epoch": config["epochs"] - 1,
        "global_step": steps,
        "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
        "cost": {"forwards": forwards, "train_seconds": time.perf_counter() - start},
        "dead_classes": dead(labels, predictions).nonzero().flatten().tolist(),
    }
    (folder / LAST).parent.mkdir()
    torch.save(checkpoint, folder / LAST)
    return write_result(folder, dict(config), network, estimator.family, data, torch.device("cpu"))


def _optimization(
    config: Mapping[str, Any], parameters: list[nn.Parameter]
) -> tuple[Callable[[list[Tensor]], None], Callable[[], None]]:
    """What steps down gradients, and what ends an epoch. Raises ConfigurationError if torch refuses an option."""
    momentum = Momentum.of(config["optimizer"], config["scheduler"], list(parameters))
    if momentum is not None:
        return momentum.step, lambda: None
    parts = build({key: config[key] for key in ("optimizer", "scheduler")}, trusted=None)
    try:
        optimizer = parts["optimizer"](parameters)
        scheduler = parts["scheduler"] and parts["scheduler"](optimizer)
    except Exception as error:  # torch has no type of its own for these
        raise ConfigurationError(f"torch refuses the options of optimizer or scheduler: {words_of(error)}") from error

    def step(gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step, lambda: scheduler and scheduler.step()


def _loss(config: Mapping[str, Any]) -> Loss:
    loss: Loss = build(config["loss"], where="loss", trusted=None, kind=Loss)
    return loss


def _targets(node: Any) -> list[str]:
    """The names of all that a configuration builds."""
    parts = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    own = [str(node["_target_"])] if isinstance(node, Mapping) and "_target_" in node else []
    return own + [target for part in parts for target in _targets(part)]


def _divergence(epoch: int) -> DivergenceError:
    return DivergenceError(f"training diverged in epoch {epoch + 1}; lower optimizer.lr.")
