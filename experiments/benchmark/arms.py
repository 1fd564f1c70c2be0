"""The steps that are timed, and how. They need torch, and of this package what trains a network: nothing else."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from glr_lightning.estimators import Estimator
from glr_lightning.estimators.bound import Estimate
from glr_lightning.losses import CrossEntropy, Loss
from glr_lightning.noise import Laplace

Step = Callable[[], object]
Times = dict[str, list[float]]
LEARNING_RATE = 1e-3


def clock() -> float:
    """Seconds of this process on the CPU, which others hardly prolong; with several threads those of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def turns(arms: Mapping[str, Step], rounds: int, turn_seconds: float = 0.1) -> Times:
    """Seconds of a call of each arm, by turn; a first turn is a warm-up.

    A turn repeats a call for about `turn_seconds`, as training does: a single short call after another arm's would be
    timed with cold caches.
    """
    times: Times = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            calls, start = 0, clock()
            while calls == 0 or clock() - start < turn_seconds:
                run()
                calls += 1
            if turn:
                times[name].append((clock() - start) / calls)
    return times


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
