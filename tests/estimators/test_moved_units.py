"""Units moved one at a time: the losses are the network's own, and what no unit changes is not computed again."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import LocalExpectation
from glr_lightning.estimators.moved_units import Beyond
from glr_lightning.estimators.passes import noise_at
from glr_lightning.losses import CrossEntropy
from glr_lightning.networks import Shift, convnet, rnn
from glr_lightning.noise import Gaussian
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.values import NoisySite
from glr_lightning.sampling import Independent

COPIES, BATCH, SIGMA, SHAPE = 2, 3, 0.4, (1, 6, 4)
X = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(BATCH)


class TwoLayers(nn.Module):
    """Parts that the networks below share."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act, self.flatten = act, nn.Flatten()
        self.a, self.b, self.c, self.out = nn.Linear(24, 5), nn.Linear(5, 5), nn.Linear(12, 5), nn.Linear(5, 3)


class Elman(TwoLayers):
    """A recurrent cell that adds up two layers."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x.flatten(1)))
        for t in range(3):
            h = self.act(self.c(x[:, 0, 2 * t : 2 * t + 2].repeat(1, 1, 2).flatten(1)[:, :12]) + self.b(h) - 0.5)
        return self.out(h)  # type: ignore[no-any-return]


class Dense(TwoLayers):
    """Layers that read all before them, some twice, some behind a sum."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x.flatten(1)))
        g = self.act(self.b(h + 0.5))
        k = self.act(self.c(torch.cat([x[:, 0, 0, :2], h - 0.5, g + 1], 1)) + h)
        return self.out(self.b(g + k) + k)  # type: ignore[no-any-return]


class Twice(TwoLayers):
    """One vector twice beside another, of which a function reads the whole."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x.flatten(1)))
        g = torch.cat([h, h, x[:, 0, 0, :2]], -1)
        return self.out(self.act(self.c(g)) * functional.softmax(self.b(h), 1) + torch.tanh(g)[:, 3:8])  # type: ignore[no-any-return]


class Gated(TwoLayers):
    """Units that go through products and choices before a layer reads them."""

    def forward(self, x: Tensor) -> Tensor:
        v = self.a(x.flatten(1))
        h = torch.where(v > 0, v * torch.sigmoid(v), 0.1 * v)
        h = self.b(torch.maximum(h, self.act(h)).view(h.shape[0], 5)) + 0.5 * h
        return self.out(self.act(h))  # type: ignore[no-any-return]


class Spiking(TwoLayers):
    """Leaky integrate-and-fire: what a moved potential does stays in its unit from step to step."""

    def forward(self, x: Tensor) -> Tensor:
        current = self.a(x.flatten(1))
        v, count = current, self.act(current - 0.5)
        for _ in range(2):
            v = 0.5 * v * (1 - self.act(v - 0.5)) + current
            count = count + self.act(v - 0.5)
        return self.out(self.act(self.b(count / 3)))  # type: ignore[no-any-return]


class Beside(TwoLayers):
    """Two layers side by side, which nothing but the last layer reads."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__(act)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        g, h = self.act(self.a(x.flatten(1))), self.act(self.c(x.flatten(1)[:, :12]))
        return self.out(torch.cat([g - 0.5, h], 1))  # type: ignore[no-any-return]


class TimeFirst(nn.Module):
    """Rows on the second axis, then several rows of a sample."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act, self.a, self.b, self.out = act, nn.Linear(4, 2), nn.Linear(6, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x[:, 0].transpose(0, 1))).transpose(0, 1)
        return self.out(self.act(self.b(h.reshape(-1, 6))).view(-1, 4) - 0.5)  # type: ignore[no-any-return]


def hooked(act: nn.Module) -> nn.Module:
    """A layer whose hook returns another value than the layer."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(24, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 3))
    network[3].register_forward_hook(lambda _, __, v: v * v)
    return network


def recurrent(act: nn.Module, **options: Any) -> nn.Module:
    return rnn(image_shape=SHAPE, classes=3, rows=2, hidden=5, activation=act, centre=0.5, **options)


NETWORKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "last state": recurrent,
    "all states": lambda act: recurrent(act, readout="all"),
    "elman": Elman,
    "dense": Dense,
    "twice": Twice,
    "gated": Gated,
    "spiking": Spiking,
    "time first": TimeFirst,
    "beside": Beside,
    "hooked": hooked,
    "perceptron": lambda act: (
        nn.Sequential(nn.Flatten(), nn.Linear(24, 4), act, Shift(1.0), nn.Linear(4, 4), nn.ReLU())
        + nn.Sequential(nn.Linear(4, 3))
    ),
    "convolutional": lambda act: convnet(
        image_shape=SHAPE, classes=3, channels=[2, 2], kernel=3, stride=1, hidden=[4], activation=act
    ),
    "places": lambda act: nn.Sequential(nn.Linear(4, 2), act, nn.Linear(2, 2), nn.Flatten(), nn.Linear(12, 3)),
}


def made(name: str, act: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name](act).double()
    if isinstance(network, Gated | Spiking | Beside):
        (network.b if isinstance(network, Beside) else network.c).requires_grad_(False)  # not called
    for parameter in network.parameters():
        parameter.data.mul_(2.0)
    return network


def above(network: nn.Module) -> Beyond:
    graph = Graph.of(network)
    sigma = (SIGMA,) * len(graph.sites)
    z = noise_at(graph, range(len(sigma)), X, Gaussian(), Independent(), COPIES, torch.Generator().manual_seed(0))
    noisy = graph.noisy(graph.clean(X), z, sigma, keep=True)
    return Beyond.of(graph, noisy, sigma, CrossEntropy(), Gaussian(), Y)


