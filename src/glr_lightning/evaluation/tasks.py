"""Rows that are computed together: all batches of one attempt, or of one certification."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

from glr_lightning.evaluation.attempts import Attempt
from glr_lightning.evaluation.certification import Certification
from glr_lightning.evaluation.fingerprints import row_fingerprint
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.runner import Advance, Result, nothing, rehearse, run
from glr_lightning.evaluation.surrogates import Surrogates


@dataclass(frozen=True)
class Task(ABC):
    """Rows about some inputs that are computed together."""

    inputs: Inputs

    @property
    @abstractmethod
    def words(self) -> str:
        """The task in a line, for a progress bar."""

    @property
    @abstractmethod
    def fingerprints(self) -> tuple[str, ...]:
        """Those of its rows, before they are computed."""

    @abstractmethod
    def results(self, advance: Advance = nothing) -> Iterator[Result]:
        """Compute the rows. advance: called after each of the inputs' batches."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot be run, before anything is.

        Raises:
            ConfigurationError: says what.
        """


@final
@dataclass(frozen=True)
class AttemptTask(Task):
    """One attempt."""

    attempt: Attempt
    surrogates: Surrogates

    def __post_init__(self) -> None:
        most = self.attempt.threat.images_at_once
        if most is not None and most < self.inputs.batch_size:
            object.__setattr__(self, "inputs", replace(self.inputs, batch_size=most))

    @property
    def words(self) -> str:
        """The attempt's."""
        return self.attempt.words

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """That of the attempt, whether its images are kept or not."""
        return (row_fingerprint(self.inputs, self.attempt, self.surrogates.of(self.attempt)),)

    def check(self) -> None:
        """Run the attack on no images."""
        rehearse(self.attempt, self.inputs, self.surrogates.of(self.attempt))

    def results(self, advance: Advance = nothing) -> Iterator[Result]:
        """Run the attempt."""
        prepared = self.surrogates.prepared(self.attempt, self.inputs, advance)
        surrogate = self.surrogates.of(self.attempt)
        yield run(prepared, self.inputs, surrogate, fingerprint=self.fingerprints[0], advance=advance)


@final
@dataclass(frozen=True)
class CertificationTask(Task):
    """All radii of one certification."""

    certification: Certification
    name: str

    @property
    def words(self) -> str:
        """The name in tables."""
        return self.name

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """One for each radius."""
        return tuple(self.certification.fingerprint(self.inputs, radius) for radius, _ in self.certification.levels)

    def check(self) -> None:
        """Ask whether the theorem covers the network's noise."""
        self.certification.smoothing(self.inputs.network)

    def results(self, advance: Advance = nothing) -> Iterator[Result]:
        """Certify, once for all radii."""
        return self.certification.results(self.inputs, self.name, advance)
