"""Checks of straight-through, forward gradients and evolution strategies."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant
from glr_lightning.estimators import Estimator, EvolutionStrategies, ForwardGradient, StraightThrough
from glr_lightning.estimators import forward_gradient as module_of_forward_gradient
from glr_lightning.injection import Injection, Joint
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.noise import Noise
from glr_lightning.propagation.graph import Graph
from tests.checks.estimator_cases import (
    SIGMA,
    X,
    Y,
    check_gradient,
    estimate,
    small_network,
)
from tests.checks.oracles import WEIGHTS_TOLERANCE, gradient_under_noise_on_weights
from tests.checks.zscores import repetitions


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def check_straight_through(noise: Noise, activation: PiecewiseConstant, sigma: Any = SIGMA) -> None:
    """The backward pass of one hidden layer written out: dL/dh = W2^T (softmax - onehot), then times the slope."""
    network = small_network(activation)
    got = estimate(StraightThrough(noise=noise, sigma=sigma), network, CrossEntropy())
    first, _, last = network
    v = first(X).detach()
    h = activation(v)
    by_logit = (torch.softmax(last(h), 1) - nn.functional.one_hot(Y, 2)).detach() / len(X)
    slope = torch.zeros_like(v)
    for i, cut in enumerate(activation.cuts):
        jump = activation.levels[i + 1] - activation.levels[i]
        slope += jump * noise.log_prob((cut - v) / sigma[0]).exp() / sigma[0]
    by_v = by_logit @ last.weight.detach() * slope
    expected = {"0.weight": by_v.T @ X, "0.bias": by_v.sum(0), "2.weight": by_logit.T @ h, "2.bias": by_logit.sum(0)}
    assert_same(got.gradients, expected)
    assert torch.equal(got.logits, network(X))  # hard, to the last bit
    assert float(got.loss) == pytest.approx(CrossEntropy()(network(X), Y).mean().item())


def check_all_patterns(injection: Injection, network: nn.Sequential, mean: Estimator, x: Tensor, y: Tensor) -> None:
    """As many copies as there are patterns of signs, one each: their mean is the expectation, to rounding."""
    sizes = [v[0].numel() for v in Graph.of(network).clean(x).preactivations]
    used = 0

    def patterns(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal used
        units = math.prod(shape[2:])
        shift = used if isinstance(injection, Joint) else 0
        used += units
        bits = (torch.arange(shape[0])[:, None] >> (shift + torch.arange(units))) & 1
        return (2.0 * bits - 1.0).to(like.dtype).view(shape[0], 1, *shape[2:]).expand(shape).contiguous()

    copies = 2 ** (sum(sizes) if isinstance(injection, Joint) else max(sizes))
    estimator = ForwardGradient(copies=copies, injection=injection, sigma=SIGMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_of_forward_gradient, "random_signs", patterns)
        got = estimate(estimator, network, CrossEntropy(), x, y)
    assert used == sum(sizes)
    expected = estimate(mean, network, CrossEntropy(), x, y)
    assert_same(got.gradients, expected.gradients)
    assert_same({"loss": got.loss, "logits": got.logits}, {"loss": expected.loss, "logits": expected.logits})


def check_error_of_one_weight(noise: Noise) -> None:
    """Wrong where the weight is not positive: E[L] = F(-w / sigma), so dE[L]/dw = -f(w / sigma) / sigma."""
    w, sigma = 0.3, 0.4
    network = nn.Sequential(nn.Linear(1, 1, bias=False), HardThreshold(), nn.Linear(1, 2)).double()
    network[0].weight.data.fill_(w)
    network[2].weight.data = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    network[2].bias.data = torch.tensor([0.5, -0.5], dtype=torch.float64)
    network[2].requires_grad_(False)
    x, y = torch.tensor([[1.0], [0.2]], dtype=torch.float64), torch.tensor([1, 1])
    expected = {"0.weight": -noise.log_prob(torch.tensor([[w / sigma]], dtype=torch.float64)).exp() / sigma}
    estimator = EvolutionStrategies(noise=noise, sigma=sigma, copies=8)
    check_gradient(repetitions(estimator, network, ZeroOne(), x, y, number=6000), expected, resolution=0.15)


def check_noise_on_weights(noise: Noise, sigma: float = 0.5) -> None:
    """Against the oracle at a scale where the smoothing is no trifle."""
    network = small_network(nn.Tanh())
    expected = gradient_under_noise_on_weights(network, noise, sigma, CrossEntropy(), X, Y)
    samples = repetitions(
        EvolutionStrategies(noise=noise, sigma=sigma, copies=8), network, CrossEntropy(), X, Y, number=4000
    )
    check_gradient(samples, expected, 0.3, WEIGHTS_TOLERANCE)
