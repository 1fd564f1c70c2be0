"""Run one attempt on all images, and measure what it achieved.

The threat returns images and nothing else. The tested network itself predicts on them, and they are checked: how far
they moved, whether they are still images, and whether they kept to the budget. A gradient attack that met a vanishing
gradient says nothing about robustness (Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of
security", ICML 2018), so its row says so.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Attempt
from glr_lightning.evaluation.inputs import Batch, Inputs
from glr_lightning.evaluation.per_image import EXAMPLES, PerImage, per_image
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.summary import Measured, summarise
from glr_lightning.threats import ImageRandom
from glr_lightning.threats.attacks.input_gradient import is_piecewise_constant
from glr_lightning.threats.attacks.query import Query

TOLERANCE = 1e-6  # rounding of x + epsilon in float32
TARGET_STREAM = 2**17

Advance = Callable[[], None]


def nothing() -> None:
    """No progress is shown."""


@final
@dataclass(frozen=True)
class Result:
    """A row, and what it was counted from."""

    row: Row
    per_image: PerImage


class Perturbed(NamedTuple):
    """What a threat made of a batch: the images, the query it was given as its model, and its targets if it had any."""

    images: Tensor
    query: Query
    target: Tensor | None


def run(
    attempt: Attempt,
    inputs: Inputs,
    surrogate: nn.Module | None = None,
    *,
    fingerprint: str,
    advance: Advance = nothing,
) -> Result:
    """Run one attempt on all images.

    Args:
        attempt: the threat, its level and its source of gradients.
        inputs: the network and the images.
        surrogate: the network whose gradient a transfer attack takes.
        fingerprint: of the row, see `fingerprints.row_fingerprint`.
        advance: called after each batch.

    Raises:
        ConfigurationError: a transfer attack without its surrogate, or a threat that returns another shape.
    """
    start = time.perf_counter()
    inputs.draws.keep_for(attempt.threat.function)
    parts, examples = [], []
    for batch in inputs.batches():
        perturbed = perturb(attempt, inputs, batch, surrogate)
        parts.append(measure(attempt, inputs, batch, perturbed))
        examples.append(perturbed.images[:EXAMPLES])
        advance()
    measured = Measured.joined(parts)
    row = summarise(
        attempt,
        measured,
        inputs.row_fields,
        seconds=time.perf_counter() - start,
        fingerprint=fingerprint,
    )
    shown = torch.cat(examples)[:EXAMPLES]
    return Result(row, per_image(measured.correct, measured.prediction, inputs.labels, shown))


@torch.no_grad()
def perturb(attempt: Attempt, inputs: Inputs, batch: Batch, surrogate: nn.Module | None = None) -> Perturbed:
    """Run a threat on one batch.

    Raises:
        ConfigurationError: the images have another shape, or the surrogate is missing.
    """
    x, y, random = batch
    threat = attempt.threat
    query = query_of(attempt, inputs, batch, surrogate)
    target = _targets(inputs.scores(x, random).shape[1], y, random) if threat.targeted else None
    # Copies: a threat that writes into its arguments must not move the objective.
    objective = {} if target is None else {"target": target.clone()}
    images = threat.function(query, x.clone(), y.clone(), random=random, **objective, **attempt.parameters)
    if images.shape != x.shape:
        raise ConfigurationError(
            f"a threat must return images of the shape it was given, {list(x.shape)}; "
            f"{getattr(threat.function, '__name__', threat.function)} returned {list(images.shape)}."
        )
    return Perturbed(images, query, target)


def query_of(attempt: Attempt, inputs: Inputs, batch: Batch, surrogate: nn.Module | None) -> Query:
    """What the threat of an attempt is given as its model: the surrogate, or the tested network.

    Raises:
        ConfigurationError: no surrogate, or a network that the gradient source does not fit.
    """
    options = attempt.threat.options
    if attempt.needs_surrogate:
        if surrogate is None:
            raise ConfigurationError(f"the transfer attack {attempt.name} needs the surrogate {attempt.surrogate}.")
        source = "straight_through" if is_piecewise_constant(surrogate) else "autograd"
        return Query(surrogate, batch.x, source=source, random=batch.random, options=options)
    source = "autograd" if attempt.gradient_source in ("none", "transfer") else attempt.gradient_source
    return Query(
        inputs.network, batch.x, source=source, random=batch.random, options=options, randomized=inputs.randomized
    )


@torch.no_grad()
def measure(attempt: Attempt, inputs: Inputs, batch: Batch, perturbed: Perturbed) -> Measured:
    """Measure per image of one batch how it is classified, how far it moved, and which rules it keeps."""
    x, y, random = batch
    images, query, target = perturbed
    prediction = inputs.scores(images, random).argmax(1)
    change = (images - x).flatten(1)
    l2, linf = torch.linalg.vector_norm(change, dim=1), torch.maximum(change.amax(1), -change.amin(1))
    darkest, brightest = images.flatten(1).amin(1), images.flatten(1).amax(1)  # NaN where a pixel is
    inside = (darkest >= -TOLERANCE) & (brightest <= 1.0 + TOLERANCE)
    # of many pixels, float32 sums to a relative part of the norm
    bound = attempt.parameters["epsilon"] * (1 + TOLERANCE) + TOLERANCE if attempt.threat.norm else math.inf
    finite = darkest.isfinite() & brightest.isfinite()
    budget = (l2 if attempt.threat.norm == "l2" else linf) <= bound
    valid = finite & inside & budget
    if not valid.all():  # what breaks the rules has achieved nothing: the image counts as it was
        prediction = torch.where(valid, prediction, inputs.scores(x, random).argmax(1))
    return Measured(
        correct=prediction == y,
        prediction=prediction,
        l2=l2,
        linf=linf,
        finite=finite,
        inside=inside,
        budget=budget,
        zero_gradient=query.count.zero_gradient,
        proved=query.count.proved,
        queries=query.count.queries,
        reached=None if target is None else prediction == target,
    )


def rehearse(attempt: Attempt, inputs: Inputs, surrogate: nn.Module | None = None) -> None:
    """Run an attack on no images at all, so that what it refuses is refused before hours of others.

    Raises:
        ConfigurationError: as the attack does; one that cannot do without images is not rehearsed.
    """
    if attempt.threat.kind != "attack" or attempt.threat.recorded:
        return
    try:
        perturb(attempt, inputs, inputs.batch(slice(0)), surrogate)
    except ConfigurationError:  # a ValueError too
        raise
    except (RuntimeError, IndexError, ValueError):
        return


def _targets(classes: int, y: Tensor, random: ImageRandom) -> Tensor:
    """Draw one of the other classes for each image, uniformly; int64 [B]."""
    return (y + 1 + random.integers(0, classes - 1, (), stream=TARGET_STREAM)) % classes
