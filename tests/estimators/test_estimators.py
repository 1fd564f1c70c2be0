"""The estimators: the mean of every combination in conf/ is its gradient, and what all estimates are."""

import copy
import dataclasses
import itertools
from functools import partial
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.baselines import Clean
from glr_lightning.config import Groups, build, compose
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
    Tiered,
)
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.sampling import Antithetic, Independent, Sampler
from tests.checks.estimator_cases import (
    NOISES,
    REPETITIONS,
    RESOLUTION,
    SCORES,
    SIGMA,
    X,
    Y,
    check_gradient,
    check_unbiased,
    check_unbiased_with_stride,
    effective,
    enumerated,
    estimate,
    every_density,
    flat,
    network_for,
    reference,
    small_network,
)
from tests.checks.groups import configured, member, options
from tests.checks.oracles import (
    CELLS,
    TOLERANCE,
    WEIGHTS_TOLERANCE,
    counted_loss,
    error_probability,
    gradient_under_noise_on_weights,
    smoothed_gradient,
)
from tests.checks.refusals import refused
from tests.checks.zscores import MAPPED, repetitions

# ---- the family -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss", options("loss"))
@pytest.mark.parametrize("activation", options("activation"))
@pytest.mark.parametrize("injection", options("injection"))
@pytest.mark.parametrize("noise", options("noise"))
def test_every_combination_of_the_configuration_is_unbiased_or_refused(
    noise: str, injection: str, activation: str, loss: str
) -> None:
    """Scores x pairs of a sampler and a baseline for one objective; the refused ones say what to do instead.

    Of the pairs each objective takes the third in which every sampler and every baseline comes once, and the next
    objective the next third: a Latin square, so that no two options are strangers.
    """
    network, of_loss = small_network(member("activation", activation)), member("loss", loss)
    jumps = isinstance(network[1], PiecewiseConstant)
    admissible = NOISES[noise].admissible
    expected = reference(network, NOISES[noise], member("injection", injection), of_loss) if admissible else {}
    turn = options("loss").index(loss) + options("injection").index(injection) + options("activation").index(activation)
    baselines = options("baseline")
    pairs = [(s, baselines[(i + turn) % len(baselines)]) for i, s in enumerate(options("sampling"))]
    for (sampling, baseline), score in itertools.product(pairs, SCORES):
        what = f"noise={noise} injection={injection} {sampling=!s} {baseline=!s} {score=!s} {activation=!s} {loss=!s}"

        def make(sampling: str = sampling, baseline: str = baseline, score: str = score) -> LikelihoodRatio:
            parts = {"noise": noise, "sampling": sampling, "baseline": baseline, "injection": injection}
            built = {group: member(group, option) for group, option in parts.items()}
            return LikelihoodRatio(**built, sigma=SIGMA, copies=4, score=score)

        if not admissible:
            with refused("noise", "Use noise=gaussian, laplace, logistic or student_t."):
                make()
        elif score == "coupled" and not member("sampling", sampling).mirrored:
            with refused(None, "use sampling=antithetic, or estimator.score=auto."):
                make()
        elif score in {"conditional", "coupled"} and not jumps:
            for refuse in (lambda m=make: m().check(network, of_loss), lambda m=make: estimate(m(), network, of_loss)):
                with refused("estimator.score", "Use estimator.score=plain or auto."):
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
        with refused(None, "or estimator=local_expectation"):
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
def test_a_configured_estimator_is_unbiased_or_says_why_not(name: str, injection: str) -> None:
    wanted = {"noise": "logistic", "injection": injection, "sigma": list(SIGMA), "copies": 4}
    if name == "evolution_strategies":
        del wanted["sigma"]  # which is that of the weights, one for all
    elif name in ("hybrid", "straight_through"):
        wanted["sigma"] = SIGMA[0]  # below the threshold, where alone it is read
    known = Groups.present().settings("estimator", name)
    config = compose(["~experiment", f"estimator={name}", *(f"{k}={v}" for k, v in wanted.items() if k in known)])
    configured, noise, loss = build(config["estimator"]), member("noise", "logistic"), CrossEntropy()
    for network in (small_network(nn.Tanh()), small_network(HardThreshold())):
        try:
            estimator = effective(configured, network, loss)
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
    "tiered": Tiered(copies=4),
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
    estimator: Estimator = build(compose(["~experiment", f"estimator={name}"])["estimator"])
    return estimator


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
def test_an_estimate_leaves_parameters_grad_and_global_generator_alone(estimator: Estimator) -> None:
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
def test_the_loss_is_a_mean_over_all_passes_which_forwards_counts(injection: Injection, chunk: int | None) -> None:
    loss = CountingLoss()
    got = estimate(LikelihoodRatio(copies=8, injection=injection, chunk=chunk), small_network(HardThreshold()), loss)
    assert loss.rows == len(injection.passes(2)) * 8 * len(X)
    assert float(got.loss) == pytest.approx(loss.total / loss.rows)
    assert got.diagnostics["forwards"] == loss.rows + len(X)  # and the noise-free pass


COUNTED_ELSEWHERE = {"local_expectation", "tiered", "evolution_strategies"}
"""Two need the logits of a layer, so that nothing can count behind it; the third hides its copies in a vmap."""


@pytest.mark.parametrize("name", sorted(set(options("estimator")) - COUNTED_ELSEWHERE))
def test_forwards_are_the_samples_that_leave_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = configured(name)
    network = nn.Sequential(*network_for(estimator), nn.Identity()).double()
    loss = CrossEntropy() if estimator.needs_derivatives else ZeroOne()
    estimator = effective(estimator, network, loss)
    estimate(estimator, network, loss)  # which may probe modules, once
    left: list[int] = []

    def forward(self: nn.Identity, logits: Tensor) -> Tensor:
        left.append(logits.numel() // logits.shape[-1])
        return logits

    monkeypatch.setattr(nn.Identity, "forward", forward)
    got = estimate(estimator, network, loss)
    assert got.diagnostics["forwards"] == sum(left) >= len(X)


@every_estimator
@pytest.mark.parametrize("loss", [CrossEntropy(), ZeroOne()], ids=["cross_entropy", "zero_one"])
def test_where_the_noise_vanishes_the_loss_is_that_of_the_network(estimator: Any, loss: Loss) -> None:
    network = network_for(estimator)
    if any(field.name == "sigma" for field in dataclasses.fields(estimator)):
        estimator = dataclasses.replace(estimator, sigma=1e-9)
    try:
        estimator = effective(estimator, network, loss)
    except ConfigurationError:
        assert not loss.differentiable
        return
    labels = torch.tensor([1, 1, 0])  # of which the network gets the first wrong
    expected = loss(network(X), labels).mean().detach()
    assert float(expected) > 0
    torch.testing.assert_close(estimate(estimator, network, loss, y=labels).loss, expected, rtol=1e-6, atol=0)


def test_under_bf16_autocast_noise_and_gradients_stay_in_float32() -> None:
    network = small_network(HardThreshold()).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = estimate(LikelihoodRatio(copies=4), network, ZeroOne(), X.float())
    assert {g.dtype for g in got.gradients.values()} == {torch.float32}
