"""The likelihood ratio: closed forms, chunks of copies, the coupled score, what lowers the variance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.baselines import Clean, LeaveOneOut, NoBaseline
from glr_lightning.estimators import (
    Backprop,
    LikelihoodRatio,
    likelihood_ratio,
)
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.noise import Noise
from glr_lightning.sampling import Antithetic, Draws, Independent, Sampler, Sobol
from tests.checks.estimator_cases import (
    SCORES,
    Margin,
    X,
    Y,
    check_gradient,
    check_unbiased,
    estimate,
    every_density,
    small_network,
)
from tests.checks.likelihood_ratio import check_coupled_score, check_variance_never_larger, variance
from tests.checks.zscores import assert_mean, repetitions

# ---- closed forms ---------------------------------------------------------------------------------------------------


@every_density
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("activation", [HardThreshold(), Sign()], ids=["threshold", "sign"])
def test_a_unit_that_jumps_has_the_gradient_density_times_jump(
    noise: Noise, score: str, activation: PiecewiseConstant
) -> None:
    """E[L] = L- + P(v + sigma z > 0) (L+ - L-), so dE[L]/dv = f(v / sigma) / sigma (L+ - L-)."""
    network = nn.Sequential(nn.Linear(3, 1), activation, nn.Linear(1, 2)).double()
    network[0].weight.data = torch.tensor([[0.7, -0.4, 0.5]], dtype=torch.float64)
    network[0].bias.data.fill_(0.1)
    network[2].weight.data = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    sigma, loss = 0.6, CrossEntropy()
    v = network[0](X).detach()
    low, high = (loss(network[2](torch.full_like(v, level)), Y).detach() for level in activation.levels)
    by_v = noise.log_prob(v[:, 0] / sigma).exp() / sigma * (high - low) / len(X)
    expected = {"0.weight": (by_v @ X)[None], "0.bias": by_v.sum()[None]}

    estimator = LikelihoodRatio(noise=noise, sigma=sigma, copies=4, injection=Layerwise(), score=score)
    samples = repetitions(estimator, network, loss, X, Y, number=8000)
    check_gradient({name: samples[name] for name in expected}, expected, resolution=0.2)


@every_density
def test_the_error_of_two_logits_has_a_noise_differences_density_as_slope(noise: Noise) -> None:
    """E[L] = G(d / sigma) with d the wrong minus the right logit and G the cdf of z - z'; here G' comes from scipy."""
    network = nn.Sequential(nn.Linear(3, 2)).double()
    network[0].weight.data = torch.tensor([[0.5, -0.8, 0.3], [0.2, 0.4, -0.6]], dtype=torch.float64)
    network[0].bias.data = torch.tensor([0.1, -0.2], dtype=torch.float64)
    sigma = 0.7

    def density(z: float) -> float:
        return float(noise.log_prob(torch.tensor(z, dtype=torch.float64)).exp())

    expected = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for image, label in zip(X, Y.tolist(), strict=True):
        logits = network(image).detach()
        d = float(logits[1 - label] - logits[label]) / sigma
        slope, _ = integrate.quad(lambda z, d=d: density(z) * density(z + d), -30, 30, points=[0, -d], limit=200)
        for unit, sign in ((1 - label, 1.0), (label, -1.0)):
            expected["0.weight"][unit] += sign * slope / sigma * image / len(X)
            expected["0.bias"][unit] += sign * slope / sigma / len(X)

    samples = repetitions(LikelihoodRatio(noise=noise, sigma=sigma, copies=4), network, ZeroOne(), X, Y, number=8000)
    check_gradient(samples, expected, resolution=0.2)


@every_density
def test_a_linear_loss_has_the_gradient_that_it_has_without_noise(noise: Noise) -> None:
    network = nn.Sequential(nn.Linear(3, 2)).double()
    expected = estimate(Backprop(), network, Margin()).gradients
    for sigma in (0.1, 3.0):
        estimator = LikelihoodRatio(noise=noise, sigma=sigma, copies=4)
        check_gradient(repetitions(estimator, network, Margin(), X, Y, number=8000), expected, resolution=0.2)


def test_a_constant_loss_has_gradient_0_exactly_with_a_baseline() -> None:
    class One(ZeroOne):
        def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
            return torch.ones_like(logits[:, 0])

    network = small_network(HardThreshold())
    for baseline in (Clean(), LeaveOneOut()):
        got = estimate(LikelihoodRatio(baseline=baseline, copies=8), network, One()).gradients
        assert all(float(g.abs().max()) < 1e-15 for g in got.values())
    plain = LikelihoodRatio(baseline=NoBaseline(), sampling=Independent(), copies=4)
    samples = repetitions(plain, network, One(), X, Y, number=3000)
    for name, values in samples.items():
        assert_mean(values, 0.0, what=name)


# ---- chunks ---------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Recorder(Sampler):
    """Passes on another sampler's draws, from a bank that does not depend on how they are chunked; notes the chunks."""

    inner: Sampler
    copies: int
    chunks: Any = field(default_factory=list)  # not a list[int], whose check would make a copy of it
    bank: Any = field(default_factory=dict)

    def group_size(self, copies: int) -> int:
        return self.inner.group_size(copies)

    def part(self, groups: int) -> "Recorder":
        return replace(self, inner=self.inner.part(groups))  # the lists stay the same two

    def group(self, copies: int, device: torch.device) -> Tensor:
        return self.inner.group(copies, device)

    def __call__(
        self, noise: Noise, copies: int, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype
    ) -> Draws:
        key = tuple(shape)
        if key not in self.bank:
            self.bank[key] = noise.sample((self.copies, *shape), generator=generator, dtype=dtype)
        z, self.bank[key] = self.bank[key][:copies], self.bank[key][copies:]
        self.chunks.append(copies)
        return Draws(z, self.group(copies, z.device))


