"""Noise densities, standardised (location 0, scale 1); a layer multiplies a draw by its noise scale sigma.

For a density f on the line the score is s(z) = -d log f(z) / dz. The likelihood-ratio method needs f to be
positive and absolutely continuous on the whole line; then (Law 1)

    E[s(z)] = 0,   E[z s(z)] = 1,   E[s(z)^2] = Fisher information.

Adding a density: one frozen dataclass here, one YAML in conf/noise. Every density in that folder is tested
against these laws by quadrature.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.special import roots_jacobi
from torch import Tensor

from glr_lightning.errors import ConfigurationError

LOG_2 = math.log(2.0)
LOG_2PI = math.log(2.0 * math.pi)


class Noise(ABC):
    """A density that is symmetric about 0 and given on the whole line in standardised form.

    Every method is elementwise, differentiability is not needed, and any floating dtype and device works.
    """

    admissible: ClassVar[bool] = True
    """Is the density positive and absolutely continuous on the whole line?"""
    symmetric: ClassVar[bool] = True
    """Is f(-z) = f(z)? Antithetic sampling needs it; `log_sf` below uses it."""

    @property
    @abstractmethod
    def fisher_information(self) -> float:
        """E[s(z)^2] at scale 1; divide by sigma^2 for another scale."""

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Independent draws of the given shape, on the generator's device."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log f(z)."""

    @abstractmethod
    def score(self, z: Tensor) -> Tensor:
        """s(z) = -d log f(z) / dz."""

    @abstractmethod
    def cdf(self, z: Tensor) -> Tensor:
        """F(z)."""

    @abstractmethod
    def log_cdf(self, z: Tensor) -> Tensor:
        """log F(z), accurate relative to F(z) in the left tail."""

    @abstractmethod
    def hazard(self, z: Tensor) -> Tensor:
        """f(z) / (1 - F(z)), the mean score above z, without the cancellation of two logarithms."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """The quantile F^-1(u), 0 < u < 1."""

    @abstractmethod
    def slope_radius(self, u: Tensor) -> Tensor:
        """The r >= 0 with f(r) = u f(0), 0 < u < 1; of a density that falls on either side of 0."""

    def sample_slope(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Independent draws r > 0 with density |f'(r)| / f(0), on the generator's device.

        With them the derivative of an expectation is a mean of differences (measure-valued derivative; Pflug 1989,
        Heidergott & Vazquez-Abad 2008), for any g that is integrable under f':

            d/dv E[g(v + z)] = E[s(z) g(v + z)] = f(0) E[g(v + r) - g(v - r)]
        """
        return self.slope_radius(_open_uniform(shape, generator, dtype))

    def log_sf(self, z: Tensor) -> Tensor:
        """log(1 - F(z)), accurate relative to 1 - F(z) in the right tail."""
        return self.log_cdf(-z)

    def conditional_score(self, lower: Tensor | None, upper: Tensor | None) -> Tensor:
        """Mean score of a draw known to lie between two bounds (Rao-Blackwell).

            E[s(z) | lower < z < upper] = (f(lower) - f(upper)) / (F(upper) - F(lower))

        Bounds broadcast, lower < upper; None or an infinite entry is no bound, at least one is a tensor.
        Numerator and denominator are taken in log-space and on the side of the origin where nothing cancels,
        so far tails are exact to rounding.
        """
        if lower is None and upper is None:
            raise ValueError("conditional_score needs a bound; without one the mean score is 0.")
        if lower is None:
            assert upper is not None
            return -self.hazard(-upper)
        if upper is None:
            return self.hazard(lower)
        mirror = lower + upper > 0  # s is odd: E[s | (a, b)] = -E[s | (-b, -a)]; work in the left tail
        left = torch.where(mirror, -upper, lower)
        right = torch.where(mirror, -lower, upper)
        log_left, log_right = self.log_prob(left), self.log_prob(right)
        log_mass = _log_difference(self.log_cdf(right), self.log_cdf(left))
        high, low = torch.maximum(log_left, log_right), torch.minimum(log_left, log_right)
        size = torch.exp(_log_difference(high, low) - log_mass)
        return torch.where(mirror ^ (log_left < log_right), -size, size)

    def conditional_scale_score(self, lower: Tensor | None, upper: Tensor | None) -> Tensor:
        """Mean of s(z) z - 1, the score of log sigma, of a draw known to lie between two bounds.

            E[s(z) z - 1 | lower < z < upper] = (lower f(lower) - upper f(upper)) / (F(upper) - F(lower))

        since s f = -f' and so int s z f = -[z f] + int f. Bounds and care in the tails as in `conditional_score`.
        """
        if lower is None and upper is None:
            raise ValueError("conditional_scale_score needs a bound; without one the mean is 0.")
        if lower is None:
            assert upper is not None
            return -upper * self.hazard(-upper)
        if upper is None:
            return lower * self.hazard(lower)
        mirror = lower + upper > 0  # s(z) z is even: the mean over (a, b) is that over (-b, -a); work in the left tail
        left = torch.where(mirror, -upper, lower)
        right = torch.where(mirror, -lower, upper)
        log_mass = _log_difference(self.log_cdf(right), self.log_cdf(left))
        log_left, log_right = self._log_moment(left), self._log_moment(right)
        high, low = torch.maximum(log_left, log_right), torch.minimum(log_left, log_right)
        difference = torch.exp(_log_difference(high, low) - log_mass)
        same_side = torch.where(log_left < log_right, difference, -difference)
        around_0 = -torch.exp(log_left - log_mass) - torch.exp(log_right - log_mass)
        return torch.where(right > 0, around_0, same_side)

    def _log_moment(self, z: Tensor) -> Tensor:
        """log(|z| f(z)), which is -inf at 0 and at infinity."""
        return torch.where(z.isinf(), -torch.inf, z.abs().log() + self.log_prob(z))


