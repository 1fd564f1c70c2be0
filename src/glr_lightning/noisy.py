"""The noisy network as a model of its own: the prediction averaged over passes with the training's noise."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.chain import Chain
from glr_lightning.config import TRUSTED, build
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.estimators.base import per_site, validated_count
from glr_lightning.noise import Noise
from glr_lightning.runs import TrainedRun
from glr_lightning.scales import log_scales
from glr_lightning.schedules import Annealing, Constant
from glr_lightning.threats.random import ImageRandom

STREAMS = 2**20
"""Where the streams of the neurons' noise begin: a threat's own are small numbers."""


class NoiseAveraged(nn.Module):
    """x -> the logarithm of the mean over S passes of softmax(logits), with noise at all layers in every pass.

    The noise of an image is F^-1(u) with u a function of (seed, image index, pass, layer) alone, so that neither the
    batch size nor the choice of images changes a prediction. u is a multiple of 2^-24 plus 2^-25: the Gaussian's
    draws stay within 5.4 sigma.

    Args:
        network: a chain.
        noise: the density.
        sigma: its scale for every layer, numbers or tensors that broadcast to the pre-activation.
        passes: S.
    """

    def __init__(self, network: nn.Module, noise: Noise, sigma: tuple[float | Tensor, ...], passes: int) -> None:
        super().__init__()
        self.network = network
        self.noise = noise
        self.sigma = sigma
        self.passes = passes

    def sigma_of(self, x: Tensor) -> tuple[float | Tensor, ...]:
        """The scales where x is, and of its type."""
        return tuple(s.to(x) if isinstance(s, Tensor) else s for s in self.sigma)

    def around(self, network: nn.Module) -> "NoiseAveraged":
        """The same noise in another network of the same layers."""
        return NoiseAveraged(network, self.noise, self.sigma, self.passes).eval()

    def forward(self, x: Tensor, random: ImageRandom) -> Tensor:
        """[B, classes]; random: the randomness of these images."""
        chain = Chain.of(self.network)
        sigma = self.sigma_of(x)
        sites = tuple(range(len(chain.sites)))
        clean = chain.clean(x)
        passes = []
        for number in range(self.passes):
            streams = iter(range(STREAMS + number * len(sites), STREAMS + (number + 1) * len(sites)))

            def draw(v0: Tensor, streams: Any = streams) -> Tensor:
                u = random.open_uniform(v0.shape[2:], next(streams))
                return self.noise.icdf(u.to(v0.dtype))[None]

            logits, *_ = chain.noisy(clean, sites, sigma, draw)
            passes.append(logits.log_softmax(1))
        return torch.logsumexp(torch.stack(passes), dim=0) - math.log(self.passes)


def noise_averaged(run: TrainedRun, passes: int, trusted: tuple[str, ...] = TRUSTED) -> NoiseAveraged | None:
    """A run's network with the noise that it was trained with: learned scales come from its checkpoint, scheduled ones
    are those of its epoch; at all layers at once, whichever way they were injected. None if its neurons had no noise.

    Raises:
        ConfigurationError, CheckpointError: a number of passes below 1; a run whose files do not fit each other.
    """
    validated_count("noisy_passes", passes)
    estimator: Any = build(run.config.get("estimator"), trusted=trusted)
    names = {field.name for field in dataclasses.fields(estimator)} if dataclasses.is_dataclass(estimator) else set()
    if not {"noise", "sigma", "copies"} <= names or estimator.objective not in ("joint", "layerwise"):
        return None
    return NoiseAveraged(run.network, estimator.noise, trained_sigma(run, estimator, trusted), passes).eval()


def trained_sigma(run: TrainedRun, estimator: Any, trusted: tuple[str, ...] = TRUSTED) -> tuple[float | Tensor, ...]:
    """The noise scale of every layer in the epoch of a run's checkpoint. Errors as for `noise_averaged`."""
    per = run.config.get("learn_sigma")
    if per is not None:
        return _learned(run, estimator, per)
    if run.config.get("sigma_schedule") is not None:
        schedule, epochs = build(run.config["sigma_schedule"], trusted=trusted), run.config.get("epochs")
        epochs = validated_count("epochs", epochs)
        estimator = Annealing(estimator, schedule, Constant(), epochs).at(min(run.checkpoint["epoch"], epochs - 1))
    return per_site(estimator.sigma, len(Chain.of(run.network).sites))


def _learned(run: TrainedRun, estimator: Any, per: Any) -> tuple[Tensor, ...]:
    scales = []
    for site, start in enumerate(log_scales(estimator, run.network, per)):
        value = run.checkpoint["state_dict"].get(f"log_sigma.{site}")
        if not isinstance(value, Tensor) or value.shape != start.shape or not torch.isfinite(value).all():
            raise CheckpointError(
                f"the checkpoint of {run.folder} has no valid log_sigma.{site}, which learn_sigma={per} asks for; "
                "it is damaged. Train again."
            )
        scales.append(value.exp())
    return tuple(scales)


def require_noise(models: dict[str, NoiseAveraged | None]) -> None:
    """Refuse noisy passes of runs, by name, that have no noise. Raises ConfigurationError."""
    without = [name for name, model in models.items() if model is None]
    if without:
        raise ConfigurationError(
            f"noisy_passes needs runs that were trained with noise at the neurons of all layers, and these were not: "
            f"{', '.join(without)}. Leave them out of run=..., or leave out noisy_passes for them."
        )