@pytest.mark.parametrize("baseline", [NoBaseline(), Clean()], ids=["none", "clean"])
def test_chunks_of_the_same_draws_add_up_to_the_same_estimate(baseline: Any) -> None:
    network = small_network_with_3_hidden_units()
    gradients = []
    for chunk in (None, 1, 4, 5, 12):
        estimator = LikelihoodRatio(copies=12, sampling=Recorder(Independent(), 12), baseline=baseline, chunk=chunk)
        gradients.append(estimate(estimator, network, CrossEntropy()).gradients)
    for other in gradients[1:]:
        for name, value in gradients[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-12)


def small_network_with_3_hidden_units() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), HardThreshold(), nn.Linear(3, 2)).double()


SPLIT = {"independent": Independent(), "antithetic": Antithetic(), "sobol": Sobol(randomisations=6)}
every_split = pytest.mark.parametrize("sampling", SPLIT.values(), ids=SPLIT.keys())


@every_split
@pytest.mark.parametrize("baseline", [NoBaseline(), Clean(), LeaveOneOut()], ids=["none", "clean", "leave_one_out"])
@pytest.mark.parametrize("chunk", [2, 3, 5, 8, 12, None])
def test_chunks_are_whole_groups_and_enough_for_the_baseline(
    sampling: Sampler, baseline: Any, chunk: int | None
) -> None:
    recorder = Recorder(sampling, 12)
    estimator = LikelihoodRatio(copies=12, sampling=recorder, baseline=baseline, chunk=chunk)
    estimate(estimator, nn.Sequential(nn.Linear(3, 2)).double(), ZeroOne())
    group_size = sampling.group_size(12)
    least = group_size * baseline.required_groups
    assert sum(recorder.chunks) == 12
    for size in recorder.chunks:
        assert size % group_size == 0
        # a remainder is spread over the chunks, so that none starves; leave-one-out may then exceed a chunk of 1 group
        assert least <= size <= max(chunk or 12, least + group_size)


def test_without_a_chunk_the_widest_layer_decides_how_many_copies_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(Independent(), 12)
    network = small_network_with_3_hidden_units()  # 3 samples x 3 units: 9 numbers a copy
    monkeypatch.setattr(likelihood_ratio, "CHUNK_ELEMENTS", 5 * 9)
    estimate(LikelihoodRatio(copies=12, sampling=recorder), network, ZeroOne())
    assert recorder.chunks == [4] * 6  # three chunks of at most 5, and two noisy layers in each


@every_split
@pytest.mark.parametrize("baseline", [Clean(), LeaveOneOut()], ids=["clean", "leave_one_out"])
@pytest.mark.parametrize("chunk", [2, 5])
def test_a_chunked_estimate_is_unbiased(sampling: Sampler, baseline: Any, chunk: int) -> None:
    estimator = LikelihoodRatio(copies=12, sampling=sampling, baseline=baseline, chunk=chunk)
    check_unbiased(estimator, HardThreshold(), ZeroOne(), number=2000, resolution=0.4)


