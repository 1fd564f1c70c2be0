"""The estimators: the mean of every combination in conf/ is the gradient it says it estimates.

Expected gradients come from tests/oracles.py and from closed forms, samples from `repetitions`: thousands of
independent estimates in one call. Everything statistical is in float64; tests/zscores.py states the convention.
"""

import copy
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.baselines import Clean, LeaveOneOut, NoBaseline
from glr_lightning.config import build, compose
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import (
    Backprop,
    Estimator,
    EvolutionStrategies,
    ForwardGradient,
    Hybrid,
    LikelihoodRatio,
    LocalExpectation,
    NoisyBackprop,
    StraightThrough,
    likelihood_ratio,
)
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.networks import mlp
from glr_lightning.noise import Gaussian, Noise, Uniform
from glr_lightning.sampling import Antithetic, Draws, Independent, Sampler, Sobol
from groups import member, options
from oracles import (
    CELLS,
    TOLERANCE,
    WEIGHTS_TOLERANCE,
    counted_loss,
    error_probability,
    gradient_under_noise_on_weights,
    smoothed_gradient,
)
from zscores import MAPPED, assert_gradient, assert_mean, repetitions

SCORES = ("plain", "conditional", "coupled", "auto")
SIGMA = (0.8, 1.3)  # a scale of its own for each layer, so that taking the wrong one shows
REPETITIONS, RESOLUTION = 3000, 0.5  # in every combination a gradient that is half as long or half as long again shows

