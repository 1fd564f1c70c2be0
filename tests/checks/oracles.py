"""Exact values of the gradient of E[L]: no sampling, no score, no baseline; nothing that is under test.

`smoothed_gradient` knows linear -> activation -> linear with two hidden units and two logits, for any density, any
elementwise activation and any loss that depends on two logits through their difference. `error_probability`
knows threshold chains of any depth with Gaussian noise and the 0-1 loss. `gradient_under_noise_on_weights` knows
smooth networks.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.stats import qmc
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.losses import Loss
from glr_lightning.noise import Noise

CELLS = 400
"""Cells per axis in `smoothed_gradient`."""
TOLERANCE = 5e-4
"""A bound on its error by parameter; mostly it is below 1e-5, but a jump of the loss across the cells costs more."""

WEIGHTS_TOLERANCE = 2e-3
"""The same for `gradient_under_noise_on_weights` up to sigma = 0.5."""

Function = Callable[[Tensor], Tensor]
Gradient = dict[str, Tensor]


def smoothed_gradient(
    network: nn.Sequential, noise: Noise, sigma: Sequence[float], loss: Loss, x: Tensor, y: Tensor, number: int = CELLS
) -> Gradient:
    """The gradient of the mean of E[L] over a batch, with noise of scale sigma[l] (0: none) at the two layers.

    The one idea: cut the axis of v + sigma z into cells that do NOT move with v. Then, however g jumps,

        E[g(v + sigma z)] = sum_c P_c(v) g(t_c),    P_c(v) = F((b_c - v) / sigma) - F((a_c - v) / sigma),

    and the derivative with respect to v falls on the smooth P_c. No gradient is returned for a layer without noise.
    """
    first, activation, last = network
    weight, bias = last.weight.detach(), last.bias.detach()
    value, slope = smoothed(loss, noise, sigma[1]) if sigma[1] else (of_difference(loss), None)
    gradient = {f"{i}.{name}": torch.zeros_like(p) for i in (0, 2) for name, p in network[i].named_parameters()}
    for image, label in zip(x, y.tolist(), strict=True):
        v = first.weight.detach() @ image + first.bias.detach()
        (t1, p1, dp1), (t2, p2, dp2) = (cells(noise, float(at), sigma[0], activation, number) for at in v)
        h1, h2 = activation(t1)[:, None], activation(t2)[None, :]
        sign = torch.tensor([1.0, -1.0] if label else [-1.0, 1.0], dtype=x.dtype)  # d = wrong logit - right logit
        d = (sign @ weight)[0] * h1 + (sign @ weight)[1] * h2 + sign @ bias
        by_v = torch.stack([dp1 @ value(d) @ p2, p1 @ value(d) @ dp2])
        gradient["0.weight"] += torch.outer(by_v, image) / len(x)
        gradient["0.bias"] += by_v / len(x)
        if slope is not None:
            by_d = p1[:, None] * slope(d) * p2
            gradient["2.weight"] += torch.outer(sign, torch.stack([(by_d * h1).sum(), (by_d * h2).sum()])) / len(x)
            gradient["2.bias"] += sign * by_d.sum() / len(x)
    return {name: g for name, g in gradient.items() if sigma[0 if name.startswith("0.") else 1]}


def cells(noise: Noise, v: float, sigma: float, activation: nn.Module, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points t_c, probabilities P_c(v) and their derivatives P_c'(v); one point v itself without noise."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if sigma == 0:
        return v * one, one, zero
    jumps = activation.cuts if isinstance(activation, PiecewiseConstant) else (0.0,)  # 0: the kink of ReLU
    edges = torch.cat([v + sigma * quantiles(noise, number)[0], torch.tensor(jumps, dtype=torch.float64)]).sort().values
    points = torch.cat([edges[:1] - sigma, 0.5 * (edges[1:] + edges[:-1]), edges[-1:] + sigma])
    z = (edges - v) / sigma
    probability = torch.cat([zero, noise.cdf(z), one]).diff()
    return points, probability, -torch.cat([zero, noise.log_prob(z).exp(), zero]).diff() / sigma


def quantiles(noise: Noise, number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[g(z)]: the midpoint rule in s, where F(z) = s^2 (3 - 2s) tames the tails."""
    s = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    return noise.icdf(s * s * (3 - 2 * s)), 6 * s * (1 - s) / number


@functools.cache
def smoothed(loss: Loss, noise: Noise, sigma: float) -> tuple[Function, Function]:
    """E[loss at d + sigma (z - z')] as a function of the logit difference d, by the same cells; and its derivative."""
    reach = torch.linspace(-9, 9, 2001, dtype=torch.float64).sinh()  # 0, where the 0-1 loss jumps, is an edge
    z, weight = quantiles(noise, CELLS)
    difference_cdf, _ = spline(reach, noise.cdf(reach[:, None] + z) @ weight)
    d = torch.linspace(-6, 6, 601, dtype=torch.float64).sinh()
    probability = difference_cdf((reach - d[:, None]) / sigma).diff(dim=1)
    return spline(d, probability @ of_difference(loss)(0.5 * (reach[1:] + reach[:-1])))


