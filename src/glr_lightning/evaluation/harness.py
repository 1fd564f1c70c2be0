"""How often a network is right under each threat, judged so that the number can be believed.

The threat returns images and nothing else; this harness judges them: it lets the attacked network itself
predict on the images returned, measures how far they moved, and checks that they stay images and within budget. A
gradient attack that met a vanishing gradient says nothing about robustness (Athalye, Carlini & Wagner, "Obfuscated
gradients give a false sense of security", ICML 2018), so its row says so.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning import __version__
from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Trial, trials
from glr_lightning.evaluation.fingerprints import hash_of, identity_of, weights_hash
from glr_lightning.evaluation.per_image import Evidence
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.summary import summarise
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.threats import ImageRandom, Threat
from glr_lightning.threats.attacks.input_gradient import is_piecewise_constant
from glr_lightning.threats.attacks.query import Query

TOLERANCE = 1e-6  # rounding of x + epsilon in float32
EXAMPLES = 8  # images that are kept for looking at


@dataclass(frozen=True)
class Judged:
    """A row, and what it was counted from.

    evidence: which images were right, and the first EXAMPLES of them as the threat returned them.
    """

    row: Row
    evidence: Evidence


@dataclass(frozen=True)
class Examination:
    """A network, the images it is tested on, and the randomness of the test.

    model: maps [B, C, H, W] to scores [B, classes], in eval mode; batches go to its parameters' device and type. A
        `NoiseAveraged` one draws fresh noise for every query of an attack, and is judged by noise that is a function of
        (seed, index) too.
    x, y: images, float [n, C, H, W] in [0, 1], and labels, int64 [n].
    seed, index: the randomness of image i is a function of (seed, index[i]) alone, so neither the batch size nor the
        choice of images changes a result; index is int64 [n], the positions in the full data set, by default
        0 .. n - 1.
    surrogates: by name, the networks that transfer attacks take their gradient from, of the same device and type.
    run, checkpoint: written into each row.

    Raises ConfigurationError for networks in training mode or apart from each other, data of the wrong type, shape or
    range.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    seed: int
    surrogates: Mapping[str, nn.Module] = field(default_factory=dict)
    index: Tensor | None = None
    batch_size: int = 1000
    run: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if self.index is None:
            object.__setattr__(self, "index", torch.arange(len(self.x)))
        _check_network("model", self.model, self.place)
        for name, surrogate in self.surrogates.items():
            _check_network(f"surrogate {name}".strip(), surrogate, self.place)
        _check_data(self.x, self.y, self.positions, self.batch_size)
        self._check_fit()

    def _check_fit(self) -> None:
        """Refuse images that the model cannot take, before anything is run."""
        x, _, index = self.to_place((self.x[:1], self.y[:1], self.positions[:1]))
        try:
            scores = self.predict(x, ImageRandom(self.seed, index))
        except RuntimeError as error:
            raise ConfigurationError(
                f"the model does not take images of shape {list(x.shape[1:])} ({str(error).splitlines()[0]}); test it "
                "on the data it was trained on."
            ) from None
        if scores.dim() != 2 or not int(self.y.amin()) >= 0 or not int(self.y.amax()) < scores.shape[1]:
            raise ConfigurationError(
                f"the model's scores must be [B, classes], with a class for every label; got {list(scores.shape)} for "
                f"one image, and labels from {int(self.y.amin())} to {int(self.y.amax())}."
            )

    @property
    def place(self) -> Tensor:
        """Any tensor of the model's device and type."""
        return next(self.model.parameters(), self.x)

    @property
    def positions(self) -> Tensor:
        assert self.index is not None
        return self.index

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        parts = (values.split(self.batch_size) for values in (self.x, self.y, self.positions))
        return list(zip(*parts, strict=True))

    @cached_property
    def weights(self) -> str:
        """The hash of the model's weights, shapes and modules, noise apart."""
        return weights_hash(self.model.network if isinstance(self.model, NoiseAveraged) else self.model)

    @cached_property
    def images(self) -> str:
        """The hash of the images, their labels and positions."""
        return hash_of(*(values.cpu().contiguous().numpy().tobytes() for values in (self.x, self.y, self.positions)))

    @cached_property
    def passes(self) -> int:
        return self.model.passes if isinstance(self.model, NoiseAveraged) else 0

    @cached_property
    @torch.no_grad()
    def randomized(self) -> bool:
        """Do two predictions on the same images differ?"""
        x, _, index = self.to_place(self.batches[0])
        asked = Query(self.model, x, random=ImageRandom(self.seed, index))
        return not torch.equal(asked(x), asked(x))

    def facts(self) -> dict[str, Any]:
        """What all rows of this examination share."""
        return {
            "run": self.run,
            "checkpoint": self.checkpoint,
            "weights": self.weights,
            "images": self.images,
            "evaluation_seed": self.seed,
            "noisy_passes": self.passes,
            "n": len(self.y),
            "randomized": self.randomized,
        }

    def fingerprint(self, trial: Trial) -> str:
        """The hash of all that a trial's row depends on, its names included: two presets may share a level."""
        names = [trial.name, trial.threat.preset, trial.surrogate]
        return self.hash_with({"attack": self.attack_fingerprint(trial), "names": names})

    def attack_fingerprint(self, trial: Trial) -> str:
        """The hash of all that the images of a transfer attack depend on: not of the model that is tested."""
        function = trial.threat.function
        surrogate = self.surrogates.get(trial.surrogate)
        parts = {
            "version": __version__,
            "images": self.images,
            "seed": self.seed,
            "threat": identity_of(function),
            "kind": [trial.threat.kind, trial.threat.norm, trial.threat.targeted],
            "level": [trial.level, dict(trial.parameters)],
            "gradient": [trial.gradient_source, asdict(trial.threat.options)],
            "surrogate": None if surrogate is None else weights_hash(surrogate),
        }
        return hash_of(json.dumps(parts, sort_keys=True, default=str).encode())

    def hash_with(self, parts: Mapping[str, Any]) -> str:
        """The hash of this examination together with what else a row depends on, plain values by name."""
        sigma = [s.tolist() if isinstance(s, Tensor) else s for s in getattr(self.model, "sigma", ())]
        shared = {
            "version": __version__,
            "weights": self.weights,
            "images": self.images,
            "seed": self.seed,
            "noise": [self.passes, repr(getattr(self.model, "noise", None)), sigma],
        }
        return hash_of(json.dumps(shared | dict(parts), sort_keys=True, default=str).encode())

    def evidence(self, correct: Tensor, prediction: Tensor, examples: Tensor) -> Evidence:
        """correct bool [n], prediction int64 [>= k], examples [k, C, H, W] in [0, 1]."""
        shown = examples.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
        first = (values[: len(shown)].cpu().numpy() for values in (self.y, prediction))
        return Evidence(correct.cpu().numpy(), shown.cpu().numpy(), *first)

    def to_place(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x, y, index = batch
        return x.to(self.place), y.to(self.place.device), index.to(self.place.device)

    @torch.no_grad()
    def predict(self, x: Tensor, random: ImageRandom) -> Tensor:
        """The judge's scores, [B, classes]."""
        return self.model(x, random) if isinstance(self.model, NoiseAveraged) else self.model(x)

    def judge(self, trial: Trial, advance: Callable[[], None] = lambda: None) -> Judged:
        """Run one trial. advance: called after each batch of images.

        Raises ConfigurationError for a transfer attack without its surrogate, and a threat that returns another shape.
        """
        start = time.perf_counter()
        batches = []
        for batch in self.batches:
            batches.append(self._judge(trial, *self.to_place(batch)))
            advance()
        images = {key: torch.cat([batch[key] for batch in batches]).cpu() for key in batches[0] if key != "moved"}
        facts = self.facts() | {"seconds": time.perf_counter() - start, "fingerprint": self.fingerprint(trial)}
        examples = torch.cat([batch["moved"] for batch in batches])[:EXAMPLES]
        return Judged(summarise(trial, images, facts), self.evidence(images["correct"], images["prediction"], examples))

    def attacked(self, trial: Trial, x: Tensor, index: Tensor) -> Query:
        """What the threat of a trial is given as its model. Raises ConfigurationError without a surrogate."""
        random = ImageRandom(self.seed, index)
        options = trial.threat.options
        if trial.gradient_source == "transfer" and not trial.threat.recorded:
            surrogate = self.surrogates[trial.surrogate]
            source = "straight_through" if is_piecewise_constant(surrogate) else "autograd"
            return Query(surrogate, x, source=source, random=random, options=options)
        source = "autograd" if trial.gradient_source in ("none", "transfer") else trial.gradient_source
        return Query(self.model, x, source=source, random=random, options=options, randomized=self.randomized)

    def rehearse(self, trial: Trial) -> None:
        """Run an attack on no images at all, so that parameters which it refuses are refused before hours of others.

        Raises ConfigurationError as the attack does; one that cannot do without images is not rehearsed.
        """
        if trial.threat.kind == "attack" and not trial.threat.recorded:
            try:
                self.attack(trial, *self.to_place((self.x[:0], self.y[:0], self.positions[:0])))
            except ConfigurationError:  # a ValueError too
                raise
            except (RuntimeError, IndexError, ValueError):
                return

    @torch.no_grad()
    def attack(self, trial: Trial, x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Query, Tensor | None]:
        """Run a threat on one batch: the images, what it was given as its model, and its targets if it has any.

        Raises ConfigurationError if the images have another shape.
        """
        random, threat = ImageRandom(self.seed, index), trial.threat
        attacked = self.attacked(trial, x, index)
        target = _targets(self.predict(x, random).shape[1], y, random) if threat.targeted else None
        # Copies: a threat that writes into its arguments must not move the goal.
        goal = {} if target is None else {"target": target.clone()}
        moved = threat.function(attacked, x.clone(), y.clone(), random=random, **goal, **trial.parameters)
        if moved.shape != x.shape:
            raise ConfigurationError(
                f"a threat must return images of the shape it was given, {list(x.shape)}; "
                f"{getattr(threat.function, '__name__', threat.function)} returned {list(moved.shape)}."
            )
        return moved, attacked, target

    @torch.no_grad()
    def _judge(self, trial: Trial, x: Tensor, y: Tensor, index: Tensor) -> dict[str, Tensor]:
        """One batch: per image [B], how it is classified, how far it moved, which rules it keeps."""
        moved, attacked, target = self.attack(trial, x, y, index)
        prediction = self.predict(moved, ImageRandom(self.seed, index)).argmax(1)
        change = (moved - x).flatten(1)
        size = {"linf": change.abs().amax(1), "l2": torch.linalg.vector_norm(change, dim=1)}
        inside = (moved >= -TOLERANCE) & (moved <= 1.0 + TOLERANCE)
        # of many pixels, float32 sums to a relative part of the norm
        bound = trial.parameters["epsilon"] * (1 + TOLERANCE) + TOLERANCE if trial.threat.norm else math.inf
        finite, inside = moved.flatten(1).isfinite().all(1), inside.flatten(1).all(1)
        budget = size[trial.threat.norm or "linf"] <= bound
        lawful = finite & inside & budget
        if not lawful.all():  # what breaks the rules has achieved nothing: the image counts as it was
            untouched = self.predict(x, ImageRandom(self.seed, index)).argmax(1)
            prediction = torch.where(lawful, prediction, untouched)
        return {
            "correct": prediction == y,
            "prediction": prediction,
            **size,
            "finite": finite,
            "inside": inside,
            "budget": budget,
            "no_gradient": attacked.count.zero_gradient,
            "queries": attacked.count.queries,
            "reached": torch.full_like(y, -1) if target is None else (prediction == target).long(),
            "moved": moved[:EXAMPLES],
        }


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threats: Mapping[str, Threat],
    *,
    seed: int,
    surrogate: nn.Module | Mapping[str, nn.Module] | None = None,
    index: Tensor | None = None,
    batch_size: int = 1000,
    run: str = "",
    checkpoint: str = "",
    progress: Callable[[str], None] | None = None,
) -> Iterator[Row]:
    """The rows of `threats` (by name), one by one as the iterator is read; everything is checked at the call.

    Arguments and errors are those of `Examination` and `trials`; surrogate is one network, or several by name, and
    progress is called with a line of words before each row. `worst_case.cross_check` compares rows with each other.
    """
    named = {"surrogate": surrogate} if isinstance(surrogate, nn.Module) else dict(surrogate or {})
    examination = Examination(model, x, y, seed, named, index, batch_size, run, checkpoint)
    found = trials(threats, tuple(named))

    def row(trial: Trial) -> Row:
        if progress is not None:
            progress(trial.words)
        return examination.judge(trial).row

    return map(row, found)


