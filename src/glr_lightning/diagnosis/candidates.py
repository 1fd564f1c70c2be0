"""Inputs of a diagnosis: the network with its batch, the candidate estimators, the reference gradients."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from glr_lightning.config import build
from glr_lightning.diagnosis.measure import drawing
from glr_lightning.diagnosis.overrides import estimator_node, keys_of
from glr_lightning.diagnosis.statistics import Reference, estimated_reference, layers_of, vectors
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Backprop, Estimate, Estimator
from glr_lightning.estimators.settings import IdleSettingError
from glr_lightning.losses import Loss
from glr_lightning.randomness import generator_for

LARGEST_ERROR = 0.3
"""Relative error of a reference above which the notes advise more draws."""


@dataclass(frozen=True)
class Subject:
    """The network, loss and batch that estimators are tried on, relative to the training configuration `base`."""

    name: str
    base: dict[str, Any]
    network: nn.Module
    loss: Loss
    x: Tensor
    y: Tensor
    trusted: tuple[str, ...] | None

    def built(self, node: Mapping[str, Any]) -> Estimator:
        """Build an estimator, check it on this network and loss, and try one estimate. Raises ConfigurationError."""
        estimator: Estimator = build(node, where="estimator", trusted=self.trusted, kind=Estimator)
        with suppress(IdleSettingError):  # a comparison may name a setting that matters on other networks
            estimator.check(self.network, self.loss)
        generator = generator_for(self.x.device, "attempt")
        drawing(estimator, self.network, self.loss, self.x, self.y, generator)()
        return estimator


@dataclass(frozen=True)
class Candidate:
    """An entry of `estimators` at one number of copies, and the estimator built from it, or the refusal."""

    label: str
    node: dict[str, Any]
    built: Estimator | ConfigurationError

    @property
    def copies(self) -> int | list[int] | None:
        """One number, or one per layer; None for an estimator without copies."""
        return self.node.get("copies")


def entries_of(estimators: Any) -> list[tuple[str, list[str]]]:
    """(label, overrides) of each entry: `NAME`, `KEY=VALUE KEY=VALUE`, or either under a label of its own."""
    found = []
    for entry in estimators if isinstance(estimators, list) else [estimators]:
        items = list(entry.items()) if isinstance(entry, dict) else [(entry, entry)]
        if len(items) != 1 or not isinstance(items[0][1], str) or not items[0][1].split():
            raise ConfigurationError(
                "estimators must be a list of names, of overrides such as 'estimator=likelihood_ratio copies=8', or "
                f"of either under a label {{LABEL: ...}}; got {entry!r}.",
                option="estimators",
            )
        label, words = items[0]
        found.append((str(label), [f"estimator={words}"] if "=" not in words else words.split()))
    labels = [label for label, _ in found]
    if not found or len(set(labels)) < len(labels):
        raise ConfigurationError(
            f"estimators must be at least one entry, each with a label of its own; got {labels}.", option="estimators"
        )
    return found


def tried(subject: Subject, label: str, overrides: list[str], config: Mapping[str, Any]) -> list[Candidate]:
    """The candidates of an entry: one for each number of copies, unless it has none or names its own."""
    node = estimator_node(subject.base, overrides)
    own = {"copies", "estimator.copies"} & set(keys_of(overrides))
    chosen = config["copies"] if isinstance(config["copies"], list) else [config["copies"]]
    nodes = [node] if "copies" not in node or own else [node | {"copies": copies} for copies in dict.fromkeys(chosen)]
    return [Candidate(label, node, _built(subject, node)) for node in nodes]


def _built(subject: Subject, node: Mapping[str, Any]) -> Estimator | ConfigurationError:
    try:
        return subject.built(node)
    except ConfigurationError as error:
        return error


class References:
    """The reference gradients of the objectives that occur, each found once."""

    def __init__(self, subject: Subject, config: Mapping[str, Any], tick: Callable[[], None]) -> None:
        self.notes: list[str] = []
        self._subject = subject
        self._copies, self._repetitions = config["reference"]["copies"], config["reference"]["repetitions"]
        self._seed, self._estimators, self._tick = config["seed"], config["reference"]["estimator"], tick
        self._layers = layers_of(subject.network)
        self._known: dict[str, tuple[dict[str, Reference] | None, str]] = {}

    def of_candidate(self, candidate: Candidate) -> tuple[dict[str, Reference] | None, str]:
        """The reference for a candidate's estimator, see `of`."""
        assert isinstance(candidate.built, Estimator)
        return self.of(candidate.built.objective, candidate.node, candidate.label)

    def of(self, objective: str, node: Mapping[str, Any], label: str = "") -> tuple[dict[str, Reference] | None, str]:
        """The reference of each layer for an estimator's objective, or None and why there is none.

        An objective depends on the noise and its scale too, which are those of `node`.
        """
        smoothing = {key: node[key] for key in ("noise", "sigma") if key in node}
        configured = self._estimators.get(objective)
        if configured:
            chosen = estimator_node(self._subject.base, configured.split())
            chosen |= {key: value for key, value in smoothing.items() if key in chosen}
            words = configured
            if label and chosen["_target_"] == node["_target_"]:
                self._note(f"{label}: its reference is of its own kind, which shows consistency and not correctness.")
        elif objective == "noise_free":
            chosen, words, smoothing = {}, "backpropagation, exact", {}
        else:
            chosen, words = dict(node), f"{label} itself with other draws, which shows consistency and not correctness"
        if "copies" in chosen:
            chosen["copies"] = self._copies
        key = json.dumps([objective, chosen], sort_keys=True, default=str)
        if key not in self._known:
            own = {"noise": smoothing.get("noise"), **self._subject.base["estimator"]}
            differs = [f"{name}={value}" for name, value in smoothing.items() if value != own.get(name)]
            title = f"Reference of {', '.join([objective, *differs])}"
            self._known[key] = self._found(objective, chosen, title, words)
        return self._known[key]

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def _found(
        self, objective: str, node: dict[str, Any], title: str, words: str
    ) -> tuple[dict[str, Reference] | None, str]:
        s = self._subject
        generator = generator_for(s.x.device, self._seed, "reference", title)
        try:
            estimator = s.built(node) if node else Backprop()
            with suppress(IdleSettingError):
                estimator.check(s.network, s.loss)
        except ConfigurationError as error:
            self.notes.append(f"{title}: none. {error}")
            return None, str(error)
        draw = drawing(estimator, s.network, s.loss, s.x, s.y, generator)
        if not node:
            self.notes.append(f"{title}: {words}.")
            gradients = vectors(draw(), self._layers)
            return {layer: Reference.exact(gradient, generator) for layer, gradient in gradients.items()}, ""
        bias = estimator.bias(s.network)
        if estimator.objective != objective or (bias and objective in self._estimators):
            raise ConfigurationError(
                f"reference.estimator.{objective}={words!r} is no reference: it estimates the gradient of "
                f"{estimator.objective}{', and is biased: ' if bias else ''}{bias}.",
                option=f"reference.estimator.{objective}",
            )

        def counted() -> Estimate:
            self._tick()
            return draw()

        found = estimated_reference(counted, self._layers, self._repetitions, generator)
        worst = max(reference.error for reference in found.values())
        copies = f", K = {node['copies']}" if "copies" in node else ""
        advice = "; too noisy, raise reference.repetitions or reference.copies" if worst > LARGEST_ERROR else ""
        self.notes.append(
            f"{title}: {words}{copies}, {self._repetitions} draws; its relative error is at most {worst:.1%}{advice}."
        )
        return found, ""
