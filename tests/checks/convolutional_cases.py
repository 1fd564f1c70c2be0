"""Convolutional networks with poolings, residual blocks and normalisations, and what noise does to them, by hooks.

The package passes noise through a `Chain`; here torch's own forward pass of the network is left as it is, and hooks on
its layers add the noise. So nothing that is under test tells where noise enters, what waits in a residual block, or how
rows are ordered.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.losses import Loss
from glr_lightning.networks import Residual, Shift, Standardise
from glr_lightning.propagation.layer_vjp import has_weights
from tests.checks.zscores import assert_gradient

PIXELS = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
CLASS = torch.tensor([1, 0])
GAIN = 4.0
"""Units far apart for the noise's scale: the steeper the loss, the fewer repetitions know its gradient."""


def drawn(network: nn.Sequential, seed: int) -> nn.Sequential:
    """With weights for which all layers matter, normalisations included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= GAIN / module.weight[0].numel() ** 0.5
            module.bias.data *= 0.2
        elif isinstance(module, nn.GroupNorm):
            module.weight.data.copy_(module.weight.abs() + 0.5)
            module.bias.data *= 0.2
    for layer, after in itertools.pairwise(network.modules()):
        if isinstance(after, nn.GroupNorm):  # which answers noise as little as it answers weights, if they are large
            layer.weight.data /= 3.0
            layer.bias.data /= 3.0
    return network


def pooled(activation: nn.Module) -> nn.Sequential:
    """A stride, a maximum that lets pixels over, a dilation, and an average after the last activation."""
    layers = [nn.Conv2d(1, 2, 3, stride=2, padding=1), activation, nn.MaxPool2d(2, stride=1, padding=1)]
    layers += [nn.Conv2d(2, 2, 2, dilation=2), activation, nn.AvgPool2d(2, stride=1), nn.Flatten(), nn.Linear(8, 2)]
    return drawn(nn.Sequential(*layers), seed=8)


def residual(activation: nn.Module) -> nn.Sequential:
    """A block whose input reaches the sum as it is, and shares the map with what the block makes of it."""
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), activation, Shift(-0.5), nn.Conv2d(2, 2, 1))
    layers = [Standardise(0.5, 0.25), nn.Conv2d(1, 2, 3, stride=2), activation, Residual(body), activation]
    return drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(18, 2)), seed=3)


def projected(activation: nn.Module) -> nn.Sequential:
    """A block with a layer in its shortcut, and one block inside another."""
    inner = Residual(nn.Sequential(activation, nn.Conv2d(2, 2, 1)))
    body = nn.Sequential(nn.Conv2d(2, 2, 3, stride=2, padding=1), inner)
    block = Residual(body, nn.Sequential(nn.Conv2d(2, 2, 1, stride=2)))
    layers = [nn.Conv2d(1, 2, 3, stride=2, padding=1), activation, block, activation]
    return drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2)), seed=46)


def normalised(activation: nn.Module) -> nn.Sequential:
    """Group normalisations before and inside a block; the lower one mixes all places, the last none above it."""
    body = nn.Sequential(nn.Conv2d(4, 2, 3, padding=1), nn.GroupNorm(1, 2), activation, nn.Conv2d(2, 4, 1))
    layers = [nn.Conv2d(1, 4, 3, stride=3), nn.GroupNorm(2, 4), activation, Residual(body), activation]
    return drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2)), seed=18)


NETWORKS = {make.__name__: make for make in (pooled, residual, projected, normalised)}


def weighted(network: nn.Module) -> dict[str, nn.Module]:
    """The layers with weights, by name, in the order in which the network runs through them."""
    return {name: module for name, module in network.named_modules() if has_weights(module)}


@contextlib.contextmanager
def hooks(network: nn.Module, noise: Mapping[str, Tensor], v: dict[str, Tensor], *, cut: bool) -> Iterator[None]:
    """Within it the network's layers of these names add noise to what they return, which goes into `v` before.

    cut: a layer's own gradient stops at its input.
    """

    def after(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            v[name] = output
            return output.detach() + noise[name] if cut else output + noise[name]

        return hook

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].detach(),)

    layers = weighted(network)
    handles = [layers[name].register_forward_hook(after(name)) for name in noise]
    handles += [layers[name].register_forward_pre_hook(before) for name in noise if cut]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def noisy_logits(network: nn.Module, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
    """The plain forward pass with noise at these layers; x and noise have the same rows."""
    with hooks(network, noise, {}, cut=False):
        return network(x)


def sizes(network: nn.Module, x: Tensor) -> dict[str, torch.Size]:
    """The size of one sample's pre-activation at every layer with weights."""
    v: dict[str, Tensor] = {}
    with hooks(network, dict.fromkeys(weighted(network), torch.zeros((), dtype=x.dtype)), v, cut=False):
        network(x[:1])
    return {name: value.shape[1:] for name, value in v.items()}