X = torch.tensor([[0.9, 0.1, -0.4], [-0.3, 0.8, 0.5], [0.2, -0.7, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 0])

NOISES = {name: member("noise", name) for name in options("noise")}
ADMISSIBLE = {name: noise for name, noise in NOISES.items() if noise.admissible}
every_density = pytest.mark.parametrize("noise", ADMISSIBLE.values(), ids=ADMISSIBLE.keys())


def small_network(activation: nn.Module) -> nn.Sequential:
    """3-2-2, with weights for which no layer's gradient vanishes under any loss, activation or density."""
    network = nn.Sequential(nn.Linear(3, 2), activation, nn.Linear(2, 2)).double()
    weights = ([[1.0, -0.6, 0.3], [-0.5, 0.8, 0.7]], [0.2, -0.1], [[1.1, -0.7], [-0.8, 1.3]], [0.1, -0.05])
    for parameter, values in zip(network.parameters(), weights, strict=True):
        parameter.data = torch.tensor(values, dtype=torch.float64)
    return network


def small_convnet() -> nn.Sequential:
    """Stride 2 over 5 x 5 pixels, 2 channels: 8 threshold units, whose 256 patterns the oracle counts."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), HardThreshold())
    network = nn.Sequential(features, nn.Flatten(), nn.Linear(8, 2)).double()
    network[2].weight.data.mul_(3.0)
    return network


IMAGES = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([1, 0])


def estimate(estimator: Estimator, network: nn.Module, loss: Loss, x: Tensor = X, y: Tensor = Y, seed: int = 0) -> Any:
    return estimator.estimate(network, loss, x, y, generator=torch.Generator(x.device).manual_seed(seed))


def flat(gradient: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in names])


# ---- checks that the planted defects must turn red ------------------------------------------------------------------


def check_gradient(
    samples: dict[str, Tensor], expected: dict[str, Tensor], resolution: float, tolerance: float = 0.0, what: str = ""
) -> None:
    """Layer by layer, because one layer's noise would hide another's error."""
    assert samples.keys() == expected.keys()
    layers = {name.rsplit(".", 1)[0] for name in expected}
    for layer in sorted(layers):
        names = [name for name in expected if name.rsplit(".", 1)[0] == layer]
        got = torch.cat([samples[name].flatten(1) for name in names], dim=1)
        target = flat(expected, names)
        assert_gradient(got, target, tolerance=tolerance, resolution=resolution, what=f"{what} layer {layer}")


def reference(
    network: nn.Sequential, noise: Noise, injection: Injection, loss: Loss, sigma: Sequence[float] = SIGMA
) -> dict[str, Tensor]:
    """Per pass of the injection the gradient of E[L] under noise at that pass's layers alone."""
    gradient: dict[str, Tensor] = {}
    for sites in injection.passes(2):
        scales = [sigma[site] if site in sites else 0.0 for site in range(2)]
        gradient |= smoothed_gradient(network, noise, scales, loss, X, Y)
    return gradient


def check_unbiased(
    estimator: LikelihoodRatio,
    activation: nn.Module,
    loss: Loss,
    *,
    number: int = REPETITIONS,
    resolution: float = RESOLUTION,
) -> None:
    """The mean estimate on the small network is the gradient of what the injection smooths."""
    estimator = replace(estimator, sigma=SIGMA)
    network = small_network(activation)
    samples = repetitions(estimator, network, loss, X, Y, number=number)
    check_gradient(samples, reference(network, estimator.noise, estimator.injection, loss), resolution, TOLERANCE)


def check_unbiased_with_stride(injection: Injection, *, number: int = 4000, resolution: float = 0.3) -> None:
    """The same through a strided convolution, against the sum over all patterns of its threshold units."""
    network = small_convnet()
    estimator = LikelihoodRatio(sigma=(0.3, 0.5), copies=4, injection=injection)
    samples = repetitions(estimator, network, ZeroOne(), IMAGES, LABELS, number=number)
    check_gradient(samples, enumerated(network, estimator, IMAGES, LABELS), resolution)


def enumerated(network: nn.Sequential, estimator: LikelihoodRatio, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of the exact 0-1 error of a threshold chain, pass by pass of the injection."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert isinstance(estimator.sigma, tuple)
    gradient: dict[str, Tensor] = {}
    for sites in estimator.injection.passes(len(layers)):
        scales = [s if site in sites else 0.0 for site, s in enumerate(estimator.sigma)]
        names = [f"{layers[site]}.{name}" for site in sites for name in ("weight", "bias")]
        error = error_probability(network, scales, x, y)
        parameters = [network.get_parameter(name) for name in names]
        gradient |= dict(zip(names, torch.autograd.grad(error, parameters), strict=True))
    return gradient


# ---- closed forms ---------------------------------------------------------------------------------------------------


@every_density
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("activation", [HardThreshold(), Sign()], ids=["threshold", "sign"])
def test_one_unit_that_jumps_has_the_gradient_f_of_t_over_sigma_times_the_jump(
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
def test_the_error_of_two_logits_has_the_density_of_a_noise_difference_as_its_gradient(noise: Noise) -> None:
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


@final
class Margin(Loss):
    """L = wrong logit - right logit of two."""

    differentiable = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        right = logits.gather(1, labels[:, None]).squeeze(1)
        return logits.sum(1) - 2 * right


@every_density
def test_a_linear_loss_of_a_linear_layer_has_the_gradient_that_it_has_without_noise(noise: Noise) -> None:
    network = nn.Sequential(nn.Linear(3, 2)).double()
    expected = estimate(Backprop(), network, Margin()).gradients
    for sigma in (0.1, 3.0):
        estimator = LikelihoodRatio(noise=noise, sigma=sigma, copies=4)
        check_gradient(repetitions(estimator, network, Margin(), X, Y, number=8000), expected, resolution=0.2)


def test_a_constant_loss_has_the_gradient_0_exactly_once_a_baseline_takes_it_away() -> None:
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


# ---- the family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", options("loss"))
@pytest.mark.parametrize("activation", options("activation"))
@pytest.mark.parametrize("injection", options("injection"))
@pytest.mark.parametrize("noise", options("noise"))
def test_every_combination_of_the_configuration_is_unbiased_or_refused(
    noise: str, injection: str, activation: str, loss: str
) -> None:
    """All samplers x baselines x scores for one objective; the refused ones say what to do instead."""
    network, of_loss = small_network(member("activation", activation)), member("loss", loss)
    jumps = isinstance(network[1], PiecewiseConstant)
    admissible = NOISES[noise].admissible
    expected = reference(network, NOISES[noise], member("injection", injection), of_loss) if admissible else {}
    for sampling, baseline, score in itertools.product(options("sampling"), options("baseline"), SCORES):
        what = f"noise={noise} injection={injection} {sampling=!s} {baseline=!s} {score=!s} {activation=!s} {loss=!s}"

        def make(sampling: str = sampling, baseline: str = baseline, score: str = score) -> LikelihoodRatio:
            parts = {"noise": noise, "sampling": sampling, "baseline": baseline, "injection": injection}
            built = {group: member(group, option) for group, option in parts.items()}
            return LikelihoodRatio(**built, sigma=SIGMA, copies=4, score=score)

        if not admissible:
            with pytest.raises(ConfigurationError, match=r"Use noise=gaussian, laplace, logistic or student_t\."):
                make()
        elif score == "coupled" and not member("sampling", sampling).mirrored:
            with pytest.raises(ConfigurationError, match=r"use sampling=antithetic, or estimator\.score=auto\."):
                make()
        elif score in {"conditional", "coupled"} and not jumps:
            for refuse in (lambda m=make: m().check(network, of_loss), lambda m=make: estimate(m(), network, of_loss)):
                with pytest.raises(ConfigurationError, match=r"Use estimator\.score=plain or auto\."):
                    refuse()
        elif score == "auto":  # another name, so bit for bit the same
            named, auto = (
                estimate(make(score=s), network, of_loss) for s in ("conditional" if jumps else "plain", score)
            )
            assert all(torch.equal(named.gradients[name], auto.gradients[name]) for name in expected), what
        else:
            samples = repetitions(make(), network, of_loss, X, Y, number=REPETITIONS)
            check_gradient(samples, expected, RESOLUTION, TOLERANCE, what)


@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
@pytest.mark.parametrize("loss", [CrossEntropy(), ZeroOne()], ids=["cross_entropy", "zero_one"])
def test_the_defaults_are_unbiased_to_a_tenth(injection: Injection, loss: Loss) -> None:
    # 60,000 repetitions of 4 copies: the sharpest look, at what is used most
    estimator = LikelihoodRatio(copies=4, injection=injection)
    check_unbiased(estimator, HardThreshold(), loss, number=60_000, resolution=0.1)


@every_density
def test_the_oracle_does_not_depend_on_its_cells(noise: Noise) -> None:
    for activation, loss, sigma in (
        (nn.ReLU(), CrossEntropy(), SIGMA),
        (nn.ReLU(), ZeroOne(), (SIGMA[0], 0.0)),
        (nn.Sigmoid(), ZeroOne(), (SIGMA[0], 0.0)),
    ):
        network = small_network(activation)
        coarse, fine = (smoothed_gradient(network, noise, sigma, loss, X, Y, n) for n in (CELLS, 2 * CELLS))
        for name in coarse:
            torch.testing.assert_close(coarse[name], fine[name], rtol=0, atol=TOLERANCE)


def test_the_two_oracles_agree() -> None:
    network = small_network(HardThreshold())
    counted = torch.autograd.grad(error_probability(network, SIGMA, X, Y), list(network.parameters()))
    by_cells = smoothed_gradient(network, Gaussian(), SIGMA, ZeroOne(), X, Y)
    for (name, _), value in zip(network.named_parameters(), counted, strict=True):
        torch.testing.assert_close(by_cells[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
def test_a_strided_convolution_is_unbiased(injection: Injection) -> None:
    check_unbiased_with_stride(injection)


@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
def test_three_layers_are_unbiased_and_named_as_the_network_names_them(injection: Injection) -> None:
    torch.manual_seed(1)
    network = nn.Sequential()
    network.add_module("body", nn.Sequential(nn.Linear(3, 2), HardThreshold(), nn.Sequential(nn.Linear(2, 3))))
    network.add_module("on_top", HardThreshold())
    network.add_module("logits", nn.Linear(3, 2))
    for parameter in network.double().parameters():
        parameter.data.mul_(2.0)
    estimator = LikelihoodRatio(sigma=(0.5, 0.7, 0.9), copies=4, injection=injection)
    samples = repetitions(estimator, network, ZeroOne(), X, Y, number=12_000)
    assert samples.keys() == dict(network.named_parameters()).keys()
    check_gradient(samples, enumerated(network, estimator, X, Y), resolution=0.4)


@final
@dataclass(frozen=True)
class Recorder(Sampler):
    """Passes on another sampler's draws, from a bank that does not depend on how they are chunked; notes the chunks."""

    inner: Sampler
    copies: int
    chunks: list[int] = field(default_factory=list)
    bank: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

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
    for chunk in (None, 1, 4, 5, 100):
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
@pytest.mark.parametrize("chunk", [2, 3, 5, 8, 12, 99, None])
def test_chunks_are_whole_groups_no_larger_than_asked_and_enough_for_the_baseline(
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


def check_coupled_score(noise: Noise, activation: PiecewiseConstant) -> None:
    """The mean of s over all z that put v0 + sigma z and v0 - sigma z into the same two cells, by quadrature."""

    def density(z: float) -> float:
        return float(noise.log_prob(torch.tensor(z, dtype=torch.float64)).exp())

    def scored(z: float) -> float:
        return density(z) * float(noise.score(torch.tensor(z, dtype=torch.float64)))

    sigma = 0.7
    for v in (-2.0, -0.3, 0.0, 0.1, 0.5, 1.3):  # at 0.1 the mirrored cuts of three levels meet
        cuts = [(cut - v) / sigma for cut in activation.cuts]
        edges = sorted({0.0, *cuts, *(-cut for cut in cuts)})  # 0, where a score may jump
        pieces = [(a, b) for a, b in itertools.pairwise((-math.inf, *edges, math.inf)) if b - a > 1e-9]
        z = torch.tensor([0.5 * (max(a, edges[0] - 2) + min(b, edges[-1] + 2)) for a, b in pieces], dtype=torch.float64)
        cells = list(zip(activation(v + sigma * z).tolist(), activation(v - sigma * z).tolist(), strict=True))
        got = likelihood_ratio.coupled_score(noise, list(torch.tensor(cuts, dtype=torch.float64)[:, None]), z)
        for score, cell in zip(got.tolist(), cells, strict=True):
            same = [piece for piece, other in zip(pieces, cells, strict=True) if other == cell]
            mass, total = (sum(integrate.quad(f, a, b)[0] for a, b in same) for f in (density, scored))
            assert score == pytest.approx(total / mass, rel=1e-6, abs=1e-9), (v, cell)


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


def test_a_baseline_common_to_the_partners_cancels_from_the_coupled_estimate() -> None:
    network = small_network(STEPS)
    none, clean, left_out = (
        estimate(LikelihoodRatio(copies=8, score="coupled", baseline=baseline), network, CrossEntropy()).gradients
        for baseline in (NoBaseline(), Clean(), LeaveOneOut())
    )
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(clean[name], none[name], rtol=0, atol=1e-14)
        torch.testing.assert_close(left_out[name], none[name], rtol=0, atol=1e-14)


# ---- variance -------------------------------------------------------------------------------------------------------


def variance(estimator: LikelihoodRatio) -> dict[str, float]:
    """Per layer, of a 196-20-10 threshold network on a batch of 8, by 200 repetitions."""
    torch.manual_seed(0)
    network = mlp(image_shape=(1, 14, 14), classes=10, hidden=[20], activation=HardThreshold())
    x, y = torch.rand(8, 1, 14, 14), torch.arange(8)
    samples = repetitions(estimator, network, ZeroOne(), x, y, number=200)
    return {layer: float(samples[f"{layer}.weight"].var(0).sum()) for layer in ("linear1", "linear2")}


def check_variance_never_larger(coarser: LikelihoodRatio, finer: LikelihoodRatio) -> None:
    """Rao-Blackwell, layer by layer; 200 repetitions know a sum over hundreds of weights to a few percent."""
    less, more = variance(coarser), variance(finer)
    for layer in more:
        assert less[layer] <= 1.1 * more[layer], f"the variance of {layer} was expected not to rise"


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


def test_the_conditional_score_lowers_the_variance_where_an_activation_with_cells_follows() -> None:
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


# ---- backpropagation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.ReLU()], ids=["sigmoid", "tanh", "relu"])
def test_backprop_is_autograd_of_the_mean_loss(activation: nn.Module) -> None:
    network = small_network(activation)
    got = estimate(Backprop(), network, CrossEntropy())
    mean_loss = nn.functional.cross_entropy(network(X), Y)
    expected = torch.autograd.grad(mean_loss, list(network.parameters()))
    for (name, _), value in zip(network.named_parameters(), expected, strict=True):
        torch.testing.assert_close(got.gradients[name], value, rtol=1e-12, atol=1e-12)
    assert float(got.loss) == pytest.approx(mean_loss.item())
    assert torch.equal(got.logits, network(X))


@every_density
@pytest.mark.parametrize("sampling", [Independent(), Antithetic()], ids=["independent", "antithetic"])
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.ReLU()], ids=["sigmoid", "tanh", "relu"])
def test_noisy_backprop_is_unbiased_for_the_joint_objective(
    noise: Noise, sampling: Sampler, activation: nn.Module
) -> None:
    """Two methods that share no formula meet at one number: the path derivative here, the cells of the oracle."""
    network, loss = small_network(activation), CrossEntropy()
    estimator = NoisyBackprop(noise=noise, sigma=SIGMA, copies=50, sampling=sampling)
    samples = repetitions(estimator, network, loss, X, Y, number=150)
    check_gradient(samples, reference(network, noise, Joint(), loss), 0.2, TOLERANCE)


@pytest.mark.parametrize("estimator", [Backprop(), NoisyBackprop()], ids=["backprop", "noisy_backprop"])
def test_backprop_refuses_what_has_no_derivative_and_says_what_to_use(estimator: Estimator) -> None:
    for refuse in (
        lambda: estimator.check(small_network(nn.Tanh()), ZeroOne()),
        lambda: estimator.check(small_network(HardThreshold()), CrossEntropy()),
        lambda: estimator.check(small_network(Sign()), CrossEntropy()),
    ):
        with pytest.raises(ConfigurationError, match="or estimator=local_expectation"):
            refuse()
    estimator.check(small_network(nn.Tanh()), CrossEntropy())


# ---- conf/estimator -------------------------------------------------------------------------------------------------


def expected_gradient(estimator: Any, network: nn.Sequential, noise: Noise, loss: Loss) -> dict[str, Tensor]:
    """The gradient of what the estimator declares as its objective, by an oracle of tests/oracles.py or autograd."""
    match estimator.objective:
        case "noise_free":
            gradients = torch.autograd.grad(loss(network(X), Y).mean(), list(network.parameters()))
            return dict(zip(dict(network.named_parameters()), gradients, strict=True))
        case "joint":
            return reference(network, noise, Joint(), loss)
        case "layerwise":
            return reference(network, noise, Layerwise(), loss)
        case "discontinuities":
            by_logits = partial(loss, labels=Y)
            mean_loss = counted_loss(network, noise, SIGMA[0], by_logits, X)  # noise below the threshold alone
            gradients = torch.autograd.grad(mean_loss, list(network.parameters()))
            return dict(zip(dict(network.named_parameters()), gradients, strict=True))
        case "weights":
            return gradient_under_noise_on_weights(network, noise, estimator.sigma, loss, X, Y)
    raise AssertionError(f"no oracle for the objective {estimator.objective!r}; add one here")


@pytest.mark.parametrize("name", options("estimator"))
@pytest.mark.parametrize("injection", options("injection"))
def test_a_configured_estimator_is_unbiased_for_its_objective_or_says_why_not(name: str, injection: str) -> None:
    groups = [f"estimator={name}", "noise=logistic", "loss=cross_entropy", f"injection={injection}"]
    config = compose([*groups, f"sigma={list(SIGMA)}", "copies=4"])
    estimator, noise, loss = (build(config[group]) for group in ("estimator", "noise", "loss"))
    for network in (small_network(nn.Tanh()), small_network(HardThreshold())):
        try:
            estimator.check(network, loss)
        except ConfigurationError:
            continue
        if isinstance(network[1], HardThreshold) and estimator.objective in ("noise_free", "weights"):
            continue  # no oracle: test_peers.py has closed forms
        expected = expected_gradient(estimator, network, noise, loss)
        number = REPETITIONS if isinstance(estimator, MAPPED) else 400
        samples = repetitions(estimator, network, loss, X, Y, number=number)
        if not estimator.bias(network):
            tolerance = WEIGHTS_TOLERANCE if estimator.objective == "weights" else TOLERANCE
            check_gradient(samples, expected, RESOLUTION, tolerance, what=type(network[1]).__name__)
        else:
            mean, target = flat({n: g.mean(0) for n, g in samples.items()}, list(expected)), flat(expected, [*expected])
            assert (mean - target).norm() > 0.01 * target.norm()
        break
    else:
        raise AssertionError(f"estimator={name} trained neither network")


# ---- what an estimate is, for every estimator -----------------------------------------------------------------------


EACH = {
    "likelihood_ratio": LikelihoodRatio(copies=4),
    "layerwise": LikelihoodRatio(copies=4, injection=Layerwise(), baseline=Clean()),
    "noisy_backprop": NoisyBackprop(copies=4),
    "backprop": Backprop(),
    "local_expectation": LocalExpectation(copies=2),
    "hybrid": Hybrid(copies=4),
    "straight_through": StraightThrough(),
    "forward_gradient": ForwardGradient(copies=4),
    "forward_gradient_layerwise": ForwardGradient(copies=4, injection=Layerwise()),
    "evolution_strategies": EvolutionStrategies(copies=4),
}
DETERMINISTIC = (Backprop, StraightThrough)
every_estimator = pytest.mark.parametrize("estimator", EACH.values(), ids=EACH.keys())


def test_every_configured_estimator_is_held_to_this() -> None:
    assert {type(member_of_estimators(name)) for name in options("estimator")} <= {type(e) for e in EACH.values()}


def member_of_estimators(name: str) -> Estimator:
    estimator: Estimator = build(compose([f"estimator={name}", "copies=4"])["estimator"])
    return estimator


def network_for(estimator: Estimator) -> nn.Sequential:
    """One that the estimator accepts."""
    return small_network(HardThreshold() if isinstance(estimator, StraightThrough | Hybrid) else nn.Tanh())


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_the_names_shapes_and_dtypes_of_the_parameters(estimator: Estimator, dtype: torch.dtype) -> None:
    network = network_for(estimator).to(dtype)
    got = estimate(estimator, network, CrossEntropy(), X.to(dtype))
    assert {name: (g.shape, g.dtype) for name, g in got.gradients.items()} == {
        name: (p.shape, p.dtype) for name, p in network.named_parameters()
    }
    assert not any(g.requires_grad for g in (*got.gradients.values(), got.loss, got.logits))
    assert got.loss.shape == ()
    torch.testing.assert_close(got.logits, network(X.to(dtype)))


@every_estimator
def test_an_estimate_changes_neither_parameters_nor_grad_nor_the_global_generator(estimator: Estimator) -> None:
    network = network_for(estimator)
    network[0].weight.grad = torch.full_like(network[0].weight, 7.0)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    estimate(estimator, network, CrossEntropy())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert bool((network[0].weight.grad == 7.0).all())
    assert all(p.grad is None for p in list(network.parameters())[1:])
    assert all(p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@every_estimator
def test_the_generators_seed_decides_the_estimate(estimator: Estimator) -> None:
    network = network_for(estimator)
    first, again, other = (estimate(estimator, network, CrossEntropy(), seed=seed).gradients for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert isinstance(estimator, DETERMINISTIC) or not any(torch.equal(first[name], other[name]) for name in first)


@every_estimator
def test_an_estimate_does_not_depend_on_the_callers_grad_mode(estimator: Estimator) -> None:
    network = network_for(estimator)
    with torch.no_grad():
        without = estimate(estimator, network, CrossEntropy()).gradients
    within = estimate(estimator, network, CrossEntropy()).gradients
    assert all(torch.equal(without[name], within[name]) for name in within)


@final
class CountingLoss(Loss):
    """Cross-entropy that remembers how many rows it saw, and their total."""

    differentiable = True

    def __init__(self) -> None:
        self.rows, self.total = 0, 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = CrossEntropy()(logits, labels)
        self.rows += len(losses)
        self.total += float(losses.detach().sum())
        return losses


@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_the_loss_is_the_mean_over_copies_and_passes_and_forwards_counts_them(
    injection: Injection, chunk: int | None
) -> None:
    loss = CountingLoss()
    got = estimate(LikelihoodRatio(copies=8, injection=injection, chunk=chunk), small_network(HardThreshold()), loss)
    assert loss.rows == len(injection.passes(2)) * 8 * len(X)
    assert float(got.loss) == pytest.approx(loss.total / loss.rows)
    assert got.diagnostics["forwards"] == loss.rows + len(X)  # and the noise-free pass


def test_under_bf16_autocast_noise_and_gradients_stay_in_float32() -> None:
    network = small_network(HardThreshold()).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = estimate(LikelihoodRatio(copies=4), network, ZeroOne(), X.float())
    assert {g.dtype for g in got.gradients.values()} == {torch.float32}


# ---- options and refusals -------------------------------------------------------------------------------------------


def test_one_scale_serves_all_layers_and_a_list_has_one_for_each() -> None:
    network = small_network(HardThreshold())
    same, listed, other = (
        estimate(LikelihoodRatio(sigma=sigma, copies=4), network, ZeroOne()).gradients
        for sigma in (0.7, [0.7, 0.7], [0.7, 0.9])
    )
    assert all(torch.equal(same[name], listed[name]) for name in same)
    assert not torch.equal(same["2.weight"], other["2.weight"])
    refused = [LikelihoodRatio(sigma=[1.0, 1.0, 1.0]), NoisyBackprop(sigma=[1.0])]
    for estimator in (*refused, StraightThrough(sigma=[1.0]), ForwardGradient(sigma=[1.0]), Hybrid(sigma=[1.0])):
        for refuse in (
            lambda e=estimator: e.check(network_for(e), CrossEntropy()),
            lambda e=estimator: estimate(e, network_for(e), CrossEntropy()),
        ):
            with pytest.raises(ConfigurationError, match="the network has 2 layers with weights; give one value, or 2"):
                refuse()


@pytest.mark.parametrize("sigma", [0, -1.0, math.inf, math.nan, "1", None, True, [], [1.0, 0.0], [1.0, None]])
@pytest.mark.parametrize(
    "kind",
    [LikelihoodRatio, LocalExpectation, Hybrid, NoisyBackprop, StraightThrough, ForwardGradient, EvolutionStrategies],
)
def test_a_noise_scale_must_be_positive_and_finite(kind: Any, sigma: Any) -> None:
    with pytest.raises(ConfigurationError, match="sigma"):
        kind(sigma=sigma)


@pytest.mark.parametrize("copies", [0, -2, 1.5, "8", None, True])
@pytest.mark.parametrize(
    "kind", [LikelihoodRatio, LocalExpectation, Hybrid, NoisyBackprop, ForwardGradient, EvolutionStrategies]
)
def test_copies_must_be_a_positive_whole_number(kind: Any, copies: Any) -> None:
    with pytest.raises(ConfigurationError, match="copies must be a whole number of at least 1"):
        kind(copies=copies)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"copies": 5}, r"use copies=6 or sampling=independent"),
        (
            {"copies": 2},
            r"raise copies, for example copies=32 \(at least 2 with sampling=independent, 4 with antithetic\)",
        ),
        ({"copies": 1, "sampling": Independent()}, "or use baseline=clean"),
        ({"noise": Uniform()}, "Use noise=gaussian, laplace, logistic or student_t"),
        ({"score": "best"}, "score must be one of plain, conditional, coupled, auto"),
        ({"score": "coupled", "sampling": Sobol()}, "use sampling=antithetic, or estimator.score=auto"),
        ({"chunk": 1}, "use chunk=2 or more"),
        ({"chunk": 15, "sampling": Sobol()}, "use chunk=16 or more"),
        ({"copies": 4, "sampling": Sobol(1)}, r"or sampling\.randomisations \(2 with sobol\)"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused_with_what_to_do(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        LikelihoodRatio(**options)


class NotAChain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize(
    ("network", "advice"),
    [
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)),
            r"module '1' \(BatchNorm1d\) is in train mode .* per-sample normalisation .* or put it in eval mode",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Dropout(0.5)), nn.Linear(4, 2)),
            r"module '1\.1' \(Dropout\) draws noise of its own .* remove it",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
            r"module '1' \(LayerNorm\) holds parameters, .* freeze it \(requires_grad=False\), or register",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), NotAChain(), nn.Linear(4, 2)),
            r"module '1' \(NotAChain\) holds parameters, .*; replace it",
        ),
        (NotAChain(), "got NotAChain; write the network as an nn.Sequential"),
        (nn.Sequential(nn.Flatten(), nn.Tanh()), "no layer with weights, so there is nothing to train"),
    ],
    ids=["batch_norm", "dropout", "layer_norm", "custom", "not_a_chain", "no_weights"],
)
def test_a_network_that_the_estimator_cannot_train_is_refused_with_what_to_do(network: nn.Module, advice: str) -> None:
    estimator = LikelihoodRatio(copies=4)
    for refuse in (
        lambda: estimator.check(network, CrossEntropy()),
        lambda: estimate(estimator, network, CrossEntropy(), X.float()),
    ):
        with pytest.raises(ConfigurationError, match=re.compile(advice, re.DOTALL)):
            refuse()


