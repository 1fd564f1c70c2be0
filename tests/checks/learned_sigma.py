"""A check of the gradient by the noise scales."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.injection import Injection
from glr_lightning.losses import Loss, ZeroOne
from glr_lightning.training.callbacks.learned_sigma import log_scales
from tests.checks.estimator_cases import SIGMA, X, Y, small_network
from tests.checks.oracles import error_probability
from tests.checks.zscores import assert_gradient

ERROR = ZeroOne()
DEFAULT = LikelihoodRatio(copies=4, sigma=SIGMA)


def log_sigma_gradients(
    estimator: LikelihoodRatio,
    network: nn.Module,
    scales: list[Tensor],
    x: Tensor,
    y: Tensor,
    number: int,
    loss: Loss = ERROR,
) -> list[Tensor]:
    """`number` independent estimates, for each layer [number, scales of the layer]."""
    generator = torch.Generator().manual_seed(0)
    learned = replace(estimator, sigma=tuple(scales))

    def once(_: Tensor) -> tuple[Tensor, ...]:
        return learned.estimate(network, loss, x, y, generator=generator).log_sigma

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        samples = torch.func.vmap(once, randomness="different")(torch.zeros(number))
    return [layer.reshape(number, -1) for layer in samples]


def exact(injection: Injection, network: nn.Sequential, scales: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """d error / d log sigma = sigma d error / d sigma, of the exact error of each pass of the injection."""
    gradients: dict[int, Tensor] = {}
    for sites in injection.passes(len(scales)):
        leaves = [scale.clone().requires_grad_() for scale in scales]
        noisy = [leaf if site in sites else 0.0 for site, leaf in enumerate(leaves)]
        found = torch.autograd.grad(error_probability(network, noisy, x, y), [leaves[site] for site in sites])
        gradients |= {site: (leaves[site] * g).detach() for site, g in zip(sites, found, strict=True)}
    return [gradients[site] for site in range(len(scales))]


def scales_of(network: nn.Module, per: str, estimator: LikelihoodRatio = DEFAULT) -> list[Tensor]:
    """Scales that all differ, so that taking another unit's shows."""
    scales = [p.detach().double().exp() for p in log_scales(estimator, network, per)]
    return [scale * torch.linspace(0.8, 1.2, scale.numel()).double().view_as(scale) for scale in scales]


def check_scale_gradient(
    estimator: LikelihoodRatio, per: str, *, number: int = 20_000, resolution: float = 0.3
) -> None:
    """The mean is the derivative of the exact error of a threshold network."""
    network = small_network(HardThreshold())
    scales = scales_of(network, per)
    samples = log_sigma_gradients(estimator, network, scales, X, Y, number)
    for site, expected in enumerate(exact(estimator.injection, network, scales, X, Y)):
        assert_gradient(samples[site], expected.flatten(), resolution=resolution, what=f"log sigma of layer {site}")
