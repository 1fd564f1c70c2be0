"""Checks of what a unit can reach, and of the baseline that is free of a unit's own noise."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_lightning.activations import HardThreshold
from glr_lightning.baselines import LeaveOneOut
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.estimators.passes import CleanBatch
from glr_lightning.injection import Injection
from glr_lightning.losses import CrossEntropy
from glr_lightning.networks import Residual, Shift, Sine, Standardise
from glr_lightning.noise import Noise
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.probing import ModuleFacts
from glr_lightning.propagation.receptive_field import Fields, fields_of
from glr_lightning.sampling import Draws, Sampler
from tests.checks.convolutional_cases import CLASS, PIXELS, residual

HEIGHT, WIDTH = 12, 11


def fields(network: nn.Module, x: Tensor, site: int = 0) -> Fields | None:
    graph = Graph.of(network)
    return fields_of(graph, graph.shapes(x), site)


def claimed(found: Fields) -> Tensor:
    """[height, width, height', width'] bool: does a place of the layer reach a place of the readout, as is claimed?"""
    rows, columns = (part[:, of] > 0 for part, of in zip(found.members, found.of_place, strict=True))
    return rows.T[:, None, :, None] & columns.T[None, :, None, :]


def moved(network: nn.Module, x: Tensor, site: int = 0) -> Tensor:
    """The same of the network itself: all channels of a place of the layer are moved, a place at a time."""
    graph = Graph.of(network)
    clean = graph.clean(x[:1])
    v = clean.preactivations[site][0]
    places = torch.eye(v[0].numel(), dtype=v.dtype).view(-1, 1, *v.shape[1:])
    kick = 3.0 * places * torch.randn(len(v), 1, 1, generator=torch.Generator().manual_seed(1), dtype=v.dtype)
    values = list(clean.values)
    values[graph.sites[site]] = v + kick
    for number in graph.behind([site])[1:]:
        values[number] = graph.call(number, values)
    return ((values[graph.readout] - clean.readout).abs() > 1e-10).any(1).unflatten(0, v.shape[1:])


def under_a_readout(modules: Sequence[nn.Module], x: Tensor) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, 2, 1), *modules).double()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(body(x).flatten(1).shape[1], 2).double())


def window(rng: random.Random) -> dict[str, Any]:
    return {"kernel_size": rng.randint(1, 3), "stride": rng.choice([1, 1, 2, (2, 1), 3]), "padding": rng.choice([0, 1])}


def random_module(rng: random.Random, depth: int = 0) -> nn.Module:
    kind = rng.choice(["conv", "conv", "max", "average", "residual", "elementwise"])
    options = window(rng)
    if kind == "conv":
        return nn.Conv2d(2, 2, **options, dilation=rng.choice([1, 1, 2, (1, 2)]), groups=rng.choice([1, 2]))
    if kind in ("max", "average"):
        options["kernel_size"] = rng.choice([2, 3, [2, 3]])  # a list is what a configuration gives
        options["ceil_mode"] = rng.choice([True, False])
        return nn.MaxPool2d(**options, dilation=rng.choice([1, 2])) if kind == "max" else nn.AvgPool2d(**options)
    if kind == "residual" and depth < 2:
        kernel = rng.choice([1, 3])
        inner = [nn.Conv2d(2, 2, kernel, padding=kernel // 2), random_elementwise(rng)]
        if rng.random() < 0.4:
            inner.append(Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))))
        other = rng.choice([1, 3])  # the shortcut may reach further than the body
        shortcut = nn.Sequential(nn.Conv2d(2, 2, other, padding=other // 2))
        return Residual(nn.Sequential(*inner), shortcut if rng.random() < 0.5 else None)
    return random_elementwise(rng)


def random_elementwise(rng: random.Random) -> nn.Module:
    every = (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU, lambda: Shift(0.3), Sine, lambda: Standardise(0.5, 0.25))
    return rng.choice(every)()


def random_network(seed: int, x: Tensor) -> nn.Sequential:
    """A stack whose map has not shrunk to nothing."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        modules = [random_module(rng) for _ in range(rng.randint(1, 4))]
        try:
            network = under_a_readout(modules, x)
        except RuntimeError:  # a window larger than its map
            continue
        if network(x).isfinite().all():  # no maximum over nothing but padding
            return network


