"""Networks that only a trace can take, their twins, and the exact gradients under noise at all their calls.

In each of them a call of `act` reads the output of every layer but the last, in the order of the calls: so the smoothed
error of a threshold network is a sum over the patterns of its units, whatever lies between.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import Estimator, LikelihoodRatio
from glr_lightning.losses import CrossEntropy, Loss
from glr_lightning.propagation.graph import Graph
from tests.checks.estimator_cases import check_gradient, estimate
from tests.checks.zscores import assert_gradient, repetitions

SIGMA = 0.8
X = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1])


class Residual(nn.Module):
    """c(h + act(b(h))), a functional residual."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(6, 3), nn.Linear(3, 3), nn.Linear(3, 2), act

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        logits: Tensor = self.c(h + self.act(self.b(h)))
        return logits


class SmoothAbove(Residual):
    """The same with a smooth layer above."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__(act)
        self.last = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(super().forward(x)))
        return logits


class Branches(nn.Module):
    """Two branches side by side."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(6, 3), nn.Linear(6, 2), nn.Linear(5, 2), act

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.c(torch.cat([self.act(self.a(x)), self.act(self.b(-x))], 1))
        return logits


class Recurrent(nn.Module):
    """Three steps of one cell, Linear over [x_t, h]; it reads two numbers at a time."""

    def __init__(self, act: nn.Module, cells: int = 1) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.Linear(4, 2) for _ in range(cells))
        self.out, self.act = nn.Linear(2, 2), act

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 2)
        for t in range(3):
            cell = self.cells[t if len(self.cells) > 1 else 0]
            h = self.act(cell(torch.cat([x[:, 2 * t : 2 * t + 2], h], 1)))
        logits: Tensor = self.out(h)
        return logits


class Tied(nn.Module):
    """Two layers with one weight, and a bias each."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.c.weight, self.act = self.b.weight, act

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        h = self.act(self.c(self.act(self.b(h)) - 0.5))
        logits: Tensor = self.d(h)
        return logits


class Tokens(nn.Module):
    """Linear layers over the two tokens that x holds, one after another."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(2, 2), act

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x.view(x.shape[0], 2, 3)))
        logits: Tensor = self.c(self.act(self.b(h)).flatten(1))
        return logits


Make = Callable[[nn.Module], nn.Module]
NETWORKS: dict[str, Make] = {
    "residual": Residual,
    "branches": Branches,
    "recurrent": Recurrent,
    "tied": Tied,
    "tokens": Tokens,
}
SEEDS: dict[Make, int] = {Residual: 19, Branches: 19, Recurrent: 21, Tied: 57, Tokens: 49}
"""Weights for which the gradient of no layer is small, whatever is noisy."""


def made(make: Make, act: nn.Module) -> Any:
    """A network with the weights of its seed."""
    torch.manual_seed(SEEDS.get(make, 0))
    network = make(act).double()
    for parameter in network.parameters():
        parameter.data.mul_(2.0)
    return network


def twin_of(network: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """The same function with separate weights for each call, and the shared parameter's name of each of its own."""
    twin = copy.deepcopy(network)
    if isinstance(twin, Recurrent):
        twin.cells = nn.ModuleList(copy.deepcopy(twin.cells[0]) for _ in range(3))
    if isinstance(twin, Tied):
        twin.c.weight = nn.Parameter(twin.b.weight.detach().clone())
    shared = {"cells.1.": "cells.0.", "cells.2.": "cells.0.", "c.weight": "b.weight"}
    tied = isinstance(twin, Recurrent | Tied)
    names = {}
    for name, _ in twin.named_parameters():
        start = next((s for s in shared if tied and name.startswith(s)), "")
        names[name] = shared.get(start, "") + name.removeprefix(start)
    return twin, names


def summed(gradients: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """A twin's gradients, added up by the names of the shared parameters."""
    total: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        total[names[name]] = total.get(names[name], torch.zeros_like(gradient)) + gradient
    return total


def check_twin(estimator: Estimator, make: Make, act: nn.Module, loss: Loss) -> None:
    """With the same noise at the same calls, shared weights get the sum of the gradients of separate ones."""
    network = made(make, act)
    twin, names = twin_of(network)
    assert len(set(names.values())) < len(names)
    got, apart = (estimate(estimator, n, loss, X, Y).gradients for n in (network, twin))
    torch.testing.assert_close(got, summed(apart, names), rtol=1e-10, atol=1e-12)


# ---- exact gradients -------------------------------------------------------------------------------------------------


class Patterns(nn.Module):
    """In place of a threshold: call t returns the t-th part of every pattern, whose probability is kept.

    Args:
        sizes: the units of each call.
        scales: the noise scale before each call, 0 for none.
    """

    def __init__(self, sizes: Sequence[int], scales: Sequence[Any]) -> None:
        super().__init__()
        self.scales = scales
        patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=sum(sizes))), dtype=torch.float64)
        self.patterns, self.parts = patterns, patterns.split(list(sizes), 1)
        self.start()

    def start(self) -> None:
        self.calls, self.probability = 0, torch.ones(len(self.patterns), dtype=torch.float64)

    def forward(self, v: Tensor) -> Tensor:
        pattern, scale = self.parts[self.calls], self.scales[self.calls]
        self.calls += 1
        sign, shape = 2 * pattern - 1, v.shape[1:]
        noisy = isinstance(scale, Tensor) or scale > 0
        v = v.flatten(1)
        each = torch.special.ndtr(sign * v / scale) if noisy else ((v > 0) == (pattern > 0)).to(v.dtype)
        self.probability = self.probability * each.prod(1)
        return pattern.view(-1, *shape)


NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(80))