def _log_difference(high: Tensor, low: Tensor) -> Tensor:
    """log(exp(high) - exp(low)) for high >= low; low may be -inf, equal arguments give -inf."""
    gap = torch.where(low == -torch.inf, torch.full_like(low, -torch.inf), low - high)
    # log(1 - e^gap): two branches, each without cancellation (Maechler 2012)
    return high + torch.where(gap > -LOG_2, torch.log(-torch.expm1(gap)), torch.log1p(-torch.exp(gap)))


def require_admissible(noise: Noise) -> None:
    """Refuse a density for which the likelihood-ratio identity is false.

    Raises:
        ConfigurationError: the density has a bounded support or a jump.
    """
    if not noise.admissible:
        raise ConfigurationError(
            f"{type(noise).__name__} noise cannot be used: a density is admissible only if it is positive and "
            "absolutely continuous on the whole line, else the likelihood-ratio estimate misses the mass that "
            "crosses the edges of its support. Use noise=gaussian, laplace, logistic or student_t."
        )


@dataclass(frozen=True)
class Gaussian(Noise):
    """f(z) = exp(-z^2 / 2) / sqrt(2 pi), s(z) = z."""

    @property
    def fisher_information(self) -> float:
        return 1.0

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z * z + LOG_2PI)

    def score(self, z: Tensor) -> Tensor:
        return z

    def cdf(self, z: Tensor) -> Tensor:
        return torch.special.ndtr(z)  # ten times as fast as exp(log_ndtr)

    def log_cdf(self, z: Tensor) -> Tensor:
        return torch.special.log_ndtr(z)

    def hazard(self, z: Tensor) -> Tensor:
        return math.sqrt(2.0 / math.pi) / torch.special.erfcx(z * math.sqrt(0.5))

    def slope_radius(self, u: Tensor) -> Tensor:
        return (-2.0 * u.log()).sqrt()

    def icdf(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u)


