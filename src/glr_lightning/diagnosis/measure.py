"""Draw estimates of several estimators in turns, with their moments and times."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from glr_lightning.diagnosis.statistics import Draw, Moments, Reference, layers_of, vectors
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimate, Estimator
from glr_lightning.losses import Loss
from glr_lightning.randomness import generator_for


@dataclass(frozen=True)
class Contender:
    """An estimator to be diagnosed, with the reference of its objective by layer; None if there is none."""

    label: str
    copies: int | list[int] | None
    estimator: Estimator
    reference: Mapping[str, Reference] | None = None


@dataclass
class Measured:
    """The estimates of a contender: moments by layer, and costs."""

    moments: dict[str, Moments]
    seconds: list[float] = field(default_factory=list)
    forwards: int = 0

    @property
    def milliseconds(self) -> float:
        """The median time of one estimate."""
        return 1000 * statistics.median(self.seconds)


def drawing(
    estimator: Estimator, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator
) -> Draw:
    """Return a function that makes one estimate per call, and raises ConfigurationError if it is not finite."""

    def draw() -> Estimate:
        estimate = estimator.estimate(network, loss, x, y, generator=generator)
        if not all(torch.isfinite(gradient).all() for gradient in estimate.gradients.values()):
            raise ConfigurationError("its estimate is not finite.")
        return estimate

    return draw


def measure(
    contenders: Sequence[Contender],
    network: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    *,
    repetitions: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Measured]:
    """Draw estimates of all contenders in turns, so that a busy machine slows all of them alike."""
    layers = layers_of(network)
    draws = [
        drawing(c.estimator, network, loss, x, y, generator_for(x.device, seed, "estimate", c.label, c.copies))
        for c in contenders
    ]
    measured = []
    for contender, draw in zip(contenders, draws, strict=True):
        first = vectors(draw(), layers)  # not counted: the first call is a slow one
        probes = {layer: contender.reference[layer].probes for layer in layers} if contender.reference else {}
        measured.append(
            Measured({layer: Moments(probes.get(layer, v.new_zeros(0, len(v)))) for layer, v in first.items()})
        )
    for _ in range(repetitions):
        for draw, result in zip(draws, measured, strict=True):
            _synchronize(x.device)
            start = time.perf_counter()
            estimate = draw()
            _synchronize(x.device)
            result.seconds.append(time.perf_counter() - start)
            result.forwards = estimate.diagnostics["forwards"]
            for layer, vector in vectors(estimate, layers).items():
                result.moments[layer].add(vector)
            tick()
    return measured


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