def test_batch_norm_and_dropout_in_eval_mode_and_frozen_layers_are_accepted() -> None:
    normalise = nn.BatchNorm1d(4).requires_grad_(False)
    network = nn.Sequential(nn.Linear(3, 4), normalise, HardThreshold(), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    got = estimate(LikelihoodRatio(copies=4), network, CrossEntropy(), X.float())
    assert got.gradients.keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_a_module_used_twice_is_applied_twice() -> None:
    activation = HardThreshold()
    network = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 4), activation, nn.Linear(4, 2)).double()
    torch.testing.assert_close(estimate(LikelihoodRatio(copies=4), network, CrossEntropy()).logits, network(X))


@pytest.mark.parametrize("how", ["module", "parameter"])
def test_a_weight_used_twice_is_refused(how: str) -> None:
    """Its gradient would be the sum of two layers', and named_parameters() has one name for it."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    network = nn.Sequential(first, nn.Tanh(), first if how == "module" else second, nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(ConfigurationError):
        LikelihoodRatio(copies=4).check(network, CrossEntropy())


def test_batch_norm_without_running_statistics_is_refused_in_eval_mode_too() -> None:
    """Without running statistics it takes the batch's own in either mode."""
    normalise = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    network = nn.Sequential(nn.Linear(3, 4), normalise, nn.Linear(4, 2)).eval()
    with pytest.raises(ConfigurationError):
        LikelihoodRatio(copies=4).check(network, CrossEntropy())


