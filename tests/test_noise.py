"""The densities: each law of `glr_lightning.noise` by quadrature, for every density in conf/noise."""

import itertools
import math

import pytest
import torch
from scipy import special, stats
from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.noise import Gaussian, Laplace, Logistic, Noise, StudentT, Uniform, require_admissible
from glr_lightning.noise.base import open_uniform
from tests.checks.noise import (
    ADMISSIBLE,
    ALL,
    check_conditional_scale_score,
    check_conditional_score,
    check_score,
    check_slope_radius,
    expectation,
    integral,
    on_floats,
    tensor,
)
from tests.checks.refusals import refused
from tests.checks.zscores import assert_distribution

# the shapes of StudentT that the YAML does not show: heavier than Cauchy, Cauchy, nearly Gaussian
DENSITIES = {**ADMISSIBLE, "student_t_0.7": StudentT(0.7), "cauchy": StudentT(1.0), "student_t_200": StudentT(200.0)}
every_density = pytest.mark.parametrize("noise", DENSITIES.values(), ids=DENSITIES.keys())

TAILS = (-1e3, -30.0, -8.0, -2.0, -0.3, 0.0, 0.7, 3.0, 30.0, 1e3)


@pytest.mark.parametrize("noise", ADMISSIBLE.values(), ids=ADMISSIBLE.keys())
def test_the_slope_of_a_density_is_drawn_through_its_radius(noise: Noise) -> None:
    check_slope_radius(noise)
    draws = noise.sample_slope((20_000,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_distribution(draws, lambda r: 1 - (noise.log_prob(r) - noise.log_prob(torch.zeros_like(r))).exp())


# ---- laws -----------------------------------------------------------------------------------------------------------


@every_density
def test_the_density_integrates_to_one(noise: Noise) -> None:
    assert expectation(noise, torch.ones_like) == pytest.approx(1, abs=1e-9)


@every_density
def test_the_score_is_the_slope_of_minus_log_f_with_its_moments(noise: Noise) -> None:
    check_score(noise)


@every_density
def test_the_density_is_even_and_the_score_odd_where_it_says_symmetric(noise: Noise) -> None:
    z = torch.linspace(0, 40, 401, dtype=torch.float64)
    assert noise.symmetric
    torch.testing.assert_close(noise.log_prob(z), noise.log_prob(-z))
    torch.testing.assert_close(noise.score(z), -noise.score(-z))
    torch.testing.assert_close(noise.log_sf(z), noise.log_cdf(-z))


@pytest.mark.parametrize(
    ("noise", "known"),
    [
        (Gaussian(), stats.norm),
        (Laplace(), stats.laplace),
        (Logistic(), stats.logistic),
        *((StudentT(nu), stats.t(nu)) for nu in (0.7, 1.0, 5.0, 200.0)),
        (Uniform(), stats.uniform(-1, 2)),
    ],
    ids=lambda value: repr(value) if isinstance(value, Noise) else "",
)
def test_a_density_is_the_one_of_its_name(noise: Noise, known: stats.rv_continuous) -> None:
    z = torch.tensor([-40.0, -3.0, -0.9, -0.2, 0.0, 0.3, 0.8, 2.0, 7.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(noise.log_prob(z).exp(), torch.from_numpy(known.pdf(z.numpy())), rtol=1e-8, atol=0)
    torch.testing.assert_close(noise.pdf(z), torch.from_numpy(known.pdf(z.numpy())), rtol=1e-8, atol=0)
    torch.testing.assert_close(noise.cdf(z), torch.from_numpy(known.cdf(z.numpy())), rtol=1e-9, atol=0)
    u = torch.tensor([1e-6, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    torch.testing.assert_close(noise.icdf(u), torch.from_numpy(known.ppf(u.numpy())), rtol=1e-9, atol=1e-9)


@every_density
def test_the_density_is_the_exponential_of_its_logarithm_far_out(noise: Noise) -> None:
    z = torch.cat([torch.linspace(-1e3, 1e3, 20_001), torch.tensor([math.inf, -math.inf, 0.0])])
    for dtype, rtol in ((torch.float32, 2e-5), (torch.float64, 1e-12)):  # log_prob is rounded before its exponential
        got, expected = noise.pdf(z.to(dtype)), noise.log_prob(z.to(dtype)).exp()
        torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-34 if dtype == torch.float32 else 1e-300)
        assert not ((got > 0) & (got < torch.finfo(dtype).tiny)).any()  # subnormal
    assert noise.pdf(torch.tensor(math.nan)).isnan()
    assert float(noise.pdf(tensor(0.0))) == pytest.approx(noise.peak, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_normal_hazard_is_accurate_to_rounding_in_both_tails(dtype: torch.dtype) -> None:
    """Relative to the hazard: exp(-z^2 / 2) turns a rounding of z into z^2 of them, here and in the reference."""
    z = torch.cat([torch.linspace(-10, 40, 500_001), torch.logspace(1, 30, 1000)]).to(dtype)
    exact = torch.from_numpy(math.sqrt(2 / math.pi) / special.erfcx(z.double().numpy() / math.sqrt(2)))
    error = (Gaussian().hazard(z).double() / exact - 1).abs()
    assert (error <= torch.finfo(dtype).eps * (8 + 2 * z.double() ** 2)).all()
    middle = (z > -2) & (z < 6)
    assert error[middle].max() < 12 * torch.finfo(dtype).eps


def test_the_normal_hazard_at_infinity_is_its_limit_and_nan_stays() -> None:
    got = Gaussian().hazard(torch.tensor([-math.inf, -0.0, math.inf, math.nan]))
    assert got[:3].tolist() == [0.0, pytest.approx(math.sqrt(2 / math.pi)), math.inf]
    assert got[3].isnan()
    far = Gaussian().hazard(torch.linspace(-40, 0, 4001))
    assert not ((far > 0) & (far < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laplace_draws_are_the_quantiles_of_the_generators_uniform_draws(dtype: torch.dtype) -> None:
    first, again = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = Laplace().icdf(open_uniform((300, 70), first, dtype))
    assert torch.equal(Laplace().sample((300, 70), generator=again, dtype=dtype), expected)


def test_the_outermost_laplace_draws_are_mirrored_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-24])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends.clone())
    draws = Laplace().sample((5,), generator=torch.Generator()).tolist()
    assert draws == pytest.approx([-23 * math.log(2), -math.log(2), 0.0, math.log(2), 23 * math.log(2)])


@every_density
def test_log_cdf_and_log_sf_are_accurate_relative_to_the_tail(noise: Noise) -> None:
    for z in TAILS:
        edge = -abs(z)
        scale = 1 / max(abs(float(noise.score(tensor(edge)))), 1e-3)  # how fast f falls there
        at_edge = float(noise.log_prob(tensor(edge)))
        relative = integral(
            on_floats(lambda t, e=edge, s=scale, p=at_edge: torch.exp(noise.log_prob(e - s * t) - p)), 0.0, math.inf
        )
        tail = at_edge + math.log(scale * relative)
        body = math.log1p(-math.exp(tail))
        low, high = (tail, body) if z <= 0 else (body, tail)
        assert float(noise.log_cdf(tensor(z))) == pytest.approx(low, abs=1e-8)
        assert float(noise.log_sf(tensor(z))) == pytest.approx(high, abs=1e-8)


@every_density
def test_icdf_is_the_inverse_of_cdf(noise: Noise) -> None:
    u = torch.cat([torch.logspace(-12, -1, 40, dtype=torch.float64), torch.linspace(0.1, 1 - 1e-9, 60).double()])
    torch.testing.assert_close(noise.cdf(noise.icdf(u)), u, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [*DENSITIES.values(), ALL["uniform"]], ids=[*DENSITIES, "uniform"])
def test_samples_follow_the_cdf(noise: Noise, dtype: torch.dtype) -> None:
    # 40,000 draws show a shift of the cdf by 1.4 %
    z = noise.sample((200, 200), generator=torch.Generator().manual_seed(3), dtype=dtype)
    assert z.dtype == dtype
    assert z.shape == (200, 200)
    assert torch.isfinite(z).all()
    assert_distribution(z, noise.cdf)


@every_density
def test_samples_come_from_the_generator_alone(noise: Noise) -> None:
    before = torch.get_rng_state()
    first, again, other = (noise.sample((50,), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("noise", ADMISSIBLE.values(), ids=ADMISSIBLE.keys())
def test_every_function_of_a_density_compiles_without_a_break(noise: Noise) -> None:
    z, u = torch.linspace(-6, 6, 24), torch.linspace(0.01, 0.99, 24)

    def all_of_them(z: Tensor, u: Tensor) -> list[Tensor]:
        elementwise = [noise.log_prob, noise.pdf, noise.score, noise.cdf, noise.log_cdf, noise.log_sf, noise.hazard]
        between = [noise.conditional_score, noise.conditional_scale_score]
        cells = [mean(*cell) for mean in between for cell in ((z, z + 1), (None, z), (z, None))]
        return [*(function(z) for function in elementwise), *cells, noise.slope_radius(u)]

    compiled = torch.compile(all_of_them, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z, u), all_of_them(z, u), rtol=0, atol=0)


# ---- the conditional score ------------------------------------------------------------------------------------------


@every_density
def test_conditional_score_is_the_mean_score_of_the_cell(noise: Noise) -> None:
    check_conditional_score(noise)


@every_density
def test_conditional_scale_score_is_the_mean_of_s_z_minus_1_in_the_cell(noise: Noise) -> None:
    check_conditional_scale_score(noise)


@every_density
def test_conditional_scale_scores_average_to_0_over_the_cells(noise: Noise) -> None:
    """Law 1, E[s z] = 1, by the tower property; and without a bound that bounds, the mean is 0."""
    for cuts in ([0.0], [0.7], [-3.0, -0.1, 2.0], torch.linspace(-4, 4, 33).tolist()):
        edges = [None, *map(tensor, cuts), None]
        means = torch.stack([noise.conditional_scale_score(a, b) for a, b in itertools.pairwise(edges)])
        below = [tensor(0.0), *noise.cdf(torch.tensor(cuts, dtype=torch.float64)), tensor(1.0)]
        assert float(torch.stack(below).diff() @ means) == pytest.approx(0, abs=1e-7)
    everything = noise.conditional_scale_score(tensor(-math.inf), tensor(math.inf))
    assert float(everything) == 0
    with pytest.raises(ValueError, match="needs a bound"):
        noise.conditional_scale_score(None, None)


@every_density
def test_in_float32_the_one_sided_scale_score_is_finite_to_a_thousand_sigma(noise: Noise) -> None:
    t = torch.cat([torch.linspace(-1e3, 1e3, 2001), torch.linspace(-40, 40, 161)])
    for got in (noise.conditional_scale_score(t, None), noise.conditional_scale_score(None, t)):
        assert torch.isfinite(got).all()
    near = t[t.abs() <= 30]
    exact = noise.conditional_scale_score(None, near.double())
    torch.testing.assert_close(noise.conditional_scale_score(None, near).double(), exact, rtol=1e-3, atol=1e-5)


@every_density
def test_the_conditional_score_of_a_point_is_the_score(noise: Noise) -> None:
    z = torch.tensor([-30.0, -5.0, -0.5, 0.25, 3.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(noise.conditional_score(z - 1e-5, z + 1e-5), noise.score(z), rtol=1e-5, atol=1e-5)


@every_density
def test_conditional_scores_average_to_0_with_less_variance(noise: Noise) -> None:
    """The tower property: E[E[s | cell]] = E[s] = 0 and Var E[s | cell] < Var s."""
    for cuts in ([0.0], [0.7], [-3.0, -0.1, 2.0], [-30.0, 5.0, 5.5], torch.linspace(-4, 4, 33).tolist()):
        edges = [None, *map(tensor, cuts), None]
        means = torch.stack([noise.conditional_score(a, b) for a, b in itertools.pairwise(edges)])
        below = [tensor(0.0), *noise.cdf(torch.tensor(cuts, dtype=torch.float64)), tensor(1.0)]
        probability = torch.stack(below).diff()
        assert float(probability @ means) == pytest.approx(0, abs=1e-7)
        variance = float(probability @ means**2)
        assert 0 < variance <= noise.fisher_information * (1 + 1e-12)
        # strictly less unless the score is constant in every cell, as Laplace's is for cells on one side of 0
        assert variance < noise.fisher_information * (1 - 1e-9) or (isinstance(noise, Laplace) and 0.0 in cuts)


@every_density
def test_bounds_broadcast_and_infinite_entries_are_no_bound(noise: Noise) -> None:
    lower = torch.tensor([[-math.inf], [-1.0], [0.5]], dtype=torch.float64)
    upper = torch.tensor([1.0, math.inf], dtype=torch.float64)
    got = noise.conditional_score(lower, upper)
    assert got.shape == (3, 2)
    torch.testing.assert_close(got[0, 0], noise.conditional_score(None, upper[0]))
    torch.testing.assert_close(got[2, 1], noise.conditional_score(lower[2, 0], None))
    assert float(got[0, 1]) == 0


def test_a_cell_without_any_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a bound"):
        Gaussian().conditional_score(None, None)


@every_density
def test_in_float32_the_one_sided_score_is_finite_and_accurate(noise: Noise) -> None:
    t = torch.cat([torch.linspace(-1e3, 1e3, 2001), torch.linspace(-40, 40, 161)])
    for got in (noise.conditional_score(t, None), noise.conditional_score(None, t)):
        assert got.dtype == torch.float32
        assert torch.isfinite(got).all()
    near = t[t.abs() <= 30]
    exact = noise.conditional_score(None, near.double())
    torch.testing.assert_close(noise.conditional_score(None, near).double(), exact, rtol=1e-3, atol=1e-6)


# ---- what is not admissible -----------------------------------------------------------------------------------------


def test_there_are_densities_to_test_and_one_to_refuse() -> None:
    assert {"gaussian", "laplace", "logistic", "student_t"} <= set(ADMISSIBLE)
    assert set(ALL) - set(ADMISSIBLE) == {"uniform"}


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_density_with_edges_is_refused(name: str) -> None:
    noise = ALL[name]
    if noise.admissible:
        require_admissible(noise)
        return
    with refused("noise", "only if it is positive and absolutely continuous on the whole line"):
        require_admissible(noise)


def test_uniform_noise_breaks_the_law_that_refuses_it() -> None:
    """E[z s(z)] is 0 and not 1: the estimate would miss all the mass that crosses the edges."""
    noise = Uniform()
    z = noise.sample((1000,), generator=torch.Generator().manual_seed(0))
    assert float((z * noise.score(z)).mean()) == 0
    assert noise.fisher_information == math.inf


@pytest.mark.parametrize("nu", [0, -1, math.inf, math.nan, "5", None, True])
def test_degrees_of_freedom_must_be_a_positive_number(nu: object) -> None:
    with refused("nu"):
        StudentT(nu)


# right and not yet so; `strict` turns it red as soon as it holds: then drop the mark
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("nu", [1000.0, 5000.0])
def test_degrees_of_freedom_are_refused_or_accurate(nu: float) -> None:
    """The tail quadrature has 24 nodes; beyond nu = 300 it misses, and beyond 2,000 its weights overflow."""
    try:
        noise = StudentT(nu)
    except ConfigurationError:
        return
    z = torch.tensor([-5.0, -1.0, -0.01], dtype=torch.float64)
    known = torch.from_numpy(stats.norm.cdf(z.numpy()))  # within 1e-3 of Student's there, relative
    torch.testing.assert_close(noise.cdf(z), known, rtol=0.02, atol=0)
    below, above = noise.cdf(torch.tensor(-1e-9).double()), noise.cdf(torch.tensor(1e-9).double())
    assert float(above - below) == pytest.approx(2e-9 * float(noise.log_prob(torch.zeros(1).double()).exp()), rel=1e-3)
