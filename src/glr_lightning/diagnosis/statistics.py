"""Bias, variance and direction of gradient estimates on one batch, layer by layer.

For independent estimates g_1 .. g_n of a layer's gradient and a reference with mean r, |r|^2 its squared length:

    relative variance      tr Cov(g_1) / |r|^2
    variance x time        relative variance x milliseconds of one estimate; its ratio between two estimators is the
                           ratio of the times in which averaging brings them to the same accuracy
    bias along u           <mean(g) - r, u> over its standard error, for a few directions u that are fixed beforehand
    cosine                 mean over k of <g_k, r> / (|g_k| |r|)
    alignment              <mean(g), j> / (|mean(g)| |j|), j the gradient of the jointly smoothed objective

A reference is exact, or it is the mean of independent draws, and then its own noise counts: in the standard error of a
bias, and in every squared length, which comes from two independent halves since |mean|^2 is too large on average.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtri, stdtr
from torch import Tensor, nn

from glr_lightning.estimators import Estimate

SIGNS = 8
"""Random directions, besides that of the reference, along which a bias is looked for."""
FALSE_ALARM = 0.01
"""The probability that a diagnosis of unbiased estimators flags one (family-wise error)."""
LARGEST_Z = 37.0
"""The largest z that is returned; its tail probability is about the smallest that a float64 holds."""

Draw = Callable[[], Estimate]


def layers_of(network: nn.Module) -> dict[str, list[str]]:
    """The names of the trainable parameters of each layer, in the network's order."""
    layers: dict[str, list[str]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def vectors(estimate: Estimate, layers: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Each layer's gradient as one float64 vector."""
    return {
        layer: torch.cat([estimate.gradients[name].flatten() for name in names]).double()
        for layer, names in layers.items()
    }


class Moments:
    """Streamed moments of independent draws of a vector [d].

    Only the length of each draw and its products with the rows of `probes` [p, d] are kept.
    """

    def __init__(self, probes: Tensor) -> None:
        self.probes = probes
        self._sum = probes.new_zeros(probes.shape[1])
        self._squares = torch.zeros_like(self._sum)
        self._products: list[Tensor] = []
        self._lengths: list[Tensor] = []

    def add(self, draw: Tensor) -> None:
        """Add one draw [d]."""
        self._sum += draw
        self._squares += draw * draw
        self._products.append(self.probes @ draw)
        self._lengths.append(draw.norm())

    @property
    def n(self) -> int:
        """The number of draws."""
        return len(self._lengths)

    @property
    def mean(self) -> Tensor:
        """The mean of the draws, [d]."""
        return self._sum / self.n

    @property
    def variance(self) -> float:
        """The trace of the covariance of one draw, unbiased; n >= 2."""
        spread = float((self._squares - self._sum * self._sum / self.n).sum())
        rounding = 1e-12 * float(self._squares.sum())  # an estimator without noise has variance 0
        return spread / (self.n - 1) if spread > rounding else 0.0

    @property
    def products(self) -> Tensor:
        """The products of the draws with the probes, [n, p]."""
        return torch.stack(self._products)

    @property
    def lengths(self) -> Tensor:
        """The lengths of the draws, [n]."""
        return torch.stack(self._lengths)


@dataclass(frozen=True)
class Reference:
    """The gradient of a layer that estimates are compared with.

    Attributes:
        mean: [d].
        squared_length: of the true gradient; an unbiased estimate where the reference is one.
        directions: [p, d] unit vectors, the first that of the reference; independent of `along`.
        along: [m, p] independent draws of the gradient along them; one row if it is exact.
        error: relative standard error of `mean` as a vector.
    """

    mean: Tensor
    squared_length: float
    directions: Tensor
    along: Tensor
    error: float = 0.0

    @property
    def probes(self) -> Tensor:
        """The rows that draws are multiplied with: the directions, then the mean."""
        return torch.cat([self.directions, self.mean[None]])

    @staticmethod
    def exact(gradient: Tensor, generator: torch.Generator) -> "Reference":
        """Build from an exact gradient [d], along its own and random directions."""
        directions = _directions(gradient, generator)
        return Reference(gradient, float(gradient @ gradient), directions, (directions @ gradient)[None])

    @staticmethod
    def estimated(pilot: Moments, rest: Moments) -> "Reference":
        """Build from two independent halves: the first chose the directions, which are the second's probes."""
        mean = (pilot.n * pilot.mean + rest.n * rest.mean) / (pilot.n + rest.n)
        squared_length = max(float(pilot.mean @ rest.mean), 0.0)
        squared_error = rest.variance / (pilot.n + rest.n)
        error = (squared_error / squared_length) ** 0.5 if squared_length else float("inf")
        return Reference(mean, squared_length, rest.probes, rest.products, error)


def estimated_reference(
    draw: Draw, layers: Mapping[str, Sequence[str]], number: int, generator: torch.Generator
) -> dict[str, Reference]:
    """The reference of each layer from `number` draws."""
    pilot = {layer: Moments(v.new_zeros(0, len(v))) for layer, v in vectors(draw(), layers).items()}
    _stream(pilot, draw, layers, number // 2)
    rest = {layer: Moments(_directions(moments.mean, generator)) for layer, moments in pilot.items()}
    _stream(rest, draw, layers, number - number // 2)
    return {layer: Reference.estimated(pilot[layer], rest[layer]) for layer in layers}


def _stream(into: Mapping[str, Moments], draw: Draw, layers: Mapping[str, Sequence[str]], number: int) -> None:
    for _ in range(number):
        for layer, vector in vectors(draw(), layers).items():
            into[layer].add(vector)


def _directions(along: Tensor, generator: torch.Generator) -> Tensor:
    """The direction of a vector [d] and `SIGNS` random ones, as rows of length 1."""
    d = len(along)
    signs = torch.randint(0, 2, (SIGNS, d), generator=generator, device=along.device).double() * 2 - 1
    return torch.cat([(along / along.norm().clamp(min=1e-300))[None], signs / d**0.5])


@dataclass(frozen=True)
class Comparison:
    """An estimator beside the reference of its objective, on one layer; the fields are defined above."""

    z: float
    relative_bias: float  # along the reference: 0 unbiased, -0.5 half as long
    relative_bias_error: float
    relative_variance: float
    cosine: float


def compare(moments: Moments, reference: Reference, rounding: float) -> Comparison | None:
    """The draws in `moments`, whose probes are the reference's; None if the reference is not distinct from 0.

    Args:
        moments: at least two draws.
        reference: of the same layer.
        rounding: relative rounding error of a gradient, so that estimators without noise may be compared.
    """
    length = reference.squared_length**0.5
    if not length > 0:
        return None
    along, products = moments.products[:, :-1], moments.products[:, -1]
    z = z_scores(along, reference.along, rounding * length)
    (mean, error), (expected, expected_error) = (_mean_and_error(t[:, :1]) for t in (along, reference.along))
    ratio = float(mean) / float(expected)
    least = max(abs(ratio), 1.0)  # draws that are all 0 do not make the reference any more certain
    lengths = moments.lengths.clamp(min=1e-300)
    return Comparison(
        z=float(z.abs().max()),
        relative_bias=ratio - 1,
        relative_bias_error=float((error**2 + (least * expected_error) ** 2).sqrt() / expected.abs()),
        relative_variance=moments.variance / reference.squared_length,
        cosine=max(-1.0, min(1.0, float((products / lengths).mean()) / length)),
    )


def z_scores(draws: Tensor, reference: Tensor, rounding: float = 0.0) -> Tensor:
    """Test, column by column, whether the means of `draws` [n, p] and `reference` [m, p] agree; rows are independent.

    Welch's t, as the normal quantile of the same tail probability: of few draws with an estimated error a large t
    says less. Differences up to `rounding` are none. An exact reference has one row.
    """
    (mean, error), (expected, expected_error) = _mean_and_error(draws), _mean_and_error(reference)
    difference = mean - expected
    excess = (difference.abs() - rounding).clamp(min=0)
    squared = error**2 + expected_error**2
    parts = error**4 / max(len(draws) - 1, 1) + expected_error**4 / max(len(reference) - 1, 1)
    freedom = torch.where(parts > 0, squared**2 / parts, torch.inf)
    t = torch.where(excess > 0, excess / squared.sqrt(), 0.0)
    tail = torch.from_numpy(stdtr(freedom.clamp(max=1e9).cpu().numpy(), -t.cpu().numpy()))
    return difference.sign().cpu() * torch.from_numpy(-ndtri(tail.numpy())).clamp(0, LARGEST_Z)


def _mean_and_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [p] of draws [n, p] and its standard error; one draw is exact."""
    mean = draws.mean(0)
    return mean, draws.std(0) / len(draws) ** 0.5 if len(draws) > 1 else torch.zeros_like(mean)


def critical_z(comparisons: int) -> float:
    """Return what max |z| of unbiased comparisons exceeds with probability `FALSE_ALARM` (Sidak)."""
    each = 1 - (1 - FALSE_ALARM) ** (1 / comparisons)
    return float(-ndtri(each / 2))


def alignment(moments: Moments, truth: Reference) -> float | None:
    """The cosine of the mean estimate with the truth; None where the mean is mostly noise."""
    noise = moments.variance / moments.n
    squared = float(moments.mean @ moments.mean) - noise  # noise is no length
    if not squared > noise or not truth.squared_length > 0:
        return None
    length: float = (squared * truth.squared_length) ** 0.5
    cosine = float(moments.mean @ truth.mean) / length
    return max(-1.0, min(1.0, cosine))
