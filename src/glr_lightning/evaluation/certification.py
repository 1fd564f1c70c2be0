"""Certified accuracy in an evaluation: a row for each radius, all from the same certificates."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, final

import torch
from annotated_types import Interval
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.certificate import NORMS, Certificate, certify, largest_shift, lower_bound
from glr_lightning.evaluation.fingerprints import fingerprint_with
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.per_image import EXAMPLES, per_image
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.runner import Advance, Result, nothing
from glr_lightning.evaluation.summary import counted
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.validation import Checked, Count, NonEmpty, NonNegative, Scale

KIND = "certificate"


@final
@dataclass(frozen=True)
class Certification(Checked):
    """How to certify, for the harness: a row for each radius, all from the same draws.

    radii: at which certified accuracies are wanted, finite numbers >= 0 in units of the norm. At 0 the row is the
        accuracy of the smoothed vote, abstentions counting as wrong.
    norm: of the change d, one of NORMS: "standardised" is ||diag(1/sigma) W d||_2, "preactivation" ||W d||_2 at the
        first layer, "l2" and "linf" are those of the image, in units of the pixel range.
    draws, selection: Monte Carlo draws that bound the probability of the class, and that choose it before.
    alpha: an image's certificate is false with probability at most alpha, 0 < alpha < 1/2.
    sigma: of Gaussian noise at the first layer, in place of what the network was trained with; None for that.
    noise_elsewhere: keep the noise that the network was trained with at the upper layers.

    Raises ConfigurationError for anything out of range.
    """

    radii: NonEmpty[NonNegative] = (0.0, 0.25, 0.5, 1.0)
    norm: str = "preactivation"
    draws: Count = 10_000
    selection: Count = 100
    alpha: Annotated[float, Interval(gt=0, lt=0.5)] = 0.001
    sigma: Scale | None = None
    noise_elsewhere: bool = True

    kind: ClassVar[str] = KIND
    level_name: ClassVar[str] = "radius"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in NORMS:
            raise ConfigurationError(
                f"unknown norm {self.norm!r}; choose from {', '.join(map(repr, NORMS))}.", option="norm"
            )

    @property
    def levels(self) -> list[tuple[float, dict[str, Any]]]:
        """As a threat's: (label, parameters) of each row."""
        return [(float(radius), {}) for radius in self.radii]

    def fingerprint(self, inputs: Inputs, radius: float) -> str:
        """The hash of all that a row depends on, so that it need not be computed again."""
        parameters = asdict(replace(self, radii=(float(radius),)))
        return fingerprint_with(inputs, {"threat": f"{__name__}.{type(self).__qualname__}", "parameters": parameters})

    def certificate(self, inputs: Inputs, advance: Advance = nothing) -> Certificate:
        """Certify all images, with the radius in `norm`. advance: called after each batch.

        Raises:
            ConfigurationError: a network that the theorem does not cover.
        """
        network, noise, sigma = self.smoothing(inputs.network)
        found = []
        for batch in inputs.batches():
            settings: dict[str, Any] = {"draws": self.draws, "selection": self.selection, "alpha": self.alpha}
            found.append(certify(network, batch.x, sigma, seed=inputs.seed, noise=noise, **settings))
            advance()
        radius = torch.cat([each.radius for each in found])
        gain = largest_shift(network, batch.x, sigma[0], self.norm)
        return Certificate(torch.cat([each.prediction for each in found]), radius / gain)

    def results(self, inputs: Inputs, name: str = "certify", advance: Advance = nothing) -> Iterator[Result]:
        """The rows, one a radius. `seconds` are shared out evenly among them; `queries` are the draws of an image.

        Raises:
            ConfigurationError: as for `certificate`.
        """
        start = time.perf_counter()
        certificate = self.certificate(inputs, advance)
        labels = inputs.labels.cpu()
        shared = inputs.row_fields | {
            "noisy_passes": self.draws,
            "threat": name,
            "kind": KIND,
            "preset": self.norm,
            "norm": self.norm if self.norm in ("l2", "linf") else "",
            "level_name": self.level_name,
            "abstained": float(certificate.abstained.double().mean()),
            "queries": float(self.selection + self.draws),
            "seconds": (time.perf_counter() - start) / len(self.radii),
        }
        network, _, sigma = self.smoothing(inputs.network)
        gain = largest_shift(network, inputs.batch(slice(1)).x, sigma[0], self.norm)
        unanimous = lower_bound(torch.tensor([self.draws]), self.draws, self.alpha)
        reach = max(float(torch.special.ndtri(unanimous)) / gain, 0.0)
        for radius in map(float, self.radii):
            correct = certificate.correct(labels, radius)
            row = Row(
                **shared,
                **counted(correct),
                level=radius,
                note=self._note(sigma[0]) + self._beyond(radius, reach),
                fingerprint=self.fingerprint(inputs, radius),
            )
            yield Result(row, per_image(correct, certificate.prediction, inputs.labels, inputs.images[:EXAMPLES]))

    def smoothing(self, model: nn.Module) -> tuple[nn.Module, Noise, tuple[float | Tensor, ...]]:
        """The network, and the noise of its layers from the first on.

        Raises ConfigurationError for a network that the theorem does not cover.
        """
        if not isinstance(model, NoiseAveraged):
            if self.sigma is None:
                raise ConfigurationError(
                    "a certificate needs Gaussian noise at the first layer, and this network was trained without noise "
                    "there; give the certificate its own, threat.certify.sigma=0.5, or take a run trained with noise."
                )
            return model, Gaussian(), (self.sigma,)
        if self.sigma is None and not isinstance(model.noise, Gaussian):
            raise ConfigurationError(
                f"a certificate needs Gaussian noise at the first layer, and this network has "
                f"{type(model.noise).__name__} noise; give the certificate its own sigma=..., which puts Gaussian "
                "noise there, or train with noise=gaussian."
            )
        first = model.sigma[0] if self.sigma is None else self.sigma
        return model.network, model.noise, (first, *(model.sigma[1:] if self.noise_elsewhere else ()))

    def _note(self, sigma: float | Tensor) -> str:
        low, high = (float(end) for end in torch.as_tensor(sigma, dtype=torch.float64).aminmax())
        scale = f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"
        return (
            f"certified accuracy: right and proven to stay so for all {NORMS[self.norm]} <= radius; "
            f"alpha={self.alpha:g} an image, n={self.draws} draws after {self.selection}, sigma={scale}"
        )

    def _beyond(self, radius: float, reach: float) -> str:
        """Say that no vote of `draws`, even a unanimous one, proves this radius: the row is about the draws alone."""
        return "" if radius < reach else f"; {self.draws} draws prove no radius above {reach:.3g}: raise draws"