@dataclass(frozen=True)
class Laplace(Noise):
    """f(z) = exp(-|z|) / 2, s(z) = sign(z). The scale is the paper's b; the variance is 2."""

    @property
    def fisher_information(self) -> float:
        return 1.0

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.icdf(_open_uniform(shape, generator, dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        return -z.abs() - LOG_2

    def score(self, z: Tensor) -> Tensor:
        return torch.sign(z)

    def cdf(self, z: Tensor) -> Tensor:
        tail = 0.5 * torch.exp(-z.abs())
        return torch.where(z < 0, tail, 1.0 - tail)

    def log_cdf(self, z: Tensor) -> Tensor:
        tail = -z.abs() - LOG_2
        return torch.where(z < 0, tail, torch.log1p(-tail.exp()))

    def hazard(self, z: Tensor) -> Tensor:
        below = 0.5 * torch.exp(z.clamp(max=0.0))
        return below / (1.0 - below)

    def slope_radius(self, u: Tensor) -> Tensor:
        return -u.log()

    def icdf(self, u: Tensor) -> Tensor:
        return torch.sign(0.5 - u) * torch.log(2.0 * torch.minimum(u, 1.0 - u))


@dataclass(frozen=True)
class Logistic(Noise):
    """f(z) = e^-z / (1 + e^-z)^2, s(z) = tanh(z / 2)."""

    @property
    def fisher_information(self) -> float:
        return 1.0 / 3.0

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.icdf(_open_uniform(shape, generator, dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)

    def score(self, z: Tensor) -> Tensor:
        return torch.tanh(0.5 * z)

    def cdf(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def log_cdf(self, z: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(z)

    def hazard(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def slope_radius(self, u: Tensor) -> Tensor:
        root = (1.0 - u).sqrt()  # f(r) / f(0) = 1 - tanh(r / 2)^2
        return 2.0 * torch.log1p(root) - u.log()

    def icdf(self, u: Tensor) -> Tensor:
        return torch.logit(u)


@dataclass(frozen=True)
class StudentT(Noise):
    """Student's t with 0.5 <= `nu` <= 300 degrees of freedom: s(z) = (nu + 1) z / (nu + z^2), bounded in z.

    With z = sqrt(nu) cot(psi), 0 < psi < pi, the right tail is an integral of a smooth positive function,

        1 - F(z) = C psi^nu  int_0^1 u^(nu-1) sinc(psi u)^(nu-1) du,   C = Gamma((nu+1)/2) / (sqrt(pi) Gamma(nu/2)),

    with sinc(x) = sin(x)/x, which Gauss-Jacobi quadrature gives to rounding, tails included.
    """

    nu: float = 5.0

    MIN_NU: ClassVar[float] = 0.5
    """Below it draws overflow in float32."""
    MAX_NU: ClassVar[int] = 300
    """Above it the quadrature of the tail would need more nodes."""

    def __post_init__(self) -> None:
        if (
            isinstance(self.nu, bool)
            or not isinstance(self.nu, int | float)
            or not self.MIN_NU <= self.nu <= self.MAX_NU
        ):
            raise ConfigurationError(
                f"noise.nu must be a number from {self.MIN_NU} to {self.MAX_NU}, got {self.nu!r}; use for example 5, "
                "or noise=gaussian, which is the limit of large nu."
            )

    @property
    def fisher_information(self) -> float:
        return (self.nu + 1.0) / (self.nu + 3.0)

    @property
    def _log_constant(self) -> float:
        return math.lgamma((self.nu + 1) / 2) - math.lgamma(self.nu / 2) - 0.5 * math.log(math.pi)

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Bailey's polar method (Mathematics of Computation 62, 1994): exact for every nu."""
        radius = _open_uniform(shape, generator, dtype)
        angle = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
        squared = self.nu * torch.expm1(-2.0 / self.nu * radius.log())
        return squared.sqrt() * torch.cos(2.0 * math.pi * angle)

    def log_prob(self, z: Tensor) -> Tensor:
        constant = self._log_constant - 0.5 * math.log(self.nu)
        return constant - 0.5 * (self.nu + 1) * torch.log1p(z * z / self.nu)

    def score(self, z: Tensor) -> Tensor:
        return (self.nu + 1.0) * z / (self.nu + z * z)

    def cdf(self, z: Tensor) -> Tensor:
        return self.log_cdf(z).exp()

    def log_cdf(self, z: Tensor) -> Tensor:
        psi = torch.atan2(torch.full_like(z, math.sqrt(self.nu)), z.abs())  # in (0, pi/2]
        nodes, weights = _tail_quadrature(self.nu)
        integral = torch.zeros_like(z)
        for u, w in zip(nodes, weights, strict=True):
            integral += w * torch.sinc(psi * (u / math.pi)) ** (self.nu - 1.0)
        tail = self._log_constant + self.nu * psi.log() + integral.log()
        return torch.where(z < 0, tail, torch.log1p(-tail.exp()))

    def hazard(self, z: Tensor) -> Tensor:
        return torch.exp(self.log_prob(z) - self.log_sf(z))

    def slope_radius(self, u: Tensor) -> Tensor:
        return (self.nu * torch.expm1(-2.0 / (self.nu + 1.0) * u.log())).sqrt()

    def icdf(self, u: Tensor) -> Tensor:
        """z = sqrt(nu) cot(psi), log psi from a cubic spline in log(1 - log(2 tail)), where it is nearly straight.

        The tail's own formula costs 24 powers a number and its inverse many times that, too much for every draw.
        """
        at = torch.log1p(-torch.log(2.0 * torch.minimum(u, 1.0 - u)))
        log_psi = _interpolate(at, _quantile_spline(self.nu, u.dtype, u.device), _SPLINE_STEP)
        return torch.sign(u - 0.5) * math.sqrt(self.nu) / torch.tan(log_psi.exp())


_SPLINE_STEP = 1.0 / 512


@functools.cache
def _quantile_spline(nu: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Coefficients [4, pieces] of log psi over log(1 - log(2 tail)), down to the smallest tail of a float64."""
    at = np.arange(0.0, 6.7, _SPLINE_STEP)
    log_tail = torch.from_numpy(-np.expm1(at) - LOG_2)
    low, high = torch.full_like(log_tail, -1600.0), torch.full_like(log_tail, math.log(math.pi / 2))
    for _ in range(70):  # halvings: exact to rounding
        middle = 0.5 * (low + high)
        above = StudentT(nu).log_cdf(-math.sqrt(nu) / torch.tan(middle.exp())) > log_tail
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.from_numpy(CubicSpline(at, 0.5 * (low + high)).c).to(device, dtype)


def _interpolate(at: Tensor, coefficients: Tensor, step: float) -> Tensor:
    """The cubic spline with pieces of length `step` from 0."""
    piece = (at / step).long().clamp(0, coefficients.shape[1] - 1)
    c3, c2, c1, c0 = (c[piece] for c in coefficients)
    x = at - piece * step
    return c0 + x * (c1 + x * (c2 + x * c3))


@functools.cache
def _tail_quadrature(nu: float, order: int = 24) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of int_0^1 u^(nu-1) g(u) du (Gauss-Jacobi moved from [-1, 1] to [0, 1])."""
    x, w = roots_jacobi(order, 0.0, nu - 1.0)
    return tuple(map(float, 0.5 * (x + 1.0))), tuple(map(float, np.asarray(w) * 0.5**nu))


@dataclass(frozen=True)
class Uniform(Noise):
    """f(z) = 1/2 on (-1, 1): NOT admissible, and refused by every likelihood-ratio estimator.

    Its score is 0 inside and undefined at the edges, where f jumps, so E[z s] = 0 and not 1. It is here so
    that who asks for it is told why.
    """

    admissible = False

    @property
    def fisher_information(self) -> float:
        return math.inf

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return 2.0 * _open_uniform(shape, generator, dtype) - 1.0

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.where(z.abs() < 1, z.new_tensor(-LOG_2), z.new_tensor(-torch.inf))

    def score(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    def cdf(self, z: Tensor) -> Tensor:
        return 0.5 * (z.clamp(-1, 1) + 1)

    def log_cdf(self, z: Tensor) -> Tensor:
        return self.cdf(z).log()

    def hazard(self, z: Tensor) -> Tensor:
        return torch.exp(self.log_prob(z) - self.log_sf(z))

    def slope_radius(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)  # all of its slope is the two jumps

    def icdf(self, u: Tensor) -> Tensor:
        return 2.0 * u - 1.0


def _open_uniform(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Uniform draws from the open interval (0, 1): torch.rand includes 0, whose quantile is infinite."""
    u = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    tiny = 0.5 * torch.finfo(dtype).eps
    return u.clamp_(tiny, 1.0 - tiny)
