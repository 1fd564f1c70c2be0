"""Checks of the densities by quadrature."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import integrate
from torch import Tensor

from glr_lightning.noise import Noise
from tests.checks.groups import member, options

ALL = {name: member("noise", name) for name in options("noise")}
ADMISSIBLE = {name: noise for name, noise in ALL.items() if noise.admissible}


# (lower, upper): wide, off centre, narrow, in the tails, one-sided; None and infinity are no bound
CELLS: list[tuple[float | None, float | None]] = [
    (-1.0, 1.0), (-0.4, 2.0), (0.3, 0.31), (-1e-6, 1e-6), (2.0, 2.0 + 1e-7), (4.0, 9.0), (-9.0, -4.0), (30.0, 30.5),
    (-31.0, -30.0), (-30.0, 30.0), (None, 0.0), (None, -30.0), (None, 30.0), (0.0, None), (30.0, None), (-30.0, None),
    (-math.inf, 1.5), (-2.5, math.inf), (30.0, math.inf), (-math.inf, -30.0),
    (45.0, 46.0), (-46.0, -45.0), (100.0, None), (None, -100.0),  # where 1 - F is 0 in float64
]  # fmt: skip


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def on_floats(function: Callable[[Tensor], Tensor]) -> Callable[[float], float]:
    return lambda z: float(function(tensor(z)))


def integral(function: Callable[[float], float], lower: float, upper: float) -> float:
    """Adaptive quadrature by decades from 0, where there may be a kink, and from the ends, where f may be steep."""
    mesh = {0.0} | {sign * 10.0**k for k in range(-1, 31) for sign in (-1, 1)}
    mesh |= {
        end + sign * 10.0**k for end in (lower, upper) if math.isfinite(end) for k in (-2, -1, 0) for sign in (-1, 1)
    }
    marks = sorted({lower, upper, *(m for m in mesh if lower < m < upper)})
    pieces = itertools.pairwise(marks)
    return math.fsum(integrate.quad(function, a, b, epsabs=1e-13, epsrel=1e-11, limit=200)[0] for a, b in pieces)


def expectation(noise: Noise, function: Callable[[Tensor], Tensor]) -> float:
    return integral(on_floats(lambda z: function(z) * noise.log_prob(z).exp()), -math.inf, math.inf)


def check_score(noise: Noise) -> None:
    """s = -d log f / dz, and the moments that the likelihood-ratio identity rests on."""
    z = torch.linspace(-20, 20, 801, dtype=torch.float64) + 1e-3
    z.requires_grad_()
    (slope,) = torch.autograd.grad(noise.log_prob(z).sum(), z)
    torch.testing.assert_close(noise.score(z.detach()), -slope, rtol=1e-10, atol=1e-10)
    assert expectation(noise, noise.score) == pytest.approx(0, abs=1e-9)
    assert expectation(noise, lambda z: z * noise.score(z)) == pytest.approx(1, abs=1e-8)
    information = expectation(noise, lambda z: noise.score(z) ** 2)
    assert information == pytest.approx(noise.fisher_information, rel=1e-8)


def check_conditional_score(noise: Noise) -> None:
    """E[s | a < z < b] = int s f / int f, both integrals scaled by the largest f of the cell."""
    for lower, upper in CELLS:
        a, b = -math.inf if lower is None else lower, math.inf if upper is None else upper
        peak = float(noise.log_prob(tensor(min(max(0.0, a), b))))

        def scaled(z: Tensor, peak: float = peak) -> Tensor:
            return torch.exp(noise.log_prob(z) - peak)

        weighted = on_floats(lambda z, f=scaled: noise.score(z) * f(z))
        expected = integral(weighted, a, b) / integral(on_floats(scaled), a, b)
        got = noise.conditional_score(
            None if lower is None else tensor(lower), None if upper is None else tensor(upper)
        )
        assert float(got) == pytest.approx(expected, rel=1e-6, abs=1e-9), (lower, upper)


def check_slope_radius(noise: Noise) -> None:
    """f(r(u)) = u f(0), and with u uniform the mean of differences is the derivative of the mean:

    f(0) int_0^1 (g(r) - g(-r)) du = int s g f, for a smooth g and for one that jumps.
    """
    u = torch.linspace(1e-6, 1 - 1e-6, 101, dtype=torch.float64)
    at_0 = float(noise.log_prob(tensor(0.0)).exp())
    torch.testing.assert_close(noise.log_prob(noise.slope_radius(u)).exp(), u * at_0, rtol=1e-9, atol=1e-15)
    for g in (lambda z: torch.tanh(1.3 * z - 0.4), lambda z: (z > 0.7).to(z.dtype) + 0.2 * z.cos()):
        expected = integral(on_floats(lambda z, g=g: noise.score(z) * g(z) * noise.log_prob(z).exp()), -math.inf, 0.7)
        expected += integral(on_floats(lambda z, g=g: noise.score(z) * g(z) * noise.log_prob(z).exp()), 0.7, math.inf)
        jump = float(noise.log_prob(tensor(0.7)).exp()) / at_0  # r(u) = 0.7 there
        difference = on_floats(lambda u, g=g: g(noise.slope_radius(u)) - g(-noise.slope_radius(u)))
        got = at_0 * (integral(difference, 0.0, jump) + integral(difference, jump, 1.0))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def check_conditional_scale_score(noise: Noise) -> None:
    """E[s z - 1 | a < z < b] = int (s z - 1) f / int f, both integrals scaled by the largest f of the cell."""
    for lower, upper in CELLS:
        a, b = -math.inf if lower is None else lower, math.inf if upper is None else upper
        peak = float(noise.log_prob(tensor(min(max(0.0, a), b))))

        def scaled(z: Tensor, peak: float = peak) -> Tensor:
            return torch.exp(noise.log_prob(z) - peak)

        weighted = on_floats(lambda z, f=scaled: (noise.score(z) * z - 1) * f(z))
        expected = integral(weighted, a, b) / integral(on_floats(scaled), a, b)
        bounds = (None if bound is None else tensor(bound) for bound in (lower, upper))
        assert float(noise.conditional_scale_score(*bounds)) == pytest.approx(expected, rel=2e-6, abs=1e-8), (
            lower,
            upper,
        )