def check_never_too_small(seeds: Sequence[int] = range(80)) -> None:
    x = torch.rand(1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known, inside = 0, 0
    for seed in seeds:
        network = random_network(seed, x)
        for site in range(len(Graph.of(network).sites) - 1):
            found = fields(network, x, site)
            if found is not None:
                known, changed = known + 1, moved(network, x, site)
                inside += int((claimed(found) & ~changed).sum() == 0)
                assert not (changed & ~claimed(found)).any(), f"a place is missing: seed {seed}, site {site}, {network}"
    assert known >= len(seeds)  # or nothing was tested
    assert inside > 0.8 * known  # most claims are no larger than they need be; dilated windows and maxima leave gaps


class Functional(nn.Module):
    """A map of places by a function of the network and a first convolution's output, and a linear layer over it."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], x: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1)
        self.gate, self.add = nn.Conv2d(2, 2, 1), Mixed()
        self.double()
        self.last = nn.Linear(function(self, self.first(x)).flatten(1).shape[1], 2).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        logits: Tensor = self.last(torch.flatten(self.function(self, h), 1))
        return logits


class Mixed(nn.Module):
    """Adds the mean over all places to each; it is an attribute whose name is that of a sum."""

    facts = ModuleFacts()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b.mean((2, 3), keepdim=True)


def every_conv(n: Any, h: Tensor) -> Tensor:
    """All layers in use, place by place or nearly."""
    mixed: Tensor = n.second(h) + n.gate(h)
    return mixed


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "plain": every_conv,
    "max_pool": lambda n, h: functional.max_pool2d(every_conv(n, h), 2),
    "average": lambda n, h: functional.avg_pool2d(every_conv(n, h), 3, stride=1),
    "residual": lambda n, h: h + torch.tanh(every_conv(n, h)),
    "mean_added": lambda n, h: every_conv(n, h) + h.mean((2, 3), keepdim=True),
    "rows_added": lambda n, h: every_conv(n, h) + h.amax(2, keepdim=True),
    "columns_multiplied": lambda n, h: every_conv(n, h) * h.mean(3, keepdim=True),
    "gate": lambda n, h: n.second(h) * torch.sigmoid(n.gate(h.mean((2, 3), keepdim=True))),
    "channels": lambda n, h: torch.cat([n.second(h), n.gate(h)], 1),
    "flipped": lambda n, h: every_conv(n, h) + h.flip(3),
    "rolled": lambda n, h: every_conv(n, h) + h.roll(2, 2),
    "clamped": lambda n, h: every_conv(n, h).clamp(max=h.mean((2, 3), keepdim=True)),
    "a_module_of_that_name": lambda n, h: n.add(every_conv(n, h), h),
    "padded": lambda n, h: functional.pad(every_conv(n, h), (3, 0, 0, 0)),
    "strided": lambda n, h: every_conv(n, h)[:, :, ::2],
    "softmax": lambda n, h: every_conv(n, h) * h.softmax(3),
}


def check_functional(name: str) -> int:
    """No claim is too small; returns how many sites have one."""
    x = torch.rand(1, 1, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network, known = Functional(FUNCTIONS[name], x), 0
    for site in range(3):
        found = fields(network, x, site)
        if found is not None:
            known += 1
            assert not (moved(network, x, site) & ~claimed(found)).any(), f"a place is missing: {name}, site {site}"
    return known


@final
@dataclass(frozen=True)
class Written(Sampler):
    """Hands out draws that were written down for each layer by its shape; groups as another sampler's."""

    inner: Sampler
    draws: dict[torch.Size, Tensor]

    def group_size(self, copies: int) -> int:
        return self.inner.group_size(copies)

    def group(self, copies: int, device: torch.device) -> Tensor:
        return self.inner.group(copies, device)

    def __call__(
        self, noise: Noise, copies: int, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype
    ) -> Draws:
        return Draws(self.draws[torch.Size(shape)], self.group(copies, torch.device("cpu")))


def weights_of(
    estimator: LikelihoodRatio, network: nn.Sequential, site: int, draws: dict[torch.Size, Tensor]
) -> tuple[Tensor, Tensor]:
    """(losses [copies, batch], the weight of every draw's score [copies, batch, 1, height, width])."""
    graph = Graph.of(network)
    clean, sigma, loss = graph.clean(PIXELS), (0.7,) * len(graph.sites), CrossEntropy()
    estimator = replace(estimator, sampling=Written(estimator.sampling, draws))
    sites = next(sites for sites in estimator.injection.passes(len(sigma)) if site in sites)
    batch = CleanBatch(graph, clean, sigma, loss, CLASS)
    (part,) = estimator.draws_of_pass(graph, PIXELS, sites, torch.Generator())
    noisy, losses = batch.run(part.z)
    found = fields_of(graph, graph.shapes(PIXELS), site)
    assert found is not None
    return losses, estimator._weight(batch, noisy, losses, estimator.sampling.group(len(losses), losses.device), found)


def check_own_noise_is_no_part_of_the_baseline(
    injection: Injection, sampling: Sampler, baseline: Any = None, make: Any = residual
) -> None:
    """L - b moves by what L moves, to rounding, when the noise of a unit and of its partner is drawn again."""
    network = make(HardThreshold())
    options = {"copies": 8, "sampling": sampling, "injection": injection, "baseline": baseline or LeaveOneOut()}
    estimator = LikelihoodRatio(**options)
    generator, sites = torch.Generator().manual_seed(6), Graph.of(network).clean(PIXELS).preactivations
    half = {v.shape: torch.randn(4, *v.shape, generator=generator, dtype=v.dtype) for v in sites}
    draws = {shape: torch.cat([z, -z]) for shape, z in half.items()}  # copies 2 and 6 are partners
    shape, moved_losses = sites[0].shape, 0
    losses, weights = weights_of(estimator, network, 0, draws)
    for row, column in itertools.product(range(shape[2]), range(shape[3])):
        other = draws[shape].clone()
        fresh = 3 * torch.randn(shape[:2], generator=generator, dtype=other.dtype)  # all channels of the place
        for copy, side in ((2, 1), (6, -1)):
            other[copy, :, :, row, column] = side * fresh
        new_losses, new_weights = weights_of(estimator, network, 0, draws | {shape: other})
        change = (new_weights - weights)[:, :, 0, row, column][[2, 6]]
        torch.testing.assert_close(change, (new_losses - losses)[[2, 6]], rtol=1e-10, atol=1e-12, msg="own noise")
        moved_losses += int((new_losses != losses).sum())
    assert moved_losses > 4
