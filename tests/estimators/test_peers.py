"""The peers of the likelihood ratio: straight-through, forward gradients, evolution strategies.

What they share with every estimator is in test_estimators.py. Here are their closed forms: a backward pass written out,
the mean over ALL patterns of signs, errors that are a cdf.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.estimators import Backprop, Estimator, EvolutionStrategies, ForwardGradient, StraightThrough
from glr_lightning.estimators import forward_gradient as module_of_forward_gradient
from glr_lightning.estimators.straight_through import smoothed_slope
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.networks import Shift
from glr_lightning.noise import Gaussian, Laplace, Logistic, Noise, Uniform
from tests.checks.estimator_cases import (
    IMAGES,
    LABELS,
    NOISES,
    SIGMA,
    Branching,
    Margin,
    OneLayer,
    X,
    Y,
    check_gradient,
    estimate,
    every_density,
    reference,
    small_convnet,
    small_network,
)
from tests.checks.groups import member, options
from tests.checks.oracles import WEIGHTS_TOLERANCE, gradient_under_noise_on_weights
from tests.checks.peers import (
    assert_same,
    check_all_patterns,
    check_error_of_one_weight,
    check_noise_on_weights,
    check_straight_through,
)
from tests.checks.refusals import refused
from tests.checks.zscores import assert_mean, repetitions

ACTIVATIONS = {
    "threshold": HardThreshold(),
    "sign": Sign(),
    "staircase": PiecewiseConstant(cuts=(-0.5, 0.1, 0.7), levels=(0.0, 1.0, -0.5, 3.0)),
}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
smooth_quantiles = pytest.mark.parametrize(  # Student's t, by bisection, would take seconds
    "noise", [Gaussian(), Laplace(), Logistic()], ids=["gaussian", "laplace", "logistic"]
)
every_injection = pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])


# ---- straight-through -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
@every_activation
def test_the_slope_is_the_derivative_of_the_mean_of_the_noisy_activation(
    noise: Noise, activation: PiecewiseConstant
) -> None:
    """E[phi(v + sigma z)] = sum_c level_c P(cell c), by central differences. 0.05 apart from the kinks."""
    sigma, step = 0.6, 1e-5
    v = torch.linspace(-2.03, 2.02, 82, dtype=torch.float64)

    def mean(v: Tensor) -> Tensor:
        below = [noise.cdf((cut - v) / sigma) for cut in activation.cuts]
        edges = torch.stack([torch.zeros_like(v), *below, torch.ones_like(v)])
        return torch.tensor(activation.levels, dtype=v.dtype) @ edges.diff(dim=0)

    expected = (mean(v + step) - mean(v - step)) / (2 * step)
    torch.testing.assert_close(smoothed_slope(activation, noise, sigma, v), expected, rtol=0, atol=1e-6)


def test_uniform_noise_gives_the_clipped_slope() -> None:
    v = torch.tensor([-0.9, -0.69, 0.0, 0.5, 0.71])
    torch.testing.assert_close(
        smoothed_slope(HardThreshold(), Uniform(), 0.7, v), torch.tensor([0.0, 1, 1, 1, 0]) / (2 * 0.7)
    )


@pytest.mark.parametrize("noise", options("noise"))
@every_activation
def test_straight_through_is_the_chain_rule_with_slopes_at_hard_states(
    noise: str, activation: PiecewiseConstant
) -> None:
    check_straight_through(member("noise", noise), activation)


def test_every_activation_takes_the_scale_of_the_layer_before_it() -> None:
    """Three layers, modules between, and a thresholded input, which no layer stands before and needs no slope."""
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Linear(3, 4), Shift(0.2), HardThreshold(), nn.Linear(4, 4))
    network = nn.Sequential(HardThreshold(), inner, Sign(), nn.Linear(4, 2)).double()
    sigma = (0.5, 0.7, 0.9)
    got = estimate(StraightThrough(sigma=sigma), network, CrossEntropy()).gradients
    first, last, logit = inner[0], inner[3], network[3]
    x = (X > 0).double()
    v1 = first(x) + 0.2
    h1 = (v1 > 0).double()
    v2 = last(h1)
    h2 = 2 * (v2 > 0).double() - 1
    by_logit = (torch.softmax(logit(h2), 1) - nn.functional.one_hot(Y, 2)) / len(X)
    by_v2 = by_logit @ logit.weight * 2 * Gaussian().log_prob(v2 / sigma[1]).exp() / sigma[1]
    by_v1 = by_v2 @ last.weight * Gaussian().log_prob(v1 / sigma[0]).exp() / sigma[0]
    expected = {}
    for name, signal, h in (("1.0", by_v1, x), ("1.3", by_v2, h1), ("3", by_logit, h2)):
        expected |= {f"{name}.weight": (signal.T @ h).detach(), f"{name}.bias": signal.sum(0).detach()}
    assert_same(got, expected)


@every_density
@pytest.mark.parametrize("activation", [HardThreshold(), Sign()], ids=["threshold", "sign"])
def test_straight_through_is_biased_and_says_so(
    noise: Noise, activation: PiecewiseConstant, record_property: Callable[[str, object], None]
) -> None:
    """Without variance, so against the exact gradient of the joint objective its error is its bias."""
    network = small_network(activation)
    estimator = StraightThrough(noise=noise, sigma=SIGMA)
    got = estimate(estimator, network, CrossEntropy()).gradients
    expected = reference(network, noise, Joint(), CrossEntropy())
    for layer in ("0", "2"):
        target = torch.cat([g.flatten() for name, g in expected.items() if name.startswith(layer)])
        off = torch.cat([got[name].flatten() for name in expected if name.startswith(layer)]) - target
        relative = float(off.norm() / target.norm())
        record_property(f"relative_bias_of_layer_{layer}", relative)
        assert relative > 0.01
    assert "straight-through" in estimator.bias(network)


# ---- forward gradients ----------------------------------------------------------------------------------------------


def relu_convnet() -> nn.Sequential:
    torch.manual_seed(2)
    features = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(features, nn.Flatten(), nn.Linear(2, 2)).double()


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "tanh": lambda: small_network(nn.Tanh()),
    "sigmoid": lambda: small_network(nn.Sigmoid()),
    "relu": lambda: small_network(nn.ReLU()),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
@every_injection
def test_over_all_signs_the_forward_gradient_is_the_gradient(
    injection: Injection, make: Callable[[], nn.Sequential]
) -> None:
    check_all_patterns(injection, make(), Backprop(), X, Y)


@every_injection
def test_over_all_signs_it_is_the_gradient_of_a_convolution_with_pooling(
    injection: Injection,
) -> None:
    check_all_patterns(injection, relu_convnet(), Backprop(), IMAGES, LABELS)


@every_injection
def test_over_all_signs_jumps_have_the_straight_through_gradient(injection: Injection) -> None:
    for network, x, y in ((small_network(Sign()), X, Y), (small_convnet(), IMAGES, LABELS)):
        check_all_patterns(injection, network, StraightThrough(sigma=SIGMA), x, y)


def test_the_directions_are_independent_signs() -> None:
    u = module_of_forward_gradient.random_signs((5000, 2, 3), X, torch.Generator().manual_seed(0)).flatten(1)
    assert u.dtype == X.dtype
    assert set(u.unique().tolist()) == {-1.0, 1.0}
    assert_mean(u, 0.0)
    assert_mean(u[:, :, None] * u[:, None, :], torch.eye(6))


def test_the_bias_of_a_forward_gradient_is_declared_where_there_is_one() -> None:
    assert ForwardGradient().bias(small_network(nn.Tanh())) == ""
    assert "straight-through slopes" in ForwardGradient().bias(small_network(HardThreshold()))


@pytest.mark.parametrize("chunk", [1, 4, 5, 12])
def test_chunks_of_the_same_directions_add_up_to_the_same_forward_gradient(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_a_bank(chunks: list[int]) -> Callable[..., Tensor]:
        rest: dict[tuple[int, ...], Tensor] = {}

        def signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
            chunks.append(shape[0])
            bank = rest.get(shape[1:])
            bank = drawn((12, *shape[1:]), like, torch.Generator().manual_seed(3)) if bank is None else bank
            rest[shape[1:]] = bank[shape[0] :]
            return bank[: shape[0]].clone()

        return signs

    drawn = module_of_forward_gradient.random_signs
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()  # no two layers of one shape
    whole: list[int] = []
    pieces: list[int] = []
    monkeypatch.setattr(module_of_forward_gradient, "random_signs", from_a_bank(whole))
    expected = estimate(ForwardGradient(copies=12), network, CrossEntropy()).gradients
    monkeypatch.setattr(module_of_forward_gradient, "random_signs", from_a_bank(pieces))
    got = estimate(ForwardGradient(copies=12, chunk=chunk), network, CrossEntropy()).gradients
    assert_same(got, expected)
    assert whole == [12, 12]
    assert sum(pieces) == 24
    assert max(pieces) <= chunk


# ---- evolution strategies -------------------------------------------------------------------------------------------


@every_density
def test_evolution_strategies_have_a_linear_losss_gradient_at_any_sigma(noise: Noise) -> None:
    network = nn.Sequential(nn.Linear(3, 2)).double()
    expected = estimate(Backprop(), network, Margin()).gradients
    for sigma in (0.01, 2.0):
        estimator = EvolutionStrategies(noise=noise, sigma=sigma, copies=8)
        samples = repetitions(estimator, network, Margin(), X, Y, number=4000)
        check_gradient(samples, expected, resolution=0.2)


@every_density
def test_the_error_of_a_threshold_under_noise_on_its_weight_is_a_cdf(noise: Noise) -> None:
    check_error_of_one_weight(noise)


@smooth_quantiles
def test_evolution_strategies_are_unbiased_for_noise_on_all_weights(noise: Noise) -> None:
    check_noise_on_weights(noise)


@smooth_quantiles
def test_the_oracle_under_noise_on_weights_does_not_depend_on_its_points(noise: Noise) -> None:
    network = small_network(nn.Tanh())
    coarse = gradient_under_noise_on_weights(network, noise, 0.5, CrossEntropy(), X, Y)
    fine = gradient_under_noise_on_weights(network, noise, 0.5, CrossEntropy(), X, Y, 2**17)
    for name in coarse:
        torch.testing.assert_close(coarse[name], fine[name], rtol=0, atol=WEIGHTS_TOLERANCE)


@pytest.mark.parametrize("chunk", [2, 3, 5, 12])
def test_chunks_of_the_same_draws_add_up_to_the_same_evolution_strategies(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Gaussian.sample
    rest: dict[tuple[int, ...], Tensor] = {}
    pieces: list[int] = []

    def from_a_bank(self: Gaussian, shape: Any, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        key = tuple(shape[1:])
        pieces.append(shape[0])
        bank = rest.get(key)
        bank = drawn(self, (6, *key), generator=torch.Generator().manual_seed(3), dtype=dtype) if bank is None else bank
        rest[key] = bank[shape[0] :]
        return bank[: shape[0]]

    monkeypatch.setattr(Gaussian, "sample", from_a_bank)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()  # no two parameters of one shape
    whole = estimate(EvolutionStrategies(copies=12), network, CrossEntropy())
    rest.clear()
    pieces.clear()
    split = estimate(EvolutionStrategies(copies=12, chunk=chunk), network, CrossEntropy())
    assert_same(split.gradients, whole.gradients)
    assert_same({"loss": split.loss}, {"loss": whole.loss})
    assert sum(pieces) == 4 * 6
    assert max(pieces) <= max(chunk // 2, 1)
    assert split.diagnostics["forwards"] == 13 * len(X)


class Coupled(nn.Module):
    """No chain, and the samples of a batch depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = OneLayer()
        self.normalise = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.normalise(h) + torch.tanh(h)


