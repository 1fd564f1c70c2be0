"""Checks of local expectation: by enumeration of all states, and of its mean."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import LikelihoodRatio, LocalExpectation
from glr_lightning.estimators.output_loss import OutputLoss, output_loss_for
from glr_lightning.estimators.unit_choice import Choice
from glr_lightning.injection import Joint
from glr_lightning.losses import Loss, ZeroOne
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.sampling import Draws, Sampler
from tests.checks.estimator_cases import (
    SIGMA,
    X,
    Y,
    check_gradient,
    enumerated,
    estimate,
    reference,
    small_network,
)
from tests.checks.oracles import TOLERANCE, counted_loss
from tests.checks.zscores import repetitions

GAUSSIAN = Gaussian()


ROWS, CLASSES, UNITS = 5, 3, 4  # all different, so that no transposed matrix fits


def a_head(loss: Loss, noise: Noise) -> tuple[OutputLoss, Tensor, Tensor, Tensor]:
    """A head, logits [ROWS, CLASSES], steps [ROWS, UNITS] and columns [CLASSES, UNITS]."""
    generator = torch.Generator().manual_seed(0)
    u, z, columns, step = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((ROWS, CLASSES), (ROWS, CLASSES), (CLASSES, UNITS), (ROWS, UNITS))
    )
    return output_loss_for(loss, noise, 0.7, z, torch.tensor([0, 1, 2, 1, 0])), u, step, columns


def check_zero_one_signal(noise: Noise) -> None:
    """The derivative, by autograd, of the expectation over each logit's own noise, given that of the others."""
    head, u, _, _ = a_head(ZeroOne(), noise)
    v, label = u + head.sigma * head.z, head.labels
    expected = torch.zeros_like(u)
    for row, c in itertools.product(range(ROWS), range(CLASSES)):
        others = [float(v[row, k]) for k in range(CLASSES) if k not in (c, int(label[row]))]
        own = float(v[row, label[row]])
        at = u[row, c].clone().requires_grad_()
        if c == label[row]:
            mean = noise.cdf((max(others) - at) / head.sigma)
        elif own > max(others):
            mean = 1 - noise.cdf((own - at) / head.sigma)
        else:
            continue  # wrong already
        (expected[row, c],) = torch.autograd.grad(mean, at)
    got = head.signal(u, None)
    assert (expected != 0).sum() > ROWS
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@final
@dataclass(frozen=True)
class Scripted(Sampler):
    """Hands out draws that were written down, one a layer."""

    script: list[Tensor] = field(default_factory=list)

    def group_size(self, copies: int) -> int:
        return 1

    def group(self, copies: int, device: torch.device) -> Tensor:
        return torch.arange(copies, device=device)

    def __call__(
        self, noise: Noise, copies: int, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype
    ) -> Draws:
        return Draws(self.script.pop(0), self.group(copies, torch.device("cpu")))


def hidden_gradient_by_states(
    network: nn.Sequential, noise: Noise, sigma: Sequence[float], loss: Loss, above: list[Tensor]
) -> dict[str, Tensor]:
    """sum_s P(s) (the estimate of the first layer's gradient with its units in state s), the noise above being fixed.

    If each unit's own noise is integrated out exactly, this is the derivative of sum_s P(s) L(s), to rounding.
    """
    v0 = network[0](X).detach()
    on = 1 - noise.cdf(-v0 / sigma[0])
    total: dict[str, Tensor] = {}
    for row in range(len(X)):
        for pattern in itertools.product((0.0, 1.0), repeat=v0.shape[1]):
            state = torch.tensor(pattern, dtype=v0.dtype)
            chance = torch.where(state > 0, on[row], 1 - on[row]).prod()
            z = ((2 * state - 1 - v0[row]) / sigma[0])[None, None]  # so that v is +1 or -1
            script = [z, *(fixed[:, row, None] for fixed in above)]
            estimator = LocalExpectation(noise=noise, sigma=tuple(sigma), sampling=Scripted(script), units=None)
            got = estimate(estimator, network, loss, X[row, None], Y[row, None]).gradients
            for name in ("0.weight", "0.bias"):
                total[name] = total.get(name, 0) + chance * got[name] / len(X)
    return total


def check_enumeration(noise: Noise, loss: Loss, network: nn.Sequential, sigma: Sequence[float]) -> None:
    """Equal to the derivative of the sum over all 2^H states of the first hidden layer, to 1e-10."""
    generator = torch.Generator().manual_seed(3)
    layers = [module for module in network if isinstance(module, nn.Linear)]
    above = [torch.randn(1, len(X), m.out_features, generator=generator, dtype=X.dtype) for m in layers[1:]]

    def loss_of(u: Tensor) -> Tensor:
        return output_loss_for(loss, noise, sigma[-1], above[-1][0], Y).values(u)

    class Fixed(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            return v + sigma[1] * above[0][0]

    upper = list(network)
    if len(layers) == 3:
        upper.insert(3, Fixed())  # the second layer's noise
    exact = counted_loss(nn.Sequential(*upper), noise, sigma[0], loss_of, X)
    expected = torch.autograd.grad(exact, [network[0].weight, network[0].bias])
    got = hidden_gradient_by_states(network, noise, sigma, loss, above)
    for name, value in zip(("0.weight", "0.bias"), expected, strict=True):
        assert value.norm() > 1e-5
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-13)


def threshold_network(*widths: int) -> nn.Sequential:
    torch.manual_seed(5)
    network = nn.Sequential()
    for fan_in, fan_out in itertools.pairwise(widths):
        if len(network):
            network.append(HardThreshold())
        network.append(nn.Linear(fan_in, fan_out))
    for parameter in network.double().parameters():
        parameter.data.mul_(2.0)
    return network


def check_local(
    activation: nn.Module,
    loss: Loss,
    noise: Noise = GAUSSIAN,
    number: int = 3000,
    resolution: float = 0.3,
    **options: Any,
) -> None:
    network = small_network(activation)
    estimator = LocalExpectation(noise=noise, sigma=SIGMA, copies=4, **options)
    samples = repetitions(estimator, network, loss, X, Y, number=number)
    check_gradient(samples, reference(network, noise, Joint(), loss), resolution, TOLERANCE)


def check_deep(
    network: nn.Sequential,
    sigma: tuple[float, ...],
    units: int | None,
    x: Tensor,
    y: Tensor,
    choice: Choice = "uniform",
) -> None:
    estimator = LocalExpectation(sigma=sigma, copies=4, units=units, choice=choice)
    samples = repetitions(estimator, network, ZeroOne(), x, y, number=4000)
    check_gradient(samples, enumerated(network, LikelihoodRatio(sigma=sigma), x, y), resolution=0.3)
