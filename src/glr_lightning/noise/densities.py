"""Densities with closed forms: Gaussian, Laplace, logistic and uniform."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glr_lightning.noise.base import LOG_2, Noise, exp_or_0, open_uniform

LOG_2PI = math.log(2.0 * math.pi)
SQRT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Gaussian(Noise):
    """f(z) = exp(-z^2 / 2) / sqrt(2 pi), s(z) = z."""

    @property
    def fisher_information(self) -> float:
        """The Fisher information is 1."""
        return 1.0

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal draws."""
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)

    def log_prob(self, z: Tensor) -> Tensor:
        """-(z^2 + log 2 pi) / 2."""
        return -0.5 * (z * z + LOG_2PI)

    @property
    def peak(self) -> float:
        """1 / sqrt(2 pi)."""
        return math.exp(-0.5 * LOG_2PI)

    def pdf(self, z: Tensor) -> Tensor:
        """exp(-z^2 / 2) / sqrt(2 pi)."""
        return exp_or_0((z * z).mul_(-0.5)) * self.peak

    def score(self, z: Tensor) -> Tensor:
        """The score is z itself."""
        return z

    def cdf(self, z: Tensor) -> Tensor:
        """Phi(z)."""
        probability: Tensor = torch.special.ndtr(z)  # ten times as fast as exp(log_ndtr)
        return probability

    def log_cdf(self, z: Tensor) -> Tensor:
        """The logarithm of Phi(z)."""
        log_probability: Tensor = torch.special.log_ndtr(z)
        return log_probability

    def hazard(self, z: Tensor) -> Tensor:
        """The inverse Mills ratio h = f / (1 - Phi), and far out, where both underflow, its continued fraction.

            h(z) = z + 1/(z + 2/(z + 3/(z + ...))),

        cut off behind 6/z. An even number of terms is below h everywhere, and the ratio ends at its value at `end`, for
        h rises: so the larger of the two is right. exp(-x^2) takes the same rounded x as erfc, which cancels its error.
        """
        end = 16.0 if z.dtype == torch.float64 else 5.0
        x = z.clamp(max=end).mul_(SQRT_HALF)
        ratio = exp_or_0(-x * x).mul_(math.sqrt(2.0 / math.pi)).div_(torch.erfc(x))
        fraction = z
        for term in range(6, 0, -1):
            fraction = torch.add(z, fraction.reciprocal(), alpha=term)
        return torch.maximum(ratio, fraction)

    def slope_radius(self, u: Tensor) -> Tensor:
        """The radius r = sqrt(-2 log u)."""
        return u.log().mul_(-2.0).sqrt_()

    def icdf(self, u: Tensor) -> Tensor:
        """Phi^-1(u)."""
        quantile: Tensor = torch.special.ndtri(u)
        return quantile


