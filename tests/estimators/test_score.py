"""The score averaged over the cell of each draw."""

import pytest
import torch
from torch import Tensor

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.estimators.score import mean_over_cell
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.values import NoisySite
from tests.checks.estimator_cases import every_density

SHIFTED = PiecewiseConstant(cuts=(0.3,), levels=(-1.0, 2.0))
STAIRS = PiecewiseConstant(cuts=(-0.5, 0.4), levels=(0.0, 1.0, 2.0))


def a_site(noise: Noise, copies: int = 4) -> NoisySite:
    """A noisy layer behind another: every copy has a pre-activation of its own, one of them on the cut."""
    generator = torch.Generator().manual_seed(0)
    v0 = 3 * torch.randn(copies, 5, 7, generator=generator)
    z = noise.sample((4, 5, 7), generator=generator)
    v0[0, 0, 0] = z[0, 0, 0] = 0.0
    return NoisySite(0, v0, v0, v0 + 0.7 * z, z)


@every_density
@pytest.mark.parametrize("activation", [HardThreshold(), Sign(), SHIFTED, STAIRS])
def test_one_mean_for_each_draw_is_the_mean_of_its_own_cell(activation: PiecewiseConstant, noise: Noise) -> None:
    at = a_site(noise)
    for mean_between in (noise.conditional_score, noise.conditional_scale_score):

        def undeclared(*bounds: Tensor | None, of: object = mean_between) -> Tensor:
            return of(*bounds)  # type: ignore[operator]

        got = mean_over_cell(mean_between, activation, at, 0.7)
        assert torch.equal(got, mean_over_cell(undeclared, activation, at, 0.7))


@pytest.mark.parametrize(("copies", "numbers"), [(4, 4 * 5 * 7), (1, 2 * 5 * 7)])
def test_no_mean_is_computed_that_no_draw_takes(copies: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws of a first layer share two means; behind it every draw has its own."""
    seen = []
    hazard = Gaussian.hazard
    monkeypatch.setattr(Gaussian, "hazard", lambda self, z: seen.append(z.numel()) or hazard(self, z))
    mean_over_cell(Gaussian().conditional_score, HardThreshold(), a_site(Gaussian(), copies), 0.7)
    assert sum(seen) == numbers


@every_density
def test_the_means_of_mirrored_cells_are_as_declared(noise: Noise) -> None:
    a, b = torch.tensor([-2.0, -0.1, 0.4]).double(), torch.tensor([-1.0, 0.3, 30.0]).double()
    for mean_between in (noise.conditional_score, noise.conditional_scale_score):
        mirror = mean_between.mirror  # type: ignore[attr-defined]
        for lower, upper in ((a, b), (a, None), (None, b)):
            mirrored = [None if bound is None else -bound for bound in (upper, lower)]
            torch.testing.assert_close(mean_between(*mirrored), mirror * mean_between(lower, upper))
