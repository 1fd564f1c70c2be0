"""What an attack is given in place of a network: its scores and its gradients, both counted and watched."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.asked_values import see
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import (
    AttackLoss,
    Scores,
    cross_entropy,
    input_gradient,
    likelihood_ratio_gradient,
    smoothed,
    straight_through,
)
from glr_lightning.threats.facts import GradientOptions

FRESH = 0x9E3779B97F4A7C15
"""Odd: every query of a noisy network has a seed of its own, and none that of the evaluation's predictions."""


@dataclass(frozen=True)
class QueryCount:
    """What an attack has cost, and met, so far. The `Query` writes it.

    queries: int64 [B], forward passes of each image.
    zero_gradient: float [B], 1 where the image's first gradient was exactly zero, or NaN, 0 where not, NaN before it.
    proved: float [B], 1 where the attack has proved that there is no adversarial image, 0 where not, NaN for an attack
        that proves nothing.
    """

    queries: Tensor
    zero_gradient: Tensor
    proved: Tensor


@final
class Query:
    """A network under attack, for the images of one batch.

    query(x) are the scores of x, [m * B, C, H, W] with m copies of the batch, copy-major; autograd goes through.
    query.gradient(x, y, loss) is the gradient from the declared source, and the one that an attack should use.
    query.take(rows) is the same for some of the images: attacks drop those that are done.

    Args:
        network: maps images to scores. A `NoiseAveraged` one draws fresh noise at every query.
        images: [B, C, H, W], of which the number and the device are read.
        source: "autograd", "straight_through" or "likelihood_ratio", of which the last two need a network that can be
            traced.
        random: the randomness of these images; by default that of seed 0 and the images' places in the batch.
        options: how gradients are computed.
        randomized: whether the network's predictions are random. Then scores and gradients are means over `draws`
            queries, which make `options.eot` noisy passes or more; and an attack should not stop at its first success,
            a lucky draw, as its images are classified under another.
    """

    def __init__(
        self,
        network: Scores,
        images: Tensor,
        *,
        source: str = "autograd",
        random: ImageRandom | None = None,
        options: GradientOptions | None = None,
        randomized: bool = False,
    ) -> None:
        batch, device = len(images), images.device
        if isinstance(network, nn.Module):
            see(network, images)
        self.options = GradientOptions() if options is None else options
        self.source = source
        unknown = torch.full((batch,), torch.nan, device=device)
        self.count = QueryCount(torch.zeros(batch, dtype=torch.int64, device=device), unknown, unknown.clone())
        self._network = network
        self._random = ImageRandom(0, torch.arange(batch, device=device)) if random is None else random
        self._rows = torch.arange(batch, device=device)
        self.randomized = randomized
        self.draws = -(-self.options.eot // passes_of(network)) if randomized else 1
        self._calls = [0]  # shared by all `take`n from this one, so that no noise is drawn twice
        slopes = source == "straight_through"
        self._smooth = _replaced(network, straight_through, self.options.smoothing) if slopes else network

    @staticmethod
    def of(model: "Scores | Query", images: Tensor) -> "Query":
        """An attack's first line: a `Query` as it is, and a bare network with the gradient of autograd."""
        return model if isinstance(model, Query) else Query(model, images)

    @property
    def network(self) -> Scores:
        """The network itself, for attacks that read its weights."""
        return self._network

    def take(self, rows: Tensor) -> "Query":
        """The same network for some of its images. rows: int64 or bool, over the images of this one."""
        part = copy.copy(self)
        part._rows = self._rows[rows]
        return part

    def smoothed(self, smoothing: float) -> "Query":
        """The same network, with gradients through `input_gradient.smoothed` in place of slopes."""
        other = copy.copy(self)
        other._smooth = _replaced(self._network, smoothed, smoothing)
        return other

    def __call__(self, x: Tensor) -> Tensor:
        """Scores [m * B, classes]."""
        x = self._watched(x)
        return torch.stack([self._scores(self._network, x) for _ in range(self.draws)]).mean(0)

    def gradient(self, x: Tensor, y: Tensor, loss: AttackLoss = cross_entropy) -> Tensor:
        """The gradient of the summed loss at x, [B, C, H, W], from the declared source."""
        gradient = torch.stack([self._one_gradient(x, y, loss) for _ in range(self.draws)]).mean(0)
        self._note(gradient)
        return gradient

    def scores_and_gradient(self, x: Tensor, y: Tensor, loss: AttackLoss = cross_entropy) -> tuple[Tensor, Tensor]:
        """The scores at x and the gradient there; from one pass where the gradient's has the scores."""
        if self.source != "autograd" or self.draws > 1 or isinstance(self._network, NoiseAveraged):
            return self(x).detach(), self.gradient(x, y, loss)
        seen: list[Tensor] = []

        def watched(image: Tensor) -> Tensor:
            seen.append(self._scores(self._network, image))
            return seen[0]

        gradient = input_gradient(watched, x, y, loss)
        self._note(gradient)
        return seen[0].detach(), gradient

    def _note(self, gradient: Tensor) -> None:
        if self.count.zero_gradient[self._rows].isnan().any():
            self.note_first_gradient(_leads_nowhere(gradient.flatten(1)).all(1))

    def note_first_gradient(self, zero: Tensor) -> None:
        """Write into the count, where nothing is written yet, whose gradient was exactly zero; bool or float [B]."""
        known = self.count.zero_gradient[self._rows]
        self.count.zero_gradient[self._rows] = torch.where(known.isnan(), zero.to(known.dtype), known)

    def note_proved(self, proved: Tensor) -> None:
        """Write into the count for which images it is proved that nothing within the budget fools; bool [B]."""
        self.count.proved[self._rows] = proved.to(self.count.proved.dtype)

    def _one_gradient(self, x: Tensor, y: Tensor, loss: AttackLoss) -> Tensor:
        if self.source != "likelihood_ratio":
            return input_gradient(lambda image: self._scores(self._smooth, image), x, y, loss)
        network: Any = self._network
        noise: dict[str, Any] = {}
        if isinstance(network, NoiseAveraged):
            network, noise = network.network, {"sigma": network.sigma_of(x), "noise": network.noise}
        self.count.queries[self._rows] += self.options.copies
        return likelihood_ratio_gradient(
            network,
            x,
            y,
            loss,
            random=self._fresh(1),
            copies=self.options.copies,
            smoothing=self.options.smoothing,
            **noise,
        )

    def _scores(self, network: Scores, x: Tensor) -> Tensor:
        copies = len(x) // len(self._rows) if len(self._rows) else 1
        self.count.queries[self._rows] += copies * passes_of(network)
        return network(x, self._fresh(copies)) if isinstance(network, NoiseAveraged) else network(x)

    def _fresh(self, copies: int) -> ImageRandom:
        """Randomness that no query before had."""
        self._calls[0] += 1
        index = self._random.index[self._rows]
        shifts = torch.arange(copies, device=index.device).repeat_interleave(len(index)) << 40
        return ImageRandom(self._random.seed + self._calls[0] * FRESH, index.repeat(copies) + shifts)

    def _watched(self, x: Tensor) -> Tensor:
        """x, whose first gradient, should the attack differentiate by itself, goes into the count.

        An input that asks for a gradient and gets none has a zero gradient too.
        """
        batch = len(self._rows)
        unknown = self.count.zero_gradient[self._rows].isnan()
        if not (x.requires_grad and torch.is_grad_enabled()) or not batch or len(x) % batch or not unknown.any():
            return x
        rows, count = self._rows, self.count.zero_gradient
        count[rows] = count[rows].masked_fill(unknown, 1.0)

        def record(gradient: Tensor) -> None:
            zero = _leads_nowhere(gradient.reshape(-1, batch, gradient[0].numel())).all(2).all(0)
            count[rows] = torch.where(unknown, zero.to(count.dtype), count[rows])

        x = x.view_as(x)
        x.register_hook(record)
        return x


def _leads_nowhere(gradient: Tensor) -> Tensor:
    """Zero, or NaN, whose sign is zero."""
    return (gradient == 0) | gradient.isnan()


def passes_of(network: object) -> int:
    """Noisy passes in one query."""
    return network.passes if isinstance(network, NoiseAveraged) else 1


def _replaced(network: Scores, change: Callable[[nn.Module, float], nn.Module], smoothing: float) -> Scores:
    """What a change makes of the network; also of one that averages over noise."""
    if isinstance(network, NoiseAveraged):
        return network.around(change(network.network, smoothing))
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            "gradient_source=straight_through needs a torch module; use autograd.", option="gradient_source"
        )
    return change(network, smoothing)
