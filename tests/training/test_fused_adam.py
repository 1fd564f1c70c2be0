"""Adam's steps without torch's surroundings: to the bit, and by torch itself wherever more takes part."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ExponentialLR

from glr_lightning.training.fused_adam import stepping


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))


def groups(net: nn.Sequential) -> list[dict[str, Any]]:
    return [
        {"params": list(net[0].parameters()), "weight_decay": 0.1},
        {"params": list(net[1:].parameters()), "lr": 0.3, "betas": (0.5, 0.9), "maximize": True},
    ]


def write(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def counted(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that torch takes."""
    taken: list[int] = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self, *a: taken.append(1) or step(self, *a))
    return taken


Change = Callable[[Any, nn.Sequential], Any]


def load(optimizer: Any, net: nn.Sequential) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def without_gradient(optimizer: Any, net: nn.Sequential) -> None:
    net[1].weight.grad = None


def add(optimizer: Any, net: nn.Sequential) -> None:
    net.append(nn.Linear(2, 2))
    nn.init.ones_(net[3].weight)
    nn.init.ones_(net[3].bias)
    net[3].weight.grad, net[3].bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.add_param_group({"params": list(net[3].parameters())})


def rate(optimizer: Any, net: nn.Sequential) -> None:
    optimizer.param_groups[1].update(lr=0.7, betas=(0.1, 0.8), eps=1e-3, weight_decay=0.5)


@pytest.mark.parametrize(("change", "steps"), [(None, 1), (rate, 1), (load, 2), (without_gradient, 2), (add, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_torchs_to_the_bit(
    change: Change | None, steps: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    for ours in (False, True):
        net = network().to(dtype)
        optimizer = Adam(groups(net), lr=0.05, fused=True)
        with monkeypatch.context() as patched:
            taken = counted(optimizer, patched)
            scheduler = ExponentialLR(optimizer, 0.9)
            step = stepping(optimizer) if ours else optimizer.step
            for number in range(8):
                write(net, number)
                if change is not None and number == 4:
                    change(optimizer, net)
                step()
                if number % 3 == 2:
                    scheduler.step()
        assert len(taken) == (steps if ours else 8)
        ended.append([*net.parameters(), *(value for each in optimizer.state.values() for value in each.values())])
    assert len(ended[0]) == len(ended[1])
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"fused": False}, {"foreach": True}, {"fused": True, "amsgrad": True}, {"fused": True, "lr": torch.tensor(0.1)}],
    ids=str,
)
def test_other_forms_of_adam_step_themselves(options: dict[str, Any]) -> None:
    optimizer = Adam(network().parameters(), **options)
    assert stepping(optimizer) == optimizer.step


def test_other_optimizers_step_themselves() -> None:
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = kind(network().parameters(), lr=0.1, fused=True)
        assert stepping(optimizer) == optimizer.step


def test_hooks_and_a_step_of_ones_own_are_called() -> None:
    net = network()
    optimizer: Any = Adam(net.parameters(), fused=True)
    seen: list[int] = []
    handle = optimizer.register_step_post_hook(lambda *_: seen.append(1))
    step = stepping(optimizer)
    for number in range(3):
        write(net, number)
        step()
    assert len(seen) == 3
    handle.remove()
    step = stepping(optimizer)
    for number in range(4):
        write(net, number)
        step()
        if number == 1:
            optimizer.register_step_pre_hook(lambda *_: seen.append(3))
    assert seen[3:] == [3, 3]
    optimizer._optimizer_step_pre_hooks.clear()
    optimizer.step = lambda: seen.append(2)
    stepping(optimizer)()
    assert seen[5:] == [2]
