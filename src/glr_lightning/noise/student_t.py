"""Student's t, whose tail and quantile have no closed form: a quadrature and a spline."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from glr_lightning.noise.base import LOG_2, Noise, open_uniform
from glr_lightning.validation.ranges import Interval

MIN_NU = 0.5
"""Below it draws overflow in float32."""
MAX_NU = 300
"""Above it the quadrature of the tail would need more nodes."""


@dataclass(frozen=True)
class StudentT(Noise):
    """Student's t with `nu` degrees of freedom: s(z) = (nu + 1) z / (nu + z^2), bounded in z.

    With z = sqrt(nu) cot(psi), 0 < psi < pi, the right tail is an integral of a smooth positive function,

        1 - F(z) = C psi^nu  int_0^1 u^(nu-1) sinc(psi u)^(nu-1) du,   C = Gamma((nu+1)/2) / (sqrt(pi) Gamma(nu/2)),

    with sinc(x) = sin(x)/x, which Gauss-Jacobi quadrature gives to rounding, tails included.

    Args:
        nu: degrees of freedom, from 0.5 to 300; the Gaussian is the limit of large nu.
    """

    nu: Annotated[float, Interval(ge=MIN_NU, le=MAX_NU)] = 5.0
    _tail: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]]  # of each value its own, but no field

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_tail", _tail_quadrature(self.nu))  # here, since torch.compile cannot trace scipy

    @property
    def fisher_information(self) -> float:
        """(nu + 1) / (nu + 3)."""
        return (self.nu + 1.0) / (self.nu + 3.0)

    @property
    def _log_constant(self) -> float:
        """The logarithm of C."""
        return math.lgamma((self.nu + 1) / 2) - math.lgamma(self.nu / 2) - 0.5 * math.log(math.pi)

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw by Bailey's polar method (Mathematics of Computation 62, 1994): exact for every nu."""
        radius = open_uniform(shape, generator, dtype)
        angle = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
        squared = self.nu * torch.expm1(-2.0 / self.nu * radius.log())
        return squared.sqrt() * torch.cos(2.0 * math.pi * angle)

    @property
    def peak(self) -> float:
        """C nu^(-1/2)."""
        return math.exp(self._log_constant) / math.sqrt(self.nu)

    def log_prob(self, z: Tensor) -> Tensor:
        """C nu^(-1/2) (1 + z^2 / nu)^(-(nu+1)/2), as a logarithm."""
        return math.log(self.peak) - 0.5 * (self.nu + 1) * torch.log1p(z * z / self.nu)

    def score(self, z: Tensor) -> Tensor:
        """(nu + 1) z / (nu + z^2)."""
        return (self.nu + 1.0) * z / (self.nu + z * z)

    def cdf(self, z: Tensor) -> Tensor:
        """The exponential of `log_cdf`."""
        return self.log_cdf(z).exp()

    def log_cdf(self, z: Tensor) -> Tensor:
        """Sum the quadrature for the tail on the side of z."""
        psi = torch.atan2(torch.full_like(z, math.sqrt(self.nu)), z.abs())  # in (0, pi/2]
        nodes, weights = self._tail
        integral = torch.zeros_like(z)
        for u, w in zip(nodes, weights, strict=True):
            integral += w * torch.sinc(psi * (u / math.pi)) ** (self.nu - 1.0)
        tail = self._log_constant + self.nu * psi.log() + integral.log()
        return torch.where(z < 0, tail, torch.log1p(-tail.exp()))

    def hazard(self, z: Tensor) -> Tensor:
        """f(z) / (1 - F(z)), which needs no care: both fall as powers of z."""
        return torch.exp(self.log_prob(z) - self.log_sf(z))

    def slope_radius(self, u: Tensor) -> Tensor:
        """The radius r = sqrt(nu (u^(-2/(nu+1)) - 1))."""
        return (self.nu * torch.expm1(-2.0 / (self.nu + 1.0) * u.log())).sqrt()

    def icdf(self, u: Tensor) -> Tensor:
        """Return z = sqrt(nu) cot(psi), log psi from a spline in log(1 - log(2 tail)), where it is nearly straight.

        The tail's own formula costs 24 powers a number and its inverse many times that, too much for every draw.
        """
        at = torch.log1p(-torch.log(2.0 * torch.minimum(u, 1.0 - u)))
        log_psi = _interpolate(at, _quantile_spline(self.nu, u.dtype, u.device), _SPLINE_STEP)
        return torch.sign(u - 0.5) * math.sqrt(self.nu) / torch.tan(log_psi.exp())


_SPLINE_STEP = 1.0 / 512


@functools.cache
def _quantile_spline(nu: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Coefficients [4, pieces] of log psi over log(1 - log(2 tail)), down to the smallest tail of a float64."""
    from scipy.interpolate import CubicSpline  # here, since no other noise needs it

    at = np.arange(0.0, 6.7, _SPLINE_STEP)
    log_tail = torch.from_numpy(-np.expm1(at) - LOG_2)
    low, high = torch.full_like(log_tail, -1600.0), torch.full_like(log_tail, math.log(math.pi / 2))
    for _ in range(70):  # halvings: exact to rounding
        middle = 0.5 * (low + high)
        above = StudentT(nu).log_cdf(-math.sqrt(nu) / torch.tan(middle.exp())) > log_tail
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    coefficients: Tensor = torch.from_numpy(CubicSpline(at, 0.5 * (low + high)).c).to(device, dtype)
    return coefficients


def _interpolate(at: Tensor, coefficients: Tensor, step: float) -> Tensor:
    """Evaluate the cubic spline with pieces of length `step` from 0."""
    piece = (at / step).long().clamp(0, coefficients.shape[1] - 1)
    c3, c2, c1, c0 = coefficients[:, piece]
    x = at - piece * step
    value: Tensor = c0 + x * (c1 + x * (c2 + x * c3))
    return value


@functools.cache
def _tail_quadrature(nu: float, order: int = 24) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of int_0^1 u^(nu-1) g(u) du (Gauss-Jacobi moved from [-1, 1] to [0, 1])."""
    from scipy.special import roots_jacobi

    x, w = roots_jacobi(order, 0.0, nu - 1.0)
    return tuple(map(float, 0.5 * (x + 1.0))), tuple(map(float, np.asarray(w) * 0.5**nu))