# ---- the coupled score ----------------------------------------------------------------------------------------------


STEPS = PiecewiseConstant(cuts=(-0.3, 0.5), levels=(0.0, 0.4, 1.0))
JUMPS = {"threshold": HardThreshold(), "sign": Sign(), "three levels": STEPS}


@every_density
@pytest.mark.parametrize("activation", JUMPS.values(), ids=JUMPS.keys())
def test_the_coupled_score_is_the_mean_score_of_the_pair_of_cells(noise: Noise, activation: PiecewiseConstant) -> None:
    check_coupled_score(noise, activation)


@every_density
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_mirrored_cuts_meet_the_coupled_score_is_the_score(noise: Noise, dtype: torch.dtype) -> None:
    width = torch.cat([torch.zeros(1), torch.logspace(-12, -1.5, 200)]).to(dtype)
    for t in (0.0, 1.0, 5.0):
        z = t + 0.5 * width
        got = likelihood_ratio.coupled_score(noise, [-t - width, t + 0 * width], z)
        assert torch.isfinite(got).all()
        between = (t < z) & (z < t + width)  # in floating point
        torch.testing.assert_close(got[between], noise.score(z[between]), rtol=5e-3, atol=1e-4)
        assert between.sum() > 50


@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
def test_the_coupled_score_is_unbiased_with_three_levels(injection: Injection) -> None:
    check_unbiased(LikelihoodRatio(copies=2, score="coupled", baseline=Clean(), injection=injection), STEPS, ZeroOne())


def test_a_baseline_common_to_partners_cancels_from_the_coupled_score() -> None:
    network = small_network(STEPS)
    none, clean, left_out = (
        estimate(LikelihoodRatio(copies=8, score="coupled", baseline=baseline), network, CrossEntropy()).gradients
        for baseline in (NoBaseline(), Clean(), LeaveOneOut())
    )
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(clean[name], none[name], rtol=0, atol=1e-14)
        torch.testing.assert_close(left_out[name], none[name], rtol=0, atol=1e-14)


# ---- variance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
@every_density
def test_a_score_that_knows_less_never_has_more_variance(noise: Noise, injection: Injection) -> None:
    """Each is the conditional mean of the plain estimate of the SAME copies, given their cells.

    Between the conditional score across pairs and the other two there is no such law.
    """
    plain = LikelihoodRatio(noise=noise, copies=8, injection=injection, score="plain")
    independent = replace(plain, sampling=Independent())
    check_variance_never_larger(replace(independent, score="conditional"), independent)
    check_variance_never_larger(replace(plain, score="coupled"), plain)


def test_the_conditional_score_lowers_the_variance_below_cells() -> None:
    plain, conditional = (
        variance(LikelihoodRatio(copies=8, score=score, sampling=Independent())) for score in ("plain", "conditional")
    )
    # E[E[s | cell]^2] / E[s^2] is 2 / pi at a threshold of 0; 10 % are left to sampling error
    assert conditional["linear1"] < (2 / math.pi + 0.1) * plain["linear1"]
    assert conditional["linear2"] == pytest.approx(plain["linear2"], rel=0.1)


def test_a_baseline_and_antithetic_pairs_each_lower_the_variance() -> None:
    base = LikelihoodRatio(copies=8, sampling=Independent(), baseline=NoBaseline(), score="plain")
    published, left_out, clean, mirrored = (
        variance(estimator)
        for estimator in (
            base,
            replace(base, baseline=LeaveOneOut()),
            replace(base, baseline=Clean()),
            replace(base, sampling=Antithetic()),
        )
    )
    for layer in published:
        assert left_out[layer] < 0.3 * published[layer]
        assert clean[layer] < 0.6 * published[layer]
    # 9 in 10 of these losses are 1 either way, and cancel; above the threshold units little is odd in the noise
    assert mirrored["linear1"] < 0.3 * published["linear1"]
    assert mirrored["linear2"] < published["linear2"]


def test_the_variance_falls_as_one_over_the_copies() -> None:
    few, many = (variance(LikelihoodRatio(copies=copies, sampling=Independent())) for copies in (8, 32))
    for layer in few:
        assert many[layer] == pytest.approx(few[layer] / 4, rel=0.25)