@contextmanager
def at_every_call(network: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Change what the layers return, call by call."""
    calls = iter(range(1000))
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(lambda _, __, v: change(next(calls), v)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("act", [HardThreshold(), nn.Tanh()], ids=["threshold", "tanh"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_losses_are_those_of_the_network_with_a_unit_moved(name: str, act: nn.Module) -> None:
    network = made(name, act)
    beyond = above(network)
    for at in beyond.noisy.seen[:-1]:
        target = torch.randn(at.v.shape, generator=torch.Generator().manual_seed(2), dtype=at.v.dtype)
        units = at.v[0, 0].numel()
        chosen = (torch.arange(units)[:, None, None] + torch.arange(BATCH)) % units  # others for other samples
        chosen = chosen.expand(units, COPIES, BATCH)
        got = beyond.after_moves(at, target, chosen)
        for turn in range(units):
            logits = with_a_unit_moved(network, beyond, at, target, chosen[turn])
            expected = CrossEntropy()(logits, Y.repeat(COPIES)).view(COPIES, BATCH)
            torch.testing.assert_close(got[turn], expected, rtol=1e-9, atol=1e-11)


def with_a_unit_moved(network: nn.Module, beyond: Beyond, at: NoisySite, target: Tensor, unit: Tensor) -> Tensor:
    """The noisy logits [copies * batch, classes] of the network itself; unit: [copies, batch], the moved one."""

    def change(call: int, v: Tensor) -> Tensor:
        layouts, node, own = beyond.graph.layouts, beyond.graph.sites[call], unit.reshape(-1, 1)
        v = layouts.in_front(node, v) + SIGMA * beyond.noisy.seen[call].z.flatten(0, 1)
        if call == at.site:
            v = v.flatten(1).scatter(1, own, target.flatten(0, 1).flatten(1).gather(1, own)).view_as(v)
        return layouts.put_back(node, v)

    with at_every_call(network, change):
        logits: Tensor = network(X.repeat(COPIES, 1, 1, 1))
    return logits


@pytest.mark.parametrize("name", ["last state", "all states", "dense", "elman", "spiking", "perceptron"])
def test_no_linear_layer_is_called_again_for_moved_units(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call would multiply again what no unit changes; they are read by columns of the weight."""
    network, rows, linear = made(name, HardThreshold()), [], functional.linear
    bound = LocalExpectation(sigma=SIGMA, units=3).bind(network, CrossEntropy())
    noise = bound.draw(X, torch.Generator().manual_seed(0))

    def counted(x: Tensor, *others: Tensor) -> Tensor:
        rows.append(len(x))
        return linear(x, *others)

    monkeypatch.setattr(functional, "linear", counted)
    bound.step(X, Y, noise)
    assert set(rows) == {BATCH}
    assert len(rows) <= 2 * len(bound.graph.sites)


@pytest.mark.parametrize("name", ["last state", "all states", "twice"])
def test_a_step_is_one_graph_of_the_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    network, estimator = made(name, HardThreshold()), LocalExpectation(sigma=SIGMA, units=3, choice="weighted")
    compiled, eager = (estimator.bind(network, CrossEntropy(), compile=compiles) for compiles in (True, False))
    noise = eager.draw(X, torch.Generator().manual_seed(0))
    got, expected = (bound.step(X, Y, noise).gradients for bound in (compiled, eager))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_steps_are_mapped_over_noise_and_weights() -> None:
    network = made("dense", HardThreshold())
    bound = LocalExpectation(sigma=SIGMA, units=3).bind(network, CrossEntropy())
    draws = [bound.draw(X, torch.Generator().manual_seed(seed)) for seed in range(2)]
    own = {name: weight.detach() for name, weight in network.named_parameters()}
    stacked = torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *draws)
    by_noise = torch.func.vmap(lambda noise: bound.step(X, Y, noise).gradients)(stacked)
    many = {name: torch.stack([weight, 0.5 * weight]) for name, weight in own.items()}
    by_weight = torch.func.vmap(lambda weights: bound.step_of(weights, X, Y, draws[1]).gradients)(many)
    for name, expected in bound.step(X, Y, draws[1]).gradients.items():
        torch.testing.assert_close(by_noise[name][1], expected)
        torch.testing.assert_close(by_weight[name][0], expected)


def gradients_by_unit(name: str) -> tuple[list[Tensor], Tensor]:
    """For the same noise the gradient with each unit alone evaluated, and with all; every hidden layer has five."""
    bound = LocalExpectation(sigma=SIGMA, units=1).bind(made(name, HardThreshold()), CrossEntropy())
    (part,) = bound.draw(X, torch.Generator().manual_seed(0))

    def gradient(units: Tensor) -> Tensor:
        chosen = {site: units.expand(1, BATCH, len(units)) for site in part.chosen}
        return torch.cat([g.flatten() for g in bound.step(X, Y, [part._replace(chosen=chosen)]).gradients.values()])

    return [gradient(torch.tensor([unit])) for unit in range(5)], gradient(torch.arange(5))


@pytest.mark.parametrize("name", ["all states", "beside", "last state"])
def test_the_mean_over_the_units_is_the_gradient_with_all_of_them(name: str) -> None:
    each, whole = gradients_by_unit(name)
    torch.testing.assert_close(torch.stack(each).mean(0), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["all states", "beside"])
def test_what_the_last_layer_reads_of_a_unit_is_not_sampled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    each, whole = gradients_by_unit(name)
    with monkeypatch.context() as patch:
        patch.setattr(Beyond, "direct_changes", lambda self, at: None)
        others, same = gradients_by_unit(name)
    torch.testing.assert_close(whole, same, rtol=1e-9, atol=1e-12)
    spread, before = (float((torch.stack(some) - whole).square().sum()) for some in (each, others))
    assert spread < (0.5 * before if name == "all states" else 1e-12 * before)
