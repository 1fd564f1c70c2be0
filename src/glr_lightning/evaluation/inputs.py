"""What an evaluation is about: a network, the images it is tested on, and the randomness of the test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.evaluation.draws import KeptDraws
from glr_lightning.evaluation.hashes import hash_of, weights_hash
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.threats import ImageRandom
from glr_lightning.threats.attacks.query import Query, passes_of


class Batch(NamedTuple):
    """Images [B, C, H, W] where the network is, their labels [B], and the randomness of each."""

    x: Tensor
    y: Tensor
    random: ImageRandom


@final
@dataclass(frozen=True)
class Inputs:
    """A network and the images it is tested on; checked when it is made, and never changed.

    Attributes:
        network: maps [B, C, H, W] to scores [B, classes], in eval mode; batches go to its parameters' device and type.
            A `NoiseAveraged` one draws fresh noise for every query of an attack; its own predictions are made with
            noise that is a function of (seed, index).
        images: float [n, C, H, W] in [0, 1].
        labels: int64 [n].
        seed, index: the randomness of image i is a function of (seed, index[i]) alone, so neither the batch size nor
            the choice of images changes a result; index is int64 [n], the positions in the full data set, by default
            0 .. n - 1.
        batch_size: images that are run at once.
        run, checkpoint: written into each row.

    Raises:
        ConfigurationError: a network in training mode, data of the wrong type, shape or range, or images that the
            network does not take.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    seed: int = 0
    index: Tensor | None = None
    batch_size: int = 1000
    run: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        check_network("network", self.network, self.place)
        _check_data(self.images, self.labels, self.positions, self.batch_size)
        object.__setattr__(self, "images", self.images.detach())
        self._check_fit()

    def _check_fit(self) -> None:
        """Refuse images that the network cannot take, before anything is run."""
        batch = self.batch(slice(1))
        scores = first_scores("network", lambda x: self.scores(x, batch.random), batch.x)
        low, high = int(self.labels.amin()), int(self.labels.amax())
        if scores.dim() != 2 or low < 0 or high >= scores.shape[1]:
            raise ConfigurationError(
                f"the network's scores must be [B, classes], with a class for every label; got {list(scores.shape)} "
                f"for one image, and labels from {low} to {high}."
            )

    @property
    def place(self) -> Tensor:
        """Any tensor of the network's device and type."""
        return next(self.network.parameters(), self.images)

    @cached_property
    def positions(self) -> Tensor:
        """The index, int64 [n]."""
        return torch.arange(len(self.images)) if self.index is None else self.index

    @cached_property
    def draws(self) -> KeptDraws:
        """Random numbers that are kept from one level of a threat to the next."""
        return KeptDraws()

    def batch(self, rows: slice) -> Batch:
        """Some of the images, where the network is."""
        device = self.place.device
        recall = self.draws.of((rows.start, rows.stop))
        random = ImageRandom(self.seed, self.positions[rows].to(device), recall)
        return Batch(self.images[rows].to(self.place), self.labels[rows].to(device), random)

    def batches(self) -> Iterator[Batch]:
        """All images."""
        for start in range(0, len(self.images), self.batch_size):
            yield self.batch(slice(start, start + self.batch_size))

    @property
    def batch_count(self) -> int:
        """The number of batches."""
        return -(-len(self.images) // self.batch_size)

    @torch.no_grad()
    def scores(self, x: Tensor, random: ImageRandom) -> Tensor:
        """The network's scores, [B, classes]."""
        noisy = isinstance(self.network, NoiseAveraged)
        scores: Tensor = self.network(x, random) if noisy else self.network(x)
        return scores

    @cached_property
    @torch.no_grad()
    def randomized(self) -> bool:
        """Whether two predictions on the same images differ."""
        batch = next(self.batches())
        query = Query(self.network, batch.x, random=batch.random)
        return not torch.equal(query(batch.x), query(batch.x))

    @cached_property
    def network_hash(self) -> str:
        """The hash of the network's weights, shapes and modules, noise apart."""
        return weights_hash(self.network.network if isinstance(self.network, NoiseAveraged) else self.network)

    @cached_property
    def images_hash(self) -> str:
        """The hash of the images, their labels and positions."""
        parts = (self.images, self.labels, self.positions)
        return hash_of(*(values.cpu().contiguous().numpy().tobytes() for values in parts))

    @property
    def noisy_passes(self) -> int:
        """Noisy passes in one prediction, 0 for a network without noise."""
        return passes_of(self.network) if isinstance(self.network, NoiseAveraged) else 0

    @property
    def row_fields(self) -> dict[str, Any]:
        """The fields that all rows of these inputs share."""
        return {
            "run": self.run,
            "checkpoint": self.checkpoint,
            "weights": self.network_hash,
            "images": self.images_hash,
            "evaluation_seed": self.seed,
            "noisy_passes": self.noisy_passes,
            "n": len(self.labels),
            "randomized": self.randomized,
        }


@torch.no_grad()
def first_scores(name: str, network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The scores that a network returns for x. Raises ConfigurationError if it does not take x or returns no scores."""
    try:
        scores = network(x)
    except Exception as error:  # a network may raise anything
        raise ConfigurationError(
            f"the {name} does not take images of shape {list(x.shape[1:])} ({words_of(error)}); "
            "test it on the data it was trained on."
        ) from error
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigurationError(
            f"the {name} must return scores, a float tensor [B, classes], got {kind}; wrap it in a module that "
            "returns them."
        )
    return scores


def check_network(name: str, network: nn.Module, place: Tensor) -> None:
    """Refuse a network that is training, that lies elsewhere than `place`, or whose numbers are too coarse.

    Raises:
        ConfigurationError: says which network and what to call.
    """
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"the {name} must be a torch module, got {network!r}.")
    if any(module.training for module in network.modules()):
        raise ConfigurationError(
            f"the {name} must be in eval mode, but a module of it is training; call its eval() first."
        )
    parameter = next(network.parameters(), place)
    if (parameter.device, parameter.dtype) != (place.device, place.dtype):
        raise ConfigurationError(
            f"the {name} must be where the network is, {place.dtype} on {place.device}; "
            f"got {parameter.dtype} on {parameter.device}. Move it with its to(...)."
        )
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"the {name} has {parameter.dtype} parameters, too coarse for pixel budgets; use its float()."
        )


def _check_data(x: Tensor, y: Tensor, index: Tensor, batch_size: int) -> None:
    for name, values in (("images", x), ("labels", y)):
        if not isinstance(values, Tensor):
            raise ConfigurationError(
                f"{name} must be a tensor, got {type(values).__name__}; convert it with torch.as_tensor({name}).",
                option=name,
            )
    if not x.is_floating_point() or x.dim() != 4 or not len(x):
        raise ConfigurationError(
            f"images must be a float tensor [n >= 1, C, H, W], got {x.dtype} {list(x.shape)}.", option="images"
        )
    if not (x.amin() >= 0 and x.amax() <= 1):  # also false for NaN
        raise ConfigurationError(
            f"images must lie within [0, 1], got [{x.amin():.4g}, {x.amax():.4g}]; "
            "scale the pixels, and normalise in the network.",
            option="images",
        )
    for name, values in (("labels", y), ("index", index)):
        if values.dtype != torch.int64 or values.shape != x.shape[:1]:
            raise ConfigurationError(
                f"{name} must be int64 [{len(x)}], one an image, got {values.dtype} {list(values.shape)}.", option=name
            )
    if type(batch_size) is not int or batch_size < 1:
        raise ConfigurationError(
            f"batch_size must be a whole number of at least 1, got {batch_size!r}.", option="batch_size"
        )
