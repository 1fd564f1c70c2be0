"""The noise that a run was trained with, read back from its run folder."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from glr_lightning.config import TRUSTED, TrainConfig, build, checked_root, target_of
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.estimators.base import Estimator
from glr_lightning.estimators.settings import per_site
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.runs.trained_run import TrainedRun
from glr_lightning.validation import Count, checked

if TYPE_CHECKING:
    from glr_lightning.training.callbacks import Annealing, LearnedSigma

AnyCallback = TypeVar("AnyCallback", "Annealing", "LearnedSigma")


@checked
def noise_averaged(run: TrainedRun, passes: Count, trusted: tuple[str, ...] = TRUSTED) -> NoiseAveraged | None:
    """Return a run's network with the noise that it was trained with, or None if its neurons had no noise.

    Learned scales come from the run's checkpoint, annealed ones are those of its epoch. The noise is at all layers at
    once, whichever way it was injected.

    Raises:
        ConfigurationError, CheckpointError: a number of passes below 1; a run whose files do not fit each other.
    """
    estimator: Any = build(run.config.get("estimator"), where="estimator", trusted=trusted, kind=Estimator)
    names = {field.name for field in dataclasses.fields(estimator)} if dataclasses.is_dataclass(estimator) else set()
    if not {"noise", "sigma", "copies"} <= names or estimator.objective not in ("joint", "layerwise"):
        return None
    return NoiseAveraged(run.network, estimator.noise, trained_sigma(run, estimator, trusted), passes).eval()


def trained_sigma(run: TrainedRun, estimator: Any, trusted: tuple[str, ...] = TRUSTED) -> tuple[float | Tensor, ...]:
    """The noise scale of every layer in the epoch of a run's checkpoint. Errors as for `noise_averaged`."""
    graph = Graph.of(run.network)
    if not run.config.get("callbacks"):
        return per_site(estimator.sigma, graph)
    from glr_lightning.training.callbacks import Annealing, LearnedSigma  # here, since they import Lightning

    learned = _callback(run.config, LearnedSigma, trusted)
    if learned is not None:
        return per_site(_learned(run, estimator, learned), graph)
    sigma = estimator.sigma
    annealing = _callback(run.config, Annealing, trusted)
    if annealing is not None:
        epochs = checked_root(TrainConfig, {"epochs": run.config.get("epochs")})["epochs"]
        annealing.check_epochs(estimator, epochs)
        values = annealing.at(estimator, min(run.checkpoint["epoch"], epochs - 1), epochs)
        sigma = values.get("sigma", sigma)
    return per_site(sigma, graph)


def learned_per(config: Mapping[str, Any], trusted: tuple[str, ...] = TRUSTED) -> str | None:
    """Return "layer" or "neuron" for a configuration whose noise scales are learned, None for others."""
    if not config.get("callbacks"):
        return None
    from glr_lightning.training.callbacks import LearnedSigma

    learned = _callback(config, LearnedSigma, trusted)
    return None if learned is None else learned.per


def _callback(config: Mapping[str, Any], kind: type[AnyCallback], trusted: tuple[str, ...]) -> AnyCallback | None:
    """The callback of a kind, or of a subclass, that a configuration names, or None; others are not built.

    Lightning's own set no noise. Others that are not trusted might, and are refused.
    """
    for name, node in (config.get("callbacks") or {}).items():
        if not isinstance(node, dict) or str(node.get("_target_")).startswith("pytorch_lightning."):
            continue
        target = target_of(node, trusted)
        if isinstance(target, type) and issubclass(target, kind):
            callback: AnyCallback = build(node, where=f"callbacks.{name}", trusted=trusted)
            return callback
    return None


def _learned(run: TrainedRun, estimator: Any, learned: "LearnedSigma") -> tuple[Tensor, ...]:
    from glr_lightning.training.callbacks.learned_sigma import log_scales

    scales = []
    for site, start in enumerate(log_scales(estimator, run.network, learned.per)):
        value = run.checkpoint["state_dict"].get(f"log_sigma.{site}")
        if not isinstance(value, Tensor) or value.shape != start.shape or not torch.isfinite(value).all():
            raise CheckpointError(
                f"the checkpoint of {run.folder} has no valid log_sigma.{site}, which its callback for learning sigma "
                f"per {learned.per} asks for; it is damaged. Train again."
            )
        scales.append(value.exp())
    return tuple(scales)


def require_noise(models: dict[str, NoiseAveraged | None]) -> None:
    """Refuse noisy passes of runs, by name, that have no noise. Raises ConfigurationError."""
    without = [name for name, model in models.items() if model is None]
    if without:
        raise ConfigurationError(
            f"noisy_passes needs runs that were trained with noise at the neurons of all layers, and these were not: "
            f"{', '.join(without)}. Leave them out of run=..., or leave out noisy_passes for them.",
            option="noisy_passes",
        )