@dataclass(frozen=True)
class Laplace(Noise):
    """f(z) = exp(-|z|) / 2, s(z) = sign(z). The scale is paper 1's b; the variance is 2."""

    @property
    def fisher_information(self) -> float:
        """The Fisher information is 1."""
        return 1.0

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Quantiles of uniform draws u on [0, 1): with w = u - 1/2, sign(w) times -log(1 - 2 |w|)."""
        w = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device).sub_(0.5)
        share = torch.rsub(w.abs(), 1.0, alpha=2.0)  # exact, in steps of eps
        return share.clamp_(min=torch.finfo(dtype).eps).log_().copysign_(w)

    def log_prob(self, z: Tensor) -> Tensor:
        """-|z| - log 2."""
        return -z.abs() - LOG_2

    @property
    def peak(self) -> float:
        """1/2."""
        return 0.5

    def pdf(self, z: Tensor) -> Tensor:
        """exp(-|z|) / 2."""
        return exp_or_0(z.abs().neg_()) * self.peak

    def score(self, z: Tensor) -> Tensor:
        """The sign of z."""
        return torch.sign(z)

    def cdf(self, z: Tensor) -> Tensor:
        """e^-|z| / 2 below 0, and one minus that above."""
        tail = 0.5 * torch.exp(-z.abs())
        return torch.where(z < 0, tail, 1.0 - tail)

    def log_cdf(self, z: Tensor) -> Tensor:
        """The logarithm of `cdf`."""
        tail = -z.abs() - LOG_2
        return torch.where(z < 0, tail, torch.log1p(-tail.exp()))

    def hazard(self, z: Tensor) -> Tensor:
        """1 above 0, e^z / (2 - e^z) below."""
        below = z.clamp(max=0.0).exp_()
        return below / (2.0 - below)

    def slope_radius(self, u: Tensor) -> Tensor:
        """The radius r = -log u."""
        return u.log().neg_()

    def icdf(self, u: Tensor) -> Tensor:
        """The quantile: log 2u below the median, -log 2(1 - u) above."""
        return torch.sign(0.5 - u) * torch.log(2.0 * torch.minimum(u, 1.0 - u))


@dataclass(frozen=True)
class Logistic(Noise):
    """f(z) = e^-z / (1 + e^-z)^2, s(z) = tanh(z / 2)."""

    @property
    def fisher_information(self) -> float:
        """The Fisher information is 1/3."""
        return 1.0 / 3.0

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Quantiles of uniform draws."""
        return self.icdf(open_uniform(shape, generator, dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        """The sum of log sigmoid(z) and log sigmoid(-z)."""
        return torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)

    @property
    def peak(self) -> float:
        """1/4."""
        return 0.25

    def pdf(self, z: Tensor) -> Tensor:
        """e^-|z| / (1 + e^-|z|)^2."""
        decay = exp_or_0(z.abs().neg_())
        return decay / (1.0 + decay).square()

    def score(self, z: Tensor) -> Tensor:
        """The score is tanh(z / 2)."""
        return torch.tanh(0.5 * z)

    def cdf(self, z: Tensor) -> Tensor:
        """The sigmoid of z."""
        return torch.sigmoid(z)

    def log_cdf(self, z: Tensor) -> Tensor:
        """The log-sigmoid of z."""
        return torch.nn.functional.logsigmoid(z)

    def hazard(self, z: Tensor) -> Tensor:
        """The hazard is the sigmoid of z."""
        return torch.sigmoid(z)

    def slope_radius(self, u: Tensor) -> Tensor:
        """The radius r = 2 artanh(sqrt(1 - u)), since f(r) / f(0) = 1 - tanh(r / 2)^2."""
        root = (1.0 - u).sqrt()
        return 2.0 * torch.log1p(root) - u.log()

    def icdf(self, u: Tensor) -> Tensor:
        """The logit of u."""
        return torch.logit(u)


@dataclass(frozen=True)
class Uniform(Noise):
    """f(z) = 1/2 on (-1, 1): NOT admissible, and refused by every likelihood-ratio estimator.

    Its score is 0 inside and undefined at the edges, where f jumps, so E[z s] = 0 and not 1. It is here so that asking
    for it explains why, and because the straight-through estimator with it is the clipped one.
    """

    admissible = False

    @property
    def fisher_information(self) -> float:
        """Infinite: f has jumps."""
        return math.inf

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform draws from (-1, 1)."""
        return 2.0 * open_uniform(shape, generator, dtype) - 1.0

    def log_prob(self, z: Tensor) -> Tensor:
        """-log 2 inside, -inf outside."""
        return torch.where(z.abs() < 1, z.new_tensor(-LOG_2), z.new_tensor(-torch.inf))

    def score(self, z: Tensor) -> Tensor:
        """The score is 0 inside, and taken as 0 outside."""
        return torch.zeros_like(z)

    def cdf(self, z: Tensor) -> Tensor:
        """(z + 1) / 2 inside, 0 below and 1 above."""
        return 0.5 * (z.clamp(-1, 1) + 1)

    def log_cdf(self, z: Tensor) -> Tensor:
        """The logarithm of `cdf`."""
        return self.cdf(z).log()

    def hazard(self, z: Tensor) -> Tensor:
        """1 / (1 - z) inside."""
        return torch.exp(self.log_prob(z) - self.log_sf(z))

    def slope_radius(self, u: Tensor) -> Tensor:
        """1: all of the slope is in the two jumps."""
        return torch.ones_like(u)

    def icdf(self, u: Tensor) -> Tensor:
        """2 u - 1."""
        return 2.0 * u - 1.0
