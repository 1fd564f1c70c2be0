"""Parameters that a network reads by itself are trained as those of the layer that does the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_lightning.activations import HardThreshold
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import (
    Estimator,
    ForwardGradient,
    Hybrid,
    LikelihoodRatio,
    LocalExpectation,
    NoisyBackprop,
    StraightThrough,
    Tiered,
)
from glr_lightning.losses import CrossEntropy
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import observe
from tests.checks.estimator_cases import estimate

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(3, 6, generator=GENERATOR, dtype=torch.float64)
SERIES = torch.rand(3, 4, 6, generator=GENERATOR, dtype=torch.float64)
IMAGES = torch.rand(3, 2, 6, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


class Written(nn.Module):
    """c(act(first(x))) with a first layer that is written by hand, or is `a`."""

    def __init__(self, function: Any, act: nn.Module, *, images: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.act = function, act
        self.a = nn.Conv2d(2, 5, 6) if images else nn.Linear(6, 5)
        self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.function(self, x))
        h = h.flatten(2).mean(2) if h.dim() == 4 else h.mean(1) if h.dim() == 3 else h
        return self.c(self.act(self.b(h)))  # type: ignore[no-any-return]


def layer(n: Any, x: Tensor) -> Tensor:
    return n.a(x)  # type: ignore[no-any-return]


WRITTEN: dict[str, tuple[Any, Tensor]] = {
    "functional": (lambda n, x: functional.linear(x, n.a.weight, n.a.bias), X),
    "product": (lambda n, x: x @ n.a.weight.t() + n.a.bias, X),
    "product_of_steps": (lambda n, x: x @ n.a.weight.T + n.a.bias, SERIES),
    "bias_first": (lambda n, x: n.a.bias[None] + torch.matmul(x, n.a.weight.transpose(0, 1)), X),
    "addmm": (lambda n, x: torch.addmm(n.a.bias, x, n.a.weight.t()), X),
    "einsum": (lambda n, x: torch.einsum("bi,oi->bo", x, n.a.weight) + n.a.bias, X),
    "convolution": (lambda n, x: functional.conv2d(x, n.a.weight, n.a.bias), IMAGES),
}
ESTIMATORS: dict[str, tuple[Estimator, nn.Module]] = {
    "joint": (LikelihoodRatio(copies=8), HardThreshold()),
    "tiered": (Tiered(copies=8), HardThreshold()),
    "local_expectation": (LocalExpectation(copies=2), HardThreshold()),
    "hybrid": (Hybrid(copies=8), HardThreshold()),
    "straight_through": (StraightThrough(), HardThreshold()),
    "forward_gradient": (ForwardGradient(copies=8), nn.Tanh()),
    "noisy_backprop": (NoisyBackprop(copies=8), nn.Tanh()),
}


@pytest.mark.parametrize(("estimator", "act"), ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize(("function", "x"), WRITTEN.values(), ids=WRITTEN)
def test_a_layer_that_is_written_by_hand_gets_the_layers_gradients(
    estimator: Estimator, act: nn.Module, function: Any, x: Tensor
) -> None:
    got, expected = (
        estimate(estimator, Written(f, act, images=x is IMAGES), CrossEntropy(), x, Y) for f in (function, layer)
    )
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(got.gradients, expected.gradients)


def test_a_product_and_its_bias_are_one_call_with_one_noise() -> None:
    network = Written(WRITTEN["product"][0], nn.Tanh())
    observe(network, X)
    graph = Graph.of(network)
    assert graph.layers == ("a.weight, a.bias", "b", "c")
    assert len(graph.sites) == 3


class Affine(nn.Module):
    """Parameters of all kinds: places, a scale, logits by a product; a weight that two calls read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.places, self.scale = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.rand(5) + 0.5)
        self.a, self.w = nn.Linear(6, 5), nn.Parameter(torch.randn(5, 2))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x + self.places)).mean(1)
        assert self.w.shape[0] == 5
        return torch.tanh(h * self.scale.exp() + h @ self.w @ self.w.t()) @ self.w

    def noisy(self, x: Tensor, z: list[Tensor]) -> Tensor:
        h = torch.tanh(self.a(x + self.places + z[0]) + z[1]).mean(1)
        scaled = h * self.scale.exp() + z[2]
        looped = (h @ self.w + z[3]) @ self.w.t() + z[4]
        return torch.tanh(scaled + looped) @ self.w + z[5]


def test_noise_enters_behind_every_such_call() -> None:
    """Written out with the noise at its places; the derivative along the path is autograd's."""
    network = Affine()
    bound = NoisyBackprop(sigma=0.3, copies=4).bind(network, CrossEntropy())
    (part,) = bound.draw(SERIES, torch.Generator().manual_seed(0))
    got = bound.step(SERIES, Y, [part])
    loss = CrossEntropy()(
        network.noisy(SERIES.repeat(4, 1, 1), [0.3 * z.flatten(0, 1) for z in part.z.values()]), Y.repeat(4)
    )
    names, parameters = zip(*network.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss.mean(), parameters), strict=True))
    torch.testing.assert_close(got.gradients, expected)


@pytest.mark.parametrize("estimator", [LikelihoodRatio(copies=8), Tiered(copies=8), LocalExpectation(copies=2)])
def test_other_weights_in_a_step_are_read_in_their_place(estimator: Estimator) -> None:
    network = Affine()
    bound = estimator.bind(network, CrossEntropy())
    noise = bound.draw(SERIES, torch.Generator().manual_seed(0))
    other = {name: 0.5 * parameter.detach() for name, parameter in network.named_parameters()}
    got = bound.step_of(other, SERIES, Y, noise)
    network.load_state_dict(other)
    torch.testing.assert_close(got.gradients, bound.step(SERIES, Y, noise).gradients)


def test_rows_that_are_not_in_front_are_refused() -> None:
    network = Written(lambda n, x: (n.a.weight @ x.t()).t() + n.a.bias, nn.Tanh())
    with pytest.raises(
        ConfigurationError, match=r"'a\.weight' by itself \(test_parameter_call\.py:\d+\) in a tensor whose"
    ):
        estimate(LikelihoodRatio(copies=8), network, CrossEntropy(), X, Y)