def test_a_reparametrised_layer_is_refused_with_what_to_do() -> None:
    """contract() gives the gradient of the weight, but the parameters are what the weight is made of."""
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(ConfigurationError):
        LikelihoodRatio(copies=4).check(network, CrossEntropy())


# ---- memory ---------------------------------------------------------------------------------------------------------


MEMORY = """
import resource, torch
from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.losses import ZeroOne
from glr_lightning.networks import mlp

torch.set_num_threads(1)
network = mlp(image_shape=(1, 14, 14), classes=10, hidden=[20], activation=HardThreshold())
x, y, generator = torch.rand(25, 1, 14, 14), torch.arange(25) % 10, torch.Generator().manual_seed(0)
LikelihoodRatio(copies=4).estimate(network, ZeroOne(), x, y, generator=generator)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
LikelihoodRatio(copies=10_000, {options}).estimate(network, ZeroOne(), x, y, generator=generator)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize(("options", "mebibytes"), [("chunk=100", 32), ("", 256)])
def test_memory_is_bounded_by_the_chunk_and_not_by_the_copies(options: str, mebibytes: int) -> None:
    """Paper 2's setting, 10,000 copies of 25 images through 196-20-10, used to take [250,000, 196, 20] numbers."""
    script = MEMORY.format(options=options)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < mebibytes


@pytest.mark.parametrize("kind", [LikelihoodRatio, LocalExpectation, Hybrid, NoisyBackprop])
def test_a_layer_too_wide_for_sobol_is_refused_before_the_first_step(kind: Any) -> None:
    activation = nn.Tanh() if kind is NoisyBackprop else HardThreshold()
    network = nn.Sequential(nn.Linear(1, 21_202), activation, nn.Linear(21_202, 2))
    with pytest.raises(ConfigurationError, match="use sampling=independent or antithetic"):
        kind(copies=4, sampling=Sobol()).check(network, CrossEntropy())


def test_the_coupled_score_above_the_first_noisy_layer_alone_is_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2), HardThreshold(), nn.Linear(2, 2))
    with pytest.raises(
        ConfigurationError, match=r"right after the first noisy layer; .* Use estimator\.score=plain or auto"
    ):
        LikelihoodRatio(score="coupled").check(network, CrossEntropy())
    LikelihoodRatio(score="coupled", injection=Layerwise()).check(network, CrossEntropy())
