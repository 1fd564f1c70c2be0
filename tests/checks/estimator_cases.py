"""Small networks, batches and checks that the tests of the estimators share.

Expected gradients come from tests/oracles.py and from closed forms, samples from `repetitions`: thousands of
independent estimates in one call. Everything statistical is in float64; tests/zscores.py states the convention.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import (
    Estimator,
    Hybrid,
    LikelihoodRatio,
    StraightThrough,
)
from glr_lightning.estimators.settings import IdleSettingError
from glr_lightning.injection import Injection
from glr_lightning.losses import Loss, ZeroOne
from glr_lightning.noise import Noise
from tests.checks.groups import member, options
from tests.checks.oracles import (
    TOLERANCE,
    error_probability,
    smoothed_gradient,
)
from tests.checks.zscores import assert_gradient, repetitions

SCORES = ("plain", "conditional", "coupled", "auto")
SIGMA = (0.8, 1.3)  # a scale of its own for each layer, so that taking the wrong one shows
REPETITIONS, RESOLUTION = 3000, 0.5  # in every combination a gradient that is half as long or half as long again shows

X = torch.tensor([[0.9, 0.1, -0.4], [-0.3, 0.8, 0.5], [0.2, -0.7, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 0])

NOISES = {name: member("noise", name) for name in options("noise")}
ADMISSIBLE = {name: noise for name, noise in NOISES.items() if noise.admissible}
every_density = pytest.mark.parametrize("noise", ADMISSIBLE.values(), ids=ADMISSIBLE.keys())


def small_network(activation: nn.Module) -> nn.Sequential:
    """3-2-2, with weights for which no layer's gradient vanishes under any loss, activation or density."""
    network = nn.Sequential(nn.Linear(3, 2), activation, nn.Linear(2, 2)).double()
    weights = ([[1.0, -0.6, 0.3], [-0.5, 0.8, 0.7]], [0.2, -0.1], [[1.1, -0.7], [-0.8, 1.3]], [0.1, -0.05])
    for parameter, values in zip(network.parameters(), weights, strict=True):
        parameter.data = torch.tensor(values, dtype=torch.float64)
    return network


def small_convnet() -> nn.Sequential:
    """Stride 2 over 5 x 5 pixels, 2 channels: 8 threshold units, whose 256 patterns the oracle counts."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), HardThreshold())
    network = nn.Sequential(features, nn.Flatten(), nn.Linear(8, 2)).double()
    network[2].weight.data.mul_(3.0)
    return network


def network_for(estimator: Estimator) -> nn.Sequential:
    """One that the estimator accepts."""
    return small_network(HardThreshold() if isinstance(estimator, StraightThrough | Hybrid) else nn.Tanh())


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Branching(OneLayer):
    """What it calls depends on the values of its input, so it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


IMAGES = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([1, 0])


def estimate(estimator: Estimator, network: nn.Module, loss: Loss, x: Tensor = X, y: Tensor = Y, seed: int = 0) -> Any:
    return estimator.estimate(network, loss, x, y, generator=torch.Generator(x.device).manual_seed(seed))


def effective(estimator: Any, network: nn.Module, loss: Loss) -> Any:
    """The estimator with the settings that have no effect on this network and loss at their defaults.

    Raises:
        ConfigurationError: it cannot train them at all.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(estimator)}
    while True:
        try:
            estimator.check(network, loss)
        except IdleSettingError as idle:
            name = (idle.option or "").removeprefix("estimator.")
            assert getattr(estimator, name) != defaults[name]
            estimator = replace(estimator, **{name: defaults[name]})
        else:
            return estimator


def flat(gradient: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in names])


# ---- checks that the planted defects must turn red ------------------------------------------------------------------


def check_gradient(
    samples: dict[str, Tensor], expected: dict[str, Tensor], resolution: float, tolerance: float = 0.0, what: str = ""
) -> None:
    """Layer by layer, because one layer's noise would hide another's error."""
    assert samples.keys() == expected.keys()
    layers = {name.rsplit(".", 1)[0] for name in expected}
    for layer in sorted(layers):
        names = [name for name in expected if name.rsplit(".", 1)[0] == layer]
        got = torch.cat([samples[name].flatten(1) for name in names], dim=1)
        target = flat(expected, names)
        assert_gradient(got, target, tolerance=tolerance, resolution=resolution, what=f"{what} layer {layer}")


def reference(
    network: nn.Sequential, noise: Noise, injection: Injection, loss: Loss, sigma: Sequence[float] = SIGMA
) -> dict[str, Tensor]:
    """Per pass of the injection the gradient of E[L] under noise at that pass's layers alone."""
    gradient: dict[str, Tensor] = {}
    for sites in injection.passes(2):
        scales = [sigma[site] if site in sites else 0.0 for site in range(2)]
        gradient |= smoothed_gradient(network, noise, scales, loss, X, Y)
    return gradient


def check_unbiased(
    estimator: LikelihoodRatio,
    activation: nn.Module,
    loss: Loss,
    *,
    number: int = REPETITIONS,
    resolution: float = RESOLUTION,
) -> None:
    """The mean estimate on the small network is the gradient of what the injection smooths."""
    estimator = replace(estimator, sigma=SIGMA)
    network = small_network(activation)
    samples = repetitions(estimator, network, loss, X, Y, number=number)
    check_gradient(samples, reference(network, estimator.noise, estimator.injection, loss), resolution, TOLERANCE)


def check_unbiased_with_stride(injection: Injection, *, number: int = 4000, resolution: float = 0.3) -> None:
    """The same through a strided convolution, against the sum over all patterns of its threshold units."""
    network = small_convnet()
    estimator = LikelihoodRatio(sigma=(0.3, 0.5), copies=4, injection=injection)
    samples = repetitions(estimator, network, ZeroOne(), IMAGES, LABELS, number=number)
    check_gradient(samples, enumerated(network, estimator, IMAGES, LABELS), resolution)


def enumerated(network: nn.Sequential, estimator: LikelihoodRatio, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of the exact 0-1 error of a threshold chain, pass by pass of the injection."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert isinstance(estimator.sigma, tuple)
    gradient: dict[str, Tensor] = {}
    for sites in estimator.injection.passes(len(layers)):
        scales = [s if site in sites else 0.0 for site, s in enumerate(estimator.sigma)]
        names = [f"{layers[site]}.{name}" for site in sites for name in ("weight", "bias")]
        error = error_probability(network, scales, x, y)
        parameters = [network.get_parameter(name) for name in names]
        gradient |= dict(zip(names, torch.autograd.grad(error, parameters), strict=True))
    return gradient


@final
class Margin(Loss):
    """L = wrong logit - right logit of two."""

    differentiable = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        right = logits.gather(1, labels[:, None]).squeeze(1)
        return logits.sum(1) - 2 * right
