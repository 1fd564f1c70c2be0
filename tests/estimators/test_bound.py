"""A bound estimator: prepared once, then steps that are pure functions of tensors."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import Estimator, Hybrid, LikelihoodRatio, LocalExpectation, Tiered
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy
from glr_lightning.propagation import graph as graphs
from glr_lightning.propagation.graph import Graph
from tests.checks.estimator_cases import X, Y, small_network
from tests.checks.groups import configured, options
from tests.checks.refusals import refused
from tests.checks.traced_networks import NETWORKS, Residual, made
from tests.checks.traced_networks import X as TRACED_X
from tests.checks.traced_networks import Y as TRACED_Y

ESTIMATORS: dict[str, Estimator] = {name: configured(name) for name in options("estimator")}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
FROM_LOSSES = {
    "joint": LikelihoodRatio(copies=4),
    "layerwise": LikelihoodRatio(copies=4, injection=Layerwise()),
    "chunks": LikelihoodRatio(copies=16, chunk=4),
    "local_expectation": LocalExpectation(copies=2),
    "tiered": Tiered(copies=4),
}


def network_of(estimator: Estimator) -> nn.Module:
    """Thresholds, or for what needs derivatives a smooth one; a network of two hidden layers for hybrid."""
    smooth = estimator.needs_derivatives and estimator.family in ("backpropagation", "pathwise")
    if isinstance(estimator, Hybrid):
        torch.manual_seed(0)
        layers = [nn.Linear(3, 4), HardThreshold(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)]
        return nn.Sequential(*layers).double()
    return small_network(nn.Tanh() if smooth else HardThreshold())


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_same(a: Any, b: Any) -> None:
    """Two estimates are bit for bit the same."""
    assert a.gradients.keys() == b.gradients.keys()
    assert all(torch.equal(gradient, b.gradients[name]) for name, gradient in a.gradients.items())
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(a.logits, b.logits)
    assert a.diagnostics == b.diagnostics


@every_estimator
def test_a_step_is_a_pure_function_and_equals_the_estimate(name: str) -> None:
    estimator = ESTIMATORS[name]
    network = network_of(estimator)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = copy.deepcopy(dict(network.named_parameters()))
    generator = seeded()
    expected = estimator.estimate(network, CrossEntropy(), X, Y, generator=generator)
    bound = estimator.bind(network, CrossEntropy())
    drawing = seeded()
    noise = bound.draw(X, drawing)
    assert torch.equal(drawing.get_state(), generator.get_state())  # all that an estimate draws, and no more
    kept, own, common = copy.deepcopy(noise), drawing.get_state(), torch.get_rng_state()
    first, second = (bound.step(X, Y, noise) for _ in range(2))
    check_same(first, second)
    check_same(first, expected)
    check_same(bound.estimate(X, Y, seeded()), expected)
    assert torch.equal(drawing.get_state(), own)
    assert torch.equal(torch.get_rng_state(), common)
    for parameter_name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[parameter_name])
        assert parameter.grad is not None
        assert bool((parameter.grad == 7).all())
    for part, as_drawn in zip(noise, kept, strict=True):
        assert str(part) == str(as_drawn)  # the noise is not written to


def estimates_of(estimate: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    return estimate.gradients, estimate.loss, estimate.logits


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("estimator", FROM_LOSSES.values(), ids=FROM_LOSSES)
def test_steps_mapped_over_draws_are_those_of_a_loop(estimator: Estimator, make: Any) -> None:
    bound = estimator.bind(made(make, HardThreshold()), CrossEntropy())
    draws = [bound.draw(TRACED_X, seeded(seed)) for seed in range(3)]
    stacked = torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *draws)
    mapped = torch.func.vmap(lambda noise: estimates_of(bound.step(TRACED_X, TRACED_Y, noise)))(stacked)
    for number, noise in enumerate(draws):
        one = estimates_of(bound.step(TRACED_X, TRACED_Y, noise))
        torch.testing.assert_close(torch.utils._pytree.tree_map(lambda part, n=number: part[n], mapped), one)


@every_estimator
def test_a_step_with_other_weights_is_that_of_a_network_with_them(name: str) -> None:
    estimator = ESTIMATORS[name]
    network = network_of(estimator)
    bound = estimator.bind(network, CrossEntropy())
    noise = bound.draw(X, seeded())
    weights = {key: 1.5 * value.detach() for key, value in network.named_parameters()}
    got = bound.step_of(weights, X, Y, noise)
    before = copy.deepcopy(network.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.load_state_dict(weights)
    check_same(got, bound.step(X, Y, noise))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("estimator", FROM_LOSSES.values(), ids=FROM_LOSSES)
def test_steps_mapped_over_weights_are_those_of_a_loop(estimator: Estimator, make: Any) -> None:
    network = made(make, HardThreshold())
    bound = estimator.bind(network, CrossEntropy())
    noise = bound.draw(TRACED_X, seeded())
    many = [{key: f * value.detach() for key, value in network.named_parameters()} for f in (0.5, 1.0, 2.0)]
    stacked = {key: torch.stack([weights[key] for weights in many]) for key in many[0]}
    mapped = torch.func.vmap(lambda w: bound.step_of(w, TRACED_X, TRACED_Y, noise).gradients)(stacked)
    for number, weights in enumerate(many):
        one = bound.step_of(weights, TRACED_X, TRACED_Y, noise).gradients
        torch.testing.assert_close({key: part[number] for key, part in mapped.items()}, one)


@pytest.mark.parametrize("name", ["backprop", "straight_through", "hybrid", "evolution_strategies"])
def test_what_differentiates_is_not_mapped_over_weights_in_silence(name: str) -> None:
    network = network_of(ESTIMATORS[name])
    bound = ESTIMATORS[name].bind(network, CrossEntropy())
    noise = bound.draw(X, seeded())
    stacked = {key: torch.stack([value.detach()] * 2) for key, value in network.named_parameters()}
    with refused(None, "call step_of in a loop"):
        torch.func.vmap(lambda w: bound.step_of(w, X, Y, noise).gradients)(stacked)


def test_a_network_is_traced_once_for_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[nn.Module] = []
    trace = graphs.trace
    monkeypatch.setattr(graphs, "trace", lambda network: (traced.append(network), trace(network))[1])
    network = small_network(HardThreshold())
    bound = LikelihoodRatio(copies=4).bind(network, CrossEntropy())
    for seed in range(3):
        bound.step(X, Y, bound.draw(X, seeded(seed)))
        Tiered(copies=4).estimate(network, CrossEntropy(), X, Y, generator=seeded())
    assert traced == [network]
    network[0].weight.requires_grad_(False)
    LikelihoodRatio(copies=4).bind(network, CrossEntropy())
    assert traced == [network, network]


def test_a_bound_estimator_checks_a_batch_of_a_shape_once() -> None:
    calls: list[Tensor] = []
    network = made(Residual, nn.Tanh())
    network.a.register_forward_hook(lambda _, args, __: calls.append(args[0]))
    bound = LikelihoodRatio(copies=4).bind(network, CrossEntropy())
    noise = bound.draw(TRACED_X, seeded())
    calls.clear()
    noise = bound.draw(TRACED_X, seeded())
    assert not calls  # a draw runs nothing of the network
    bound.step(TRACED_X, TRACED_Y, noise)
    assert len(calls) == 1  # the layer below all noise runs once


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_nothing_keeps_a_network_alive_that_has_been_trained(make: Any) -> None:
    network = made(make, HardThreshold())
    for estimator in FROM_LOSSES.values():
        bound = estimator.bind(network, CrossEntropy())
        bound.step(TRACED_X, TRACED_Y, bound.draw(TRACED_X, seeded()))
    gone, graph = weakref.ref(network), weakref.ref(Graph.of(network))
    del network, bound
    gc.collect()
    assert gone() is None
    assert graph() is None
