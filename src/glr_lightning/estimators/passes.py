"""A batch prepared for noisy passes, and the estimate from one pass."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from glr_lightning.estimators.base import accumulate
from glr_lightning.losses import Loss
from glr_lightning.noise import Noise
from glr_lightning.propagation.chain import Chain, CleanPass, NoisyPass
from glr_lightning.sampling import Sampler


class Drawn(NamedTuple):
    """A noisy pass over some copies, with its losses [copies, batch] and the dependence group [copies] of each."""

    noisy: NoisyPass
    losses: Tensor
    group: Tensor


@dataclass(frozen=True)
class Prepared:
    """A batch that is ready for noisy passes.

    Attributes:
        chain: the network.
        clean: its noise-free pass over the batch.
        sigma: the noise scale of every layer.
        loss: the per-sample loss.
        y: [batch] int64, labels.
        generator: all randomness comes from it.
    """

    chain: Chain
    clean: CleanPass
    sigma: tuple[float | Tensor, ...]
    loss: Loss
    y: Tensor
    generator: torch.Generator

    def clean_loss(self) -> Tensor:
        """The noise-free losses, [batch]."""
        return self.loss(self.clean.logits, self.y)

    def draw(self, sites: tuple[int, ...], noise: Noise, sampler: Sampler, copies: int) -> Drawn:
        """Run one pass over `copies` copies with noise at the given sites."""
        groups: list[Tensor] = []

        def draw(v0: Tensor) -> Tensor:
            draws = sampler(noise, copies, v0.shape[1:], generator=self.generator, dtype=v0.dtype)
            groups.append(draws.group)
            return draws.z

        noisy = self.chain.noisy(self.clean, sites, self.sigma, draw)
        # autocast may have lowered the logits; a leave-one-out mean over many copies needs the full precision
        losses = self.loss(noisy.logits.to(noisy.seen[0].v.dtype), self.y.repeat(copies))
        return Drawn(noisy, losses.unflatten(0, (copies, len(self.y))), groups[0])  # a sampler groups all sites alike


@dataclass(frozen=True)
class PassEstimate:
    """The estimate from the copies of one noisy pass.

    Attributes:
        gradients: by the network's names of the parameters.
        loss: the mean loss.
        forwards: the number of noisy samples.
        log_sigma: by site the gradients of the log noise scales, in the shape of one sample's pre-activation.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    forwards: int
    log_sigma: dict[int, Tensor]


def added_up(outcomes: list[PassEstimate]) -> dict[str, Tensor]:
    """The gradients of several passes, by the network's names of the parameters."""
    gradients: dict[str, Tensor] = {}
    for outcome in outcomes:
        accumulate(gradients, outcome.gradients)
    return gradients