def smoothed_loss(network: Any, scales: Sequence[Any], x: Tensor = X, y: Tensor = Y) -> Tensor:
    """E[cross entropy] of a threshold network, the batch's mean: a sum over the patterns of its units.

    Args:
        network: thresholds `act`, and two logits, whose noise is integrated over by quadrature.
        scales: of the Gaussian noise before each call of `act`, and of that at the logits.
        x: inputs.
        y: labels.
    """
    sizes = [shape.numel() for shape in Graph.of(network).shapes(x).sites]
    threshold = network.act
    patterns = Patterns(sizes[: len(scales) - 1], scales[:-1])
    network.act = patterns
    try:
        total = torch.zeros((), dtype=x.dtype)
        for image, label in zip(x, y, strict=True):
            patterns.start()
            logits = network(image.expand(len(patterns.patterns), -1))
            wrong = logits[:, 1 - int(label)] - logits[:, int(label)]
            values = functional.softplus(wrong[:, None] + 2**0.5 * scales[-1] * NODES)
            total = total + (patterns.probability * (values @ WEIGHTS)).sum() / WEIGHTS.sum() / len(x)
    finally:
        network.act = threshold
    return total


def exact(network: nn.Module, *, layerwise: bool) -> dict[str, Tensor]:
    """The gradient under noise at all sites, or for each layer under noise at its sites alone; by shared names."""
    twin, names = twin_of(network)
    graph = Graph.of(network)
    total: dict[str, Tensor] = {}
    for layers in [[number] for number in range(len(graph.layers))] if layerwise else [range(len(graph.layers))]:
        noisy = graph.sites_of(layers)
        value = smoothed_loss(twin, [SIGMA if s in noisy else 0.0 for s in range(len(graph.sites))])
        parameters = dict(twin.named_parameters())
        own = [f"{Graph.of(twin).nodes[Graph.of(twin).sites[s]].name}.{p}" for s in noisy for p in ("weight", "bias")]
        gradients = torch.autograd.grad(value, [parameters[name] for name in own])
        for name, gradient in summed(dict(zip(own, gradients, strict=True)), names).items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + gradient
    return total


def check_exact(estimator: Any, make: Make, *, number: int = 4000, resolution: float = 0.5) -> None:
    """The mean estimate is the gradient of the sum over all patterns."""
    network, estimator = made(make, HardThreshold()), replace(estimator, sigma=SIGMA)
    expected = exact(network, layerwise=estimator.objective == "layerwise")
    samples = repetitions(estimator, network, CrossEntropy(), X, Y, number=number)
    check_gradient(samples, {name: expected[name] for name in samples}, resolution, what=make.__name__)


def check_scales(make: Make, *, number: int = 8000, resolution: float = 0.5) -> None:
    """The gradient by a layer's noise scale is the sum over all its calls."""
    network = made(make, HardThreshold())
    graph = Graph.of(network)
    scales = [torch.tensor(0.6 + 0.2 * layer, dtype=torch.float64) for layer in range(len(graph.layers))]
    leaves = [scale.clone().requires_grad_() for scale in scales]
    error = smoothed_loss(network, [leaves[layer] for layer in graph.layer_of])
    expected = torch.stack([s * g for s, g in zip(scales, torch.autograd.grad(error, leaves), strict=True)]).detach()
    estimator = LikelihoodRatio(copies=8, sigma=tuple(scales))
    generator = torch.Generator().manual_seed(0)

    def once(_: Tensor) -> Tensor:
        return torch.stack(estimator.estimate(network, CrossEntropy(), X, Y, generator=generator).log_sigma)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        samples = torch.func.vmap(once, randomness="different")(torch.zeros(number))
    assert_gradient(samples, expected, resolution=resolution, what="log sigma")


@contextmanager
def noise_at_calls(network: nn.Module, noise: Sequence[Tensor]) -> Iterator[None]:
    """Add noise [rows, units] to the outputs of the layers, call by call."""
    calls = iter(noise)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda _, __, v: v + next(calls)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_noisy_pass(make: Make) -> None:
    """Noise at any sites gives the logits that torch gives with the same noise at these calls."""
    network = made(make, HardThreshold())
    graph, copies = Graph.of(network), 3
    generator = torch.Generator().manual_seed(0)
    clean = graph.clean(X)
    shapes = [(copies, *v.shape) for v in clean.preactivations]
    every = {s: torch.randn(shape, generator=generator, dtype=X.dtype) for s, shape in enumerate(shapes)}
    numbers = range(1, len(every) + 1)
    for sites in (sites for number in numbers for sites in itertools.combinations(every, number)):
        noisy = graph.noisy(clean, {site: every[site] for site in sites}, [SIGMA] * len(every))
        added = [SIGMA * z.flatten(0, 1) * (site in sites) for site, z in every.items()]
        with noise_at_calls(network, added):
            torch.testing.assert_close(noisy.logits, network(X.repeat(copies, 1)))


def autograd(network: nn.Module, loss: Loss | None = None) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    value = (loss or CrossEntropy())(network(X), Y).mean()
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


class ReadTwice(nn.Module):
    """A threshold and another call read the same pre-activation, so the loss does not depend on its cell alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.act = nn.Linear(6, 3), nn.Linear(3, 2), HardThreshold()

    def forward(self, x: Tensor) -> Tensor:
        v = self.a(x)
        logits: Tensor = self.c(self.act(v) + 0.3 * v)
        return logits


def check_read_twice() -> None:
    """No cell is averaged over: the score is the plain one."""
    network = ReadTwice().double()
    auto, plain = (LikelihoodRatio(copies=8, score=score) for score in ("auto", "plain"))  # type: ignore[arg-type]
    got, expected = (estimate(estimator, network, CrossEntropy(), X, Y).gradients for estimator in (auto, plain))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