def test_evolution_strategies_train_any_module_with_batch_norm_as_well() -> None:
    torch.manual_seed(0)
    network = Coupled().double()
    alone = copy.deepcopy(network)
    alone(X)
    estimator = EvolutionStrategies(sigma=0.1, copies=8)
    estimate(estimator, network, CrossEntropy())
    for name, buffer in alone.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer)  # as after one forward pass of the network itself

    network.normalise = nn.BatchNorm1d(2, track_running_stats=False).double()
    expected = gradient_under_noise_on_weights(network, Gaussian(), 0.1, CrossEntropy(), X, Y)
    samples = repetitions(estimator, network, CrossEntropy(), X, Y, number=4000)
    check_gradient(samples, expected, 0.5, WEIGHTS_TOLERANCE)


# ---- refusals -------------------------------------------------------------------------------------------------------


HIDDEN = nn.Sequential(nn.Linear(3, 4), nn.ModuleList([HardThreshold()]), nn.Linear(4, 2))
DROPOUT = nn.Sequential(nn.Linear(3, 4), HardThreshold(), nn.Dropout(0.5), nn.Linear(4, 2))
BATCH_NORM = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), HardThreshold(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("estimator", "network", "loss", "advice"),
    [
        (StraightThrough(), small_network(HardThreshold()), ZeroOne(), ("or estimator=local_expectation",)),
        (StraightThrough(), small_network(nn.Tanh()), CrossEntropy(), ("use estimator=backprop, which is exact here",)),
        (StraightThrough(), HIDDEN, CrossEntropy(), ("module '1'", "in the code of the network itself")),
        (ForwardGradient(), small_network(nn.Tanh()), ZeroOne(), ("or estimator=local_expectation",)),
        (ForwardGradient(), HIDDEN, CrossEntropy(), ("module '1'", "in the code of the network itself")),
        (ForwardGradient(), DROPOUT, CrossEntropy(), ("module '2' (Dropout) draws noise of its own", "remove it")),
        (ForwardGradient(), BATCH_NORM, CrossEntropy(), ("module '1' (BatchNorm1d)", "or put it in eval mode")),
        (ForwardGradient(), Branching(), CrossEntropy(), ("Branching cannot be traced at estimator_cases.py",)),
        (EvolutionStrategies(), DROPOUT, CrossEntropy(), ("module '2' (Dropout) draws noise of its own", "remove it")),
    ],
)
def test_what_a_peer_cannot_train_is_refused_with_what_to_do(
    estimator: Estimator, network: nn.Module, loss: Any, advice: tuple[str, ...]
) -> None:
    x = X.to(next(network.parameters()).dtype)
    seen = x if isinstance(network, Branching) else None  # an `if` may ask for a shape, unless it is known
    for refuse in (lambda: estimator.check(network, loss, seen), lambda: estimate(estimator, network, loss, x)):
        with refused("network" if isinstance(network, Branching) else None, *advice):
            refuse()