def _targets(classes: int, y: Tensor, random: ImageRandom) -> Tensor:
    """One of the other classes for each image, uniform; int64 [B]."""
    return (y + 1 + random.integers(0, classes - 1, (), stream=2**17)) % classes


def _check_network(name: str, network: nn.Module, place: Tensor) -> None:
    if any(module.training for module in network.modules()):
        raise ConfigurationError(
            f"the {name} must be in eval mode, but a module of it is training; call {name}.eval() first."
        )
    parameter = next(network.parameters(), place)
    if (parameter.device, parameter.dtype) != (place.device, place.dtype):
        raise ConfigurationError(
            f"the {name} must be where the model is, {place.dtype} on {place.device}; "
            f"got {parameter.dtype} on {parameter.device}. Move it with {name}.to(...)."
        )
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"the {name} has {parameter.dtype} parameters, too coarse for pixel budgets; use {name}.float()."
        )


def _check_data(x: Tensor, y: Tensor, index: Tensor, batch_size: int) -> None:
    if not x.is_floating_point() or x.dim() != 4 or not len(x):
        raise ConfigurationError(f"x must be a float tensor [n >= 1, C, H, W], got {x.dtype} {list(x.shape)}.")
    if not (x.amin() >= 0 and x.amax() <= 1):  # also false for NaN
        raise ConfigurationError(
            f"x must lie within [0, 1], got [{x.amin():.4g}, {x.amax():.4g}]; "
            "scale the pixels, and normalise in the network."
        )
    for name, values in (("y", y), ("index", index)):
        if values.dtype != torch.int64 or values.shape != x.shape[:1]:
            raise ConfigurationError(
                f"{name} must be int64 [{len(x)}], one an image, got {values.dtype} {list(values.shape)}."
            )
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}.")
