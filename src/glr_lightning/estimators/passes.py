"""The noise of a step in parts, a batch with its noise-free pass, and the sum of estimates."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glr_lightning.losses import Loss
from glr_lightning.noise import Noise
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.values import CleanPass, NoisyPass
from glr_lightning.sampling import Sampler


class Part(NamedTuple):
    """The randomness of some copies of one noisy pass.

    Attributes:
        z: by site, ascending, the standardised noise, [copies, batch, *site].
        slopes: by site, draws of the measure-valued derivative (`Noise.sample_slope`), like z.
        chosen: by site, [copies, batch, m], which units of a sample are moved; see `unit_choice.py`.
    """

    z: dict[int, Tensor]
    slopes: dict[int, Tensor] = {}  # noqa: RUF012  a NamedTuple's default, never written to
    chosen: dict[int, Tensor] = {}  # noqa: RUF012

    @property
    def sites(self) -> tuple[int, ...]:
        """The noisy sites of the pass."""
        return tuple(self.z)

    @property
    def copies(self) -> int:
        """The number of copies in this part."""
        return len(next(iter(self.z.values())))


def noise_at(
    graph: Graph,
    sites: Sequence[int],
    x: Tensor,
    noise: Noise,
    sampler: Sampler,
    copies: int,
    generator: torch.Generator,
) -> dict[int, Tensor]:
    """Draw the noise of a pass over a batch like x [batch, ...]: by site, [copies, batch, *site]."""
    shapes = graph.shapes(x).sites
    drawn = {}
    for site in sites:
        shape, dtype = (len(x), *shapes[site]), graph.weight_dtype(site)
        drawn[site] = sampler(noise, copies, shape, generator=generator, dtype=dtype).z
    return drawn


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off, if it is on: differences of losses need the precision that it would take away."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def of_copies(labels: Tensor, copies: int) -> Tensor:
    """The labels [batch] of all copies, [copies * batch]."""
    return labels if copies == 1 else labels.expand(copies, -1).reshape(-1)


@dataclass(frozen=True)
class CleanBatch:
    """A batch with its noise-free pass, ready for noisy ones.

    Attributes:
        graph: the network.
        clean: its noise-free pass over the batch.
        sigma: the noise scale of every site.
        loss: the per-sample loss.
        y: [batch] int64, labels.
    """

    graph: Graph
    clean: CleanPass
    sigma: tuple[float | Tensor, ...]
    loss: Loss
    y: Tensor

    def clean_loss(self) -> Tensor:
        """The noise-free losses, [batch]."""
        return self.loss(self.clean.logits, self.y)

    def run(self, z: dict[int, Tensor]) -> tuple[NoisyPass, Tensor]:
        """Run one pass with this noise; also its losses [copies, batch]."""
        noisy = self.graph.noisy(self.clean, z, self.sigma)
        copies = len(noisy.logits) // len(self.y)
        # autocast may have lowered the logits; a leave-one-out mean over many copies needs the full precision
        losses = self.loss(noisy.logits.to(noisy.seen[0].v.dtype), of_copies(self.y, copies))
        return noisy, losses.unflatten(0, (copies, len(self.y)))


@dataclass
class Total:
    """The sum of the estimates from the parts of the noise.

    Attributes:
        gradients: by the network's names of the parameters.
        loss: the sum over passes of the mean loss, a scalar.
        passes: the noisy sites of each pass.
        forwards: samples sent through the network or a part of it.
        log_sigma: by site the gradients of the log noise scales, in the shape of one sample's pre-activation.
    """

    loss: Tensor
    forwards: int
    gradients: dict[str, Tensor] = field(default_factory=dict)
    passes: set[tuple[int, ...]] = field(default_factory=set)
    log_sigma: dict[int, Tensor] = field(default_factory=dict)

    def add(self, gradients: dict[str, Tensor]) -> None:
        """Add gradients, by the network's names of the parameters."""
        for name, gradient in gradients.items():
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient

    def count(self, part: Part, loss: Tensor, forwards: int) -> None:
        """Count a part of a pass: its share of the mean loss, and its forwards."""
        self.passes.add(part.sites)
        self.loss = self.loss + loss
        self.forwards += forwards

    @property
    def mean_loss(self) -> Tensor:
        """The mean loss over the passes."""
        return self.loss / len(self.passes)

    def log_sigma_of(self, graph: Graph, scales: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradients of the layers' log noise scales, summed over the sites and units that share one."""
        by_layer = [[self.log_sigma[site] for site in graph.sites_of([layer])] for layer in range(len(scales))]
        return tuple(
            torch.stack([own.sum_to_size(scale.shape) for own in sites]).sum(0)
            for scale, sites in zip(scales, by_layer, strict=True)
        )


def started(y: Tensor) -> Total:
    """An empty sum, for labels [batch]; the noise-free pass over the batch is counted."""
    return Total(torch.zeros((), device=y.device), len(y))
