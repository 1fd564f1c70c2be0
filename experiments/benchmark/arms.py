"""The steps that are timed. They need torch, and of this package what trains a network: nothing else."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glr_lightning.estimators import Estimator
from glr_lightning.estimators.bound import Estimate
from glr_lightning.losses import CrossEntropy, Loss
from glr_lightning.noise import Laplace

Step = Callable[[], object]
LEARNING_RATE = 1e-3


def clock() -> float:
    """Seconds of this process on the CPU, which others hardly prolong; with several threads those of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def adam(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=False)


def write(network: nn.Module, estimate: Estimate) -> None:
    """Put the gradients where an optimizer finds them."""
    for name, parameter in network.named_parameters():
        parameter.grad = estimate.gradients[name]


def backprop_step(network: nn.Module, x: Tensor, y: Tensor) -> Step:
    """A step as plain torch takes it."""
    optimizer = adam(network)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def our_step(network: nn.Module, estimator: Estimator, loss: Loss, x: Tensor, y: Tensor) -> Step:
    """A step of an estimator that is bound once."""
    bound, optimizer = estimator.bind(network, loss), adam(network)
    generator = torch.Generator(x.device).manual_seed(0)

    def step() -> None:
        write(network, bound.estimate(x, y, generator))
        optimizer.step()

    return step


def naive_step(network: nn.Module, x: Tensor, y: Tensor, copies: int) -> Step:
    """A step by the formula as it is published, of a perceptron with one hidden layer of sigmoids.

    dW = mean over rows of x (L xi)^T, each row's outer product written out: [rows, in, out].
    """
    first, second = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    optimizer, loss, laplace = adam(network), CrossEntropy(), Laplace()
    generator = torch.Generator(x.device).manual_seed(0)

    @torch.no_grad()
    def step() -> None:
        rows = x.flatten(1).repeat(copies, 1)
        noise1 = laplace.sample((len(rows), first.out_features), generator=generator)
        noise2 = laplace.sample((len(rows), second.out_features), generator=generator)
        hidden = torch.sigmoid(first(rows) + noise1)
        losses = loss(second(hidden) + noise2, y.repeat(copies))[:, None]
        for layer, h, noise in ((first, rows, noise1), (second, hidden, noise2)):
            signal = losses * noise.sign()
            layer.weight.grad = (h[:, :, None] * signal[:, None, :]).mean(0).T
            if layer.bias is not None:
                layer.bias.grad = signal.mean(0)
        optimizer.step()

    return step
