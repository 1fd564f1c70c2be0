"""What every noise density offers, and what follows from a density's own formulas."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import Checked

LOG_2 = math.log(2.0)

Method = TypeVar("Method", bound=Callable[..., Tensor])


def mirrored(sign: float) -> Callable[[Method], Method]:
    """Declare of a mean over cells that the mean over (-b, -a) is `sign` times that over (a, b), as `mirror`."""

    def declare(method: Method) -> Method:
        method.mirror = sign  # type: ignore[attr-defined]
        return method

    return declare


class Noise(Checked, ABC):
    """A density that is symmetric about 0 and given on the whole line in standardised form.

    Every method is elementwise and works in any floating dtype and on any device. None needs to be differentiable.
    """

    admissible: ClassVar[bool] = True
    """Whether the density is positive and absolutely continuous on the whole line."""
    symmetric: ClassVar[bool] = True
    """Whether f(-z) = f(z). Antithetic sampling needs it; `log_sf` uses it."""

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
        """Draw independent numbers of the given shape, on the generator's device."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """The log density, log f(z)."""

    def pdf(self, z: Tensor) -> Tensor:
        """The density f(z)."""
        return exp_or_0(self.log_prob(z))

    @property
    def peak(self) -> float:
        """The density at 0, f(0)."""
        return float(self.pdf(torch.zeros((), dtype=torch.float64)))

    @abstractmethod
    def score(self, z: Tensor) -> Tensor:
        """The score, s(z) = -d log f(z) / dz."""

    @abstractmethod
    def cdf(self, z: Tensor) -> Tensor:
        """The distribution function F(z)."""

    @abstractmethod
    def log_cdf(self, z: Tensor) -> Tensor:
        """The logarithm of F(z), accurate relative to F(z) in the left tail."""

    @abstractmethod
    def hazard(self, z: Tensor) -> Tensor:
        """The hazard f(z) / (1 - F(z)), which is the mean score above z, without cancellation of two logarithms."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """The quantile F^-1(u), 0 < u < 1."""

    @abstractmethod
    def slope_radius(self, u: Tensor) -> Tensor:
        """The r >= 0 with f(r) = u f(0), 0 < u < 1, for a density that falls on both sides of 0."""

    def sample_slope(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw independent r > 0 with density |f'(r)| / f(0), on the generator's device.

        With them the derivative of an expectation is a mean of differences (measure-valued derivative; Pflug 1989,
        Heidergott & Vazquez-Abad 2008), for any g that is integrable under f':

            d/dv E[g(v + z)] = E[s(z) g(v + z)] = f(0) E[g(v + r) - g(v - r)]
        """
        return self.slope_radius(open_uniform(shape, generator, dtype))

    def log_sf(self, z: Tensor) -> Tensor:
        """The logarithm of 1 - F(z), accurate relative to 1 - F(z) in the right tail."""
        return self.log_cdf(-z)

    @mirrored(-1.0)
    def conditional_score(self, lower: Tensor | None, upper: Tensor | None) -> Tensor:
        """Mean score of a draw known to lie between two bounds (Rao-Blackwell).

            E[s(z) | lower < z < upper] = (f(lower) - f(upper)) / (F(upper) - F(lower))

        Bounds broadcast, lower < upper; None or an infinite entry is no bound, at least one is a tensor. Numerator and
        denominator are taken in log-space and on the side of the origin where nothing cancels, so far tails are exact
        to rounding.

        Raises:
            ValueError: neither bound is given.
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
        log_mass = log_difference(self.log_cdf(right), self.log_cdf(left))
        high, low = torch.maximum(log_left, log_right), torch.minimum(log_left, log_right)
        size = torch.exp(log_difference(high, low) - log_mass)
        return torch.where(mirror ^ (log_left < log_right), -size, size)

    @mirrored(1.0)
    def conditional_scale_score(self, lower: Tensor | None, upper: Tensor | None) -> Tensor:
        """Mean of s(z) z - 1, the score of log sigma, of a draw known to lie between two bounds.

            E[s(z) z - 1 | lower < z < upper] = (lower f(lower) - upper f(upper)) / (F(upper) - F(lower))

        since s f = -f' and so int s z f = -[z f] + int f. Bounds, tails and errors are as in `conditional_score`.
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
        log_mass = log_difference(self.log_cdf(right), self.log_cdf(left))
        log_left, log_right = self._log_moment(left), self._log_moment(right)
        high, low = torch.maximum(log_left, log_right), torch.minimum(log_left, log_right)
        difference = torch.exp(log_difference(high, low) - log_mass)
        same_side = torch.where(log_left < log_right, difference, -difference)
        around_0 = -torch.exp(log_left - log_mass) - torch.exp(log_right - log_mass)
        return torch.where(right > 0, around_0, same_side)

    def _log_moment(self, z: Tensor) -> Tensor:
        """The logarithm of |z| f(z), which is -inf at 0 and at infinity."""
        return torch.where(z.isinf(), -torch.inf, z.abs().log() + self.log_prob(z))


def log_difference(high: Tensor, low: Tensor) -> Tensor:
    """Return log(exp(high) - exp(low)) for high >= low; low may be -inf, equal arguments give -inf."""
    gap = torch.where(low == -torch.inf, torch.full_like(low, -torch.inf), low - high)
    # log(1 - e^gap): two branches, each without cancellation (Maechler 2012)
    return high + torch.where(gap > -LOG_2, torch.log(-torch.expm1(gap)), torch.log1p(-torch.exp(gap)))


def exp_or_0(exponent: Tensor) -> Tensor:
    """exp(x), and 0 below x = -80 (float64: -700).

    Somewhat further the result is subnormal, and a CPU takes 10 to 30 times as long for exp and what is made of it.
    """
    least = 700.0 if exponent.dtype == torch.float64 else 80.0
    return nn.functional.threshold(exponent.clamp(min=-least).exp_(), math.exp(1e-3 - least), 0.0)


def require_admissible(noise: Noise) -> None:
    """Refuse a density for which the likelihood-ratio identity is false.

    Raises:
        ConfigurationError: the density has a bounded support or a jump.
    """
    if not noise.admissible:
        raise ConfigurationError(
            f"{type(noise).__name__} noise cannot be used: a density is admissible only if it is positive and "
            "absolutely continuous on the whole line, else the likelihood-ratio estimate misses the mass that "
            "crosses the edges of its support. Use noise=gaussian, laplace, logistic or student_t.",
            option="noise",
        )


def open_uniform(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw uniformly from the open interval (0, 1): torch.rand includes 0, whose quantile is infinite."""
    u = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    tiny = 0.5 * torch.finfo(dtype).eps
    return u.clamp_(tiny, 1.0 - tiny)