def of_difference(loss: Loss) -> Function:
    """The loss as a function of d = wrong logit - right logit."""

    def function(d: Tensor) -> Tensor:
        logits = torch.stack([torch.zeros_like(d), d], dim=-1).view(-1, 2)
        return loss(logits, torch.zeros(len(logits), dtype=torch.long)).view_as(d)

    return function


def spline(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    """A function through points and its derivative; interpolated in arsinh(x), as the points reach far."""
    inner = CubicSpline(np.arcsinh(x.numpy()), y.numpy())
    return (
        lambda at: torch.from_numpy(inner(np.arcsinh(at.numpy()))),
        lambda at: torch.from_numpy(inner(np.arcsinh(at.numpy()), 1) / np.hypot(1, at.numpy())),
    )


def error_probability(network: nn.Sequential, sigma: Sequence[float | Tensor], x: Tensor, y: Tensor) -> Tensor:
    """P(argmax of two logits != y), the batch's mean, of a chain of weighted layers, thresholds and Flatten.

    Gaussian noise of scale sigma[l] (0: none) at weighted layer l, a number or one for each unit. All patterns of the
    hidden units are counted with their probabilities, so this is exact, and differentiable for autograd where the
    noise is, in its scales too.
    """
    *hidden, last = [module for module in network.modules() if not isinstance(module, nn.Sequential)]
    error = []
    for image, label in zip(x, y.tolist(), strict=True):
        scales = iter(torch.as_tensor(scale, dtype=x.dtype) for scale in sigma)
        h, probability = image[None], torch.ones(1, dtype=x.dtype)  # patterns [patterns, ...] and their probabilities
        for module in hidden:
            if isinstance(module, nn.Linear | nn.Conv2d):
                scale, h = next(scales), module(h)
                v = h
            elif isinstance(module, PiecewiseConstant):
                on = torch.special.ndtr(v / scale) if scale.all() else (v > 0).to(v.dtype)
                units = v[0].numel()
                patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=x.dtype)
                chance = torch.where(patterns > 0, on.flatten(1)[:, None], 1 - on.flatten(1)[:, None]).prod(-1)
                probability = (probability[:, None] * chance).flatten()
                h = patterns.view(-1, *v.shape[1:]).repeat(len(v), *[1] * (v.dim() - 1))
            else:
                h = module(h)
        logits, scale = last(h), next(scales)
        d = logits[:, 1 - label] - logits[:, label]
        spread = scale.square().expand(2).sum().sqrt()  # of the difference of two logits
        wrong = torch.special.ndtr(d / spread) if scale.all() else (d > 0).to(d.dtype)
        error.append(probability @ wrong)
    return torch.stack(error).mean()


def gradient_under_noise_on_weights(
    network: nn.Module, noise: Noise, sigma: float, loss: Loss, x: Tensor, y: Tensor, number: int = 2**14
) -> Gradient:
    """The gradient of E[L(theta + sigma eps)], of a network and a loss with derivatives.

    The derivative may be taken inside: E[dL/dtheta at theta + sigma eps], an integral of a smooth function
    over as many dimensions as there are weights, by scrambled Sobol points through the quantiles of the density.
    """
    shapes = {name: p.shape for name, p in network.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    u = torch.from_numpy(qmc.Sobol(sum(sizes), rng=np.random.default_rng(0)).random(number))
    eps = dict(zip(shapes, noise.icdf(u.clamp(1e-12, 1 - 1e-12)).split(sizes, dim=1), strict=True))

    def at(parameters: Gradient) -> Tensor:
        return loss(torch.func.functional_call(network, parameters, (x,)), y).mean()

    perturbed = {name: p.detach() + sigma * eps[name].unflatten(1, p.shape) for name, p in network.named_parameters()}
    gradients = torch.func.vmap(torch.func.grad(at))(perturbed)
    return {name: gradient.mean(0) for name, gradient in gradients.items()}


def counted_loss(
    network: nn.Sequential, noise: Noise, sigma: float, loss: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """The mean of E[loss(logits)] of a chain whose first threshold has noise of scale sigma before it; no other noise.

    Every pattern of its units is counted with its probability, which carries the derivative with respect to what lies
    below; what lies above is differentiable as usual. `loss` takes logits [batch, classes].
    """
    modules = list(network)
    at = next(i for i, module in enumerate(modules) if isinstance(module, PiecewiseConstant))
    (cut,), (low, high) = modules[at].cuts, modules[at].levels
    v = nn.Sequential(*modules[:at])(x)
    on = 1 - noise.cdf((cut - v) / sigma)
    total = torch.zeros(len(x), dtype=x.dtype)
    for pattern in itertools.product((False, True), repeat=v.shape[1]):
        up = torch.tensor(pattern)
        h = torch.where(up, high, low).to(x.dtype).expand(len(x), -1)
        total = total + torch.where(up, on, 1 - on).prod(1) * loss(nn.Sequential(*modules[at + 1 :])(h))
    return total.mean()
