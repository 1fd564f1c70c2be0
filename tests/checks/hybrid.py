"""Checks of the hybrid estimator."""

from functools import partial

import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import Hybrid
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.noise import Gaussian
from tests.checks.estimator_cases import SIGMA, X, Y, check_gradient, small_network
from tests.checks.oracles import counted_loss, error_probability
from tests.checks.zscores import repetitions


def check_hybrid(
    network: nn.Sequential, loss: Loss, exact: Tensor, sigma: tuple[float, ...], **options: object
) -> None:
    estimator = Hybrid(sigma=sigma, copies=400, **options)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(exact, list(network.parameters()))
    expected = dict(zip(dict(network.named_parameters()), gradients, strict=True))
    check_gradient(repetitions(estimator, network, loss, X, Y, number=150), expected, resolution=0.3)


def check_above_a_threshold(**options: object) -> None:
    network, loss = small_network(HardThreshold()), CrossEntropy()
    exact = counted_loss(network, Gaussian(), SIGMA[0], partial(loss, labels=Y), X)
    check_hybrid(network, loss, exact, SIGMA, **options)


def check_below_a_zero_one_loss(**options: object) -> None:
    network = small_network(nn.Tanh())
    check_hybrid(network, ZeroOne(), error_probability(network, (0.0, SIGMA[1]), X, Y), SIGMA, **options)
