"""Where the time of one step goes, each part timed alone, and what the machine could do at most."""

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from arms import adam, our_step, turns
from torch import Tensor, nn

from glr_lightning.data.base import scaled
from glr_lightning.data.batches import ImageSet
from glr_lightning.estimators import Estimator
from glr_lightning.losses import Loss
from glr_lightning.propagation.layer_vjp import weight_vjp

TURN_SECONDS = 0.02
"""Parts of a step are short."""
PRODUCTS = {
    "1024 x 1024 x 1024": (1024, 1024, 1024),
    "128 x 784 x 50": (128, 784, 50),
    "1280 x 50 x 10": (1280, 50, 10),
}


def limits(rounds: int) -> dict[str, float]:
    """The most that this machine does per second, with the threads that torch has now: the best turns."""
    source, target = torch.rand(2**24), torch.empty(2**24)
    near, kept = torch.rand(2**15), torch.empty(2**15)
    draws = torch.empty(2**16)
    calls: dict[str, Callable[[], object]] = {
        "memory": lambda: target.copy_(source),
        "cache": lambda: kept.copy_(near),
        "normal": draws.normal_,
        "uniform": draws.uniform_,
    }
    for name, (rows, inner, columns) in PRODUCTS.items():
        calls[name] = functools.partial(torch.mm, torch.rand(rows, inner), torch.rand(inner, columns))
    best = {name: min(times) for name, times in turns(calls, rounds, TURN_SECONDS).items()}
    found = {f"GFLOP/s, {name}": 2e-9 * math.prod(sizes) / best[name] for name, sizes in PRODUCTS.items()}
    found["GB/s, copy in memory"] = 2e-9 * source.nbytes / best["memory"]
    found["GB/s, copy in cache"] = 2e-9 * near.nbytes / best["cache"]
    found |= {f"10^6 draws/s, {name}": 1e-6 * draws.numel() / best[name] for name in ("normal", "uniform")}
    return {name: round(value, 2) for name, value in found.items()}


@torch.no_grad()
def step_budget(
    network: nn.Module,
    estimator: Estimator,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    rounds: int,
    machine: dict[str, float],
) -> dict[str, float]:
    """Microseconds of the parts of a step of a perceptron with one hidden layer, each alone, and of the whole.

    The rest of the whole is what the parts leave: scores and signals, moved units, and Python between the calls.
    `data` is no part of the step. The limit is the time for the products, the draws, and one write and one read of
    every noisy number at the speeds of the machine.
    """
    estimated: Any = estimator
    copies, batch, generator = estimated.copies, len(x), torch.Generator().manual_seed(0)
    first, second = (module for module in network.modules() if isinstance(module, nn.Linear))
    activation = next(module for name, module in network.named_children() if name.startswith("activation"))
    hidden, classes = first.out_features, second.out_features
    flat, v1 = x.flatten(1), torch.randn(batch, hidden)
    z1, z2 = torch.randn(copies, batch, hidden), torch.randn(copies, batch, classes)
    h = torch.rand(copies * batch, hidden)
    logits, labels = torch.randn(copies * batch, classes), y.repeat(copies)
    v2 = logits.view(copies, batch, classes)
    bound, optimizer = estimator.bind(network, loss), adam(network)
    images = ImageSet((255 * x).to(torch.uint8).repeat(8, 1, 1, 1), y.repeat(8))
    index = torch.randperm(len(images))[:batch]
    for parameter in network.parameters():
        parameter.grad = torch.rand_like(parameter)
    calls: dict[str, Callable[[], object]] = {
        "draw": lambda: bound.draw(x, generator),
        "add": lambda: (torch.add(v1, z1, alpha=0.5), torch.add(v2, z2, alpha=0.5)),
        "activate": lambda: activation(h),
        "product": lambda: (first(flat), second(h)),
        "loss": lambda: loss(logits, labels),
        "contract": lambda: (weight_vjp(first, flat, z1), weight_vjp(second, h, z2)),
        "optimizer": optimizer.step,
        "data": lambda: scaled(images[index][0]),
        "step": our_step(network, estimator, loss, x, y),
    }
    times = {name: 1e6 * statistics.median(each) for name, each in turns(calls, rounds, TURN_SECONDS).items()}
    data, total = times.pop("data"), times.pop("step")
    numbers = copies * batch * (hidden + classes)
    weights = first.weight.numel()
    needed = {
        "products": 4e-3 * batch * weights / machine["GFLOP/s, 128 x 784 x 50"]
        + 4e-3 * copies * batch * hidden * classes / machine["GFLOP/s, 1280 x 50 x 10"],
        "draws": numbers / machine["10^6 draws/s, uniform"],
        "memory": 8e-3 * numbers / machine["GB/s, copy in cache"],
    }
    found = {
        **times,
        "rest": total - sum(times.values()),
        "step": total,
        "data": data,
        "limit": sum(needed.values()),
        **{f"limit, {name}": value for name, value in needed.items()},
    }
    return {name: round(value, 1) for name, value in found.items()}
