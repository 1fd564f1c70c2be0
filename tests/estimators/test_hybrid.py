"""Hybrid: likelihood ratio at and below the last discontinuity, derivatives above it."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.baselines import Clean
from glr_lightning.estimators import Backprop, Hybrid, LikelihoodRatio, NoisyBackprop
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.networks import mlp
from glr_lightning.noise import Gaussian
from tests.checks.estimator_cases import X, Y, estimate, small_network
from tests.checks.hybrid import check_above_a_threshold, check_below_a_zero_one_loss, check_hybrid
from tests.checks.oracles import counted_loss
from tests.checks.refusals import refused
from tests.checks.zscores import repetitions


def mixed_network(*activations: nn.Module) -> nn.Sequential:
    torch.manual_seed(5)
    first, second = activations
    network = nn.Sequential(nn.Linear(3, 3), first, nn.Linear(3, 3), second, nn.Linear(3, 2)).double()
    for parameter in network.parameters():
        parameter.data.mul_(1.5)
    return network


@pytest.mark.parametrize("score", ["plain", "auto"])
def test_cross_entropy_above_thresholds_is_differentiated_given_noise(score: str) -> None:
    check_above_a_threshold(score=score)


def test_zero_one_above_smooth_units_needs_noise_at_the_logits_alone() -> None:
    check_below_a_zero_one_loss()
    check_below_a_zero_one_loss(baseline=Clean())


def test_only_smooth_layers_above_a_threshold_are_differentiated() -> None:
    sigma = (0.7, 0.9, 0.8)
    network, loss = mixed_network(HardThreshold(), nn.Tanh()), CrossEntropy()
    check_hybrid(network, loss, counted_loss(network, Gaussian(), sigma[0], partial(loss, labels=Y), X), sigma)
    assert [words.split(":")[0] for words in Hybrid().plan(network, loss).values()] == [
        "likelihood ratio, from loss values",
        "pathwise",
        "pathwise",
    ]
    below = Hybrid().plan(mixed_network(nn.Tanh(), HardThreshold()), loss)
    assert [words.split(",")[0] for words in below.values()][:2] == ["likelihood ratio"] * 2


def test_noise_below_a_threshold_and_at_the_logits_skips_what_is_smooth() -> None:
    sigma = (0.7, 0.9, 0.8)
    network = mixed_network(HardThreshold(), nn.Tanh())

    def error(logits: Tensor) -> Tensor:
        d = logits.gather(1, 1 - Y[:, None]) - logits.gather(1, Y[:, None])
        return torch.special.ndtr(d.squeeze(1) / (sigma[2] * 2**0.5))

    check_hybrid(network, ZeroOne(), counted_loss(network, Gaussian(), sigma[0], error, X), sigma)
    plan = list(Hybrid().plan(network, ZeroOne()).values())
    assert "vector-Jacobian" in plan[1]
    assert "at the logits" in plan[2]


def test_only_the_layers_at_and_below_the_last_jump_are_noisy() -> None:
    """Below a smooth loss the layer above a threshold has no variance of its own: given h it is backpropagation."""
    network = small_network(HardThreshold())
    network[0].weight.data.zero_()
    network[0].bias.data.fill_(50.0)  # the units are on, whatever the noise
    got = estimate(Hybrid(copies=4), network, CrossEntropy()).gradients
    above = nn.Sequential(nn.Linear(2, 2)).double()
    above[0].load_state_dict(network[2].state_dict())
    expected = estimate(Backprop(), above, CrossEntropy(), torch.ones(3, 2, dtype=X.dtype)).gradients
    torch.testing.assert_close(got["2.weight"], expected["0.weight"])
    torch.testing.assert_close(got["2.bias"], expected["0.bias"])


@pytest.mark.parametrize(
    ("network", "loss", "advice"),
    [
        (small_network(nn.Tanh()), CrossEntropy(), "use estimator=noisy_backprop or backprop"),
        (small_network(HardThreshold()), ZeroOne(), "use estimator=local_expectation or likelihood_ratio"),
        (mixed_network(nn.Tanh(), HardThreshold()), ZeroOne(), "use estimator=local_expectation"),
        (nn.Sequential(nn.Linear(3, 2), HardThreshold()), CrossEntropy(), "use estimator=local_expectation"),
    ],
)
def test_a_network_without_a_place_for_one_of_the_two_is_refused(
    network: nn.Sequential, loss: Loss, advice: str
) -> None:
    with refused(None, advice):
        Hybrid().check(network, loss)


def test_its_variance_is_below_that_of_the_likelihood_ratio_alone() -> None:
    torch.manual_seed(0)
    network = mlp(image_shape=(1, 14, 14), classes=10, hidden=[20], activation=nn.Sigmoid())
    x, y = torch.rand(8, 1, 14, 14), torch.arange(8)
    hybrid, ratio = (
        repetitions(estimator, network, ZeroOne(), x, y, number=100)
        for estimator in (Hybrid(copies=8), LikelihoodRatio(copies=8))
    )
    assert float(hybrid["linear1.weight"].var(0).sum()) < 0.2 * float(ratio["linear1.weight"].var(0).sum())


def test_frozen_layers_above_the_split_leave_the_layers_below() -> None:
    network = small_network(HardThreshold())
    network[2].requires_grad_(False)
    assert estimate(Hybrid(copies=4), network, CrossEntropy()).gradients.keys() == {"0.weight", "0.bias"}


def test_a_jump_of_torchs_own_is_a_jump() -> None:
    network = small_network(nn.Hardshrink(0.5))
    assert "likelihood ratio" in Hybrid().plan(network, CrossEntropy())["0"]
    with refused(None, "'1' (Hardshrink", "misses the jumps"):
        NoisyBackprop().check(network, CrossEntropy())
    NoisyBackprop().check(small_network(nn.Threshold(0.0, 0.0)), CrossEntropy())  # which is ReLU