@pytest.mark.parametrize(
    ("kind", "options", "advice"),
    [
        (EvolutionStrategies, {"copies": 5}, "use copies=6"),
        (EvolutionStrategies, {"sigma": [0.1, 0.1]}, "for example sigma=0.02"),
        (EvolutionStrategies, {"noise": Uniform()}, "Use noise=gaussian, laplace, logistic or student_t"),
        (EvolutionStrategies, {"chunk": 1}, "use chunk=2 or more"),
        (EvolutionStrategies, {"chunk": 64}, "leave it out"),
        (ForwardGradient, {"chunk": 0}, "a whole number from 1 to "),
    ],
    ids=str,
)
def test_options_of_a_peer_that_cannot_work_are_refused_with_what_to_do(
    kind: Any, options: dict[str, Any], advice: str
) -> None:
    with refused(next(iter(options)), advice):
        kind(**options)


def test_the_plans_name_every_layer_with_weights() -> None:
    network = small_network(HardThreshold())
    for estimator in (StraightThrough(), ForwardGradient(), EvolutionStrategies()):
        assert set(estimator.plan(network, CrossEntropy())) == {"0", "2"}
    assert replace(EvolutionStrategies(), copies=8).plan(OneLayer(), ZeroOne()).keys() == {"linear"}