RARE = 1e-4
"""Share of a gradient that may come from events that draws never meet; an estimate by probabilities has it."""
PARTS = 100
"""Independent parts of an oracle's draws. Their mean has Student's t: of 1e-6 false alarms it makes 4e-6."""


def pathwise(
    network: nn.Module, loss: Loss, passes: Sequence[Sequence[str]], sigma: float, x: Tensor, y: Tensor, rows: int
) -> dict[str, Tensor]:
    """Per pass, the gradient of E[L] under Gaussian noise at its layers, by autograd through the noisy network, in
    independent parts [PARTS, *parameter]. For smooth networks and losses; pairs z, -z."""
    return _in_parts(network, passes, x, y, rows, lambda *draw: _path(network, loss, sigma, *draw))


def plain_ratio(
    network: nn.Module, loss: Loss, passes: Sequence[Sequence[str]], sigma: float, x: Tensor, y: Tensor, rows: int
) -> dict[str, Tensor]:
    """As `pathwise`, by the likelihood ratio in its plainest form: mirrored pairs, the plain score, no baseline."""
    return _in_parts(network, passes, x, y, rows, lambda *draw: _score(network, loss, sigma, *draw))


def _in_parts(
    network: nn.Module,
    passes: Sequence[Sequence[str]],
    x: Tensor,
    y: Tensor,
    rows: int,
    one: Callable[[Tensor, Tensor, dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    generator, shapes, copies = torch.Generator().manual_seed(11), sizes(network, x), rows // PARTS
    gradients: dict[str, Tensor] = {}
    for names in passes:
        found = []
        for _ in range(PARTS):
            half = {n: torch.randn(copies // 2 * len(x), *shapes[n], generator=generator, dtype=x.dtype) for n in names}
            z = {name: torch.cat([value, -value]) for name, value in half.items()}
            found.append(one(x.repeat(copies, 1, 1, 1), y.repeat(copies), z))
        gradients |= {name: torch.stack([part[name] for part in found]) for name in found[0]}
    return gradients


def check_against(samples: dict[str, Tensor], oracle: dict[str, Tensor], resolution: float, what: str) -> None:
    """Samples [n, *parameter] of an estimate have the mean of an oracle that was drawn in PARTS, layer by layer."""
    assert samples.keys() == oracle.keys()
    for layer in sorted({name.rsplit(".", 1)[0] for name in oracle}):
        names = [name for name in oracle if name.rsplit(".", 1)[0] == layer]
        drawn = torch.cat([oracle[name].flatten(1) for name in names], dim=1)
        got = torch.cat([samples[name].flatten(1) for name in names], dim=1).unflatten(0, (PARTS, -1)).mean(1)
        # differences of parts hold the noise of both sides
        expected = drawn.mean(0)
        what_layer = f"{what}, layer {layer}"
        assert_gradient(got - drawn + expected, expected, resolution=resolution, tolerance=RARE, what=what_layer)


def _parameters(network: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    layers = weighted(network)
    return {f"{n}.{p}": value for n in names for p, value in layers[n].named_parameters()}


def _path(network: Any, loss: Loss, sigma: float, x: Tensor, y: Tensor, z: dict[str, Tensor]) -> dict[str, Tensor]:
    parameters = _parameters(network, z)
    mean = loss(noisy_logits(network, x, {n: sigma * value for n, value in z.items()}), y).mean()
    return dict(zip(parameters, torch.autograd.grad(mean, list(parameters.values())), strict=True))


def _score(network: Any, loss: Loss, sigma: float, x: Tensor, y: Tensor, z: dict[str, Tensor]) -> dict[str, Tensor]:
    parameters, v = _parameters(network, z), {}
    with hooks(network, {n: sigma * value for n, value in z.items()}, v, cut=True):
        losses = loss(network(x), y).detach()
    # the score of -z is the opposite of z's, so the even part of the loss cancels
    products = [(losses.view(-1, *[1] * (z[n].dim() - 1)) * z[n] / sigma * v[n]).sum() for n in z]
    total = torch.stack(products).sum() / len(x)
    return dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
