"""Gradient descent with momentum: torch's steps, without what torch.optim imports."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from glr_lightning.training.momentum import Momentum

SGD = {"_target_": "torch.optim.SGD", "_partial_": True}
CONSTANT = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "_partial_": True, "factor": 1.0}


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in ((7, 33), (7,), (1, 5, 3))]


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.1}, {"lr": 0.01, "momentum": 0.9}, {"lr": 0.3, "momentum": 0.5, "weight_decay": 1e-2}],
)
def test_steps_are_torchs(options: dict[str, float]) -> None:
    ours, theirs = parameters(), parameters()
    momentum = Momentum.of({**SGD, **options}, CONSTANT, ours)
    assert momentum is not None
    optimizer = torch.optim.SGD(theirs, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        momentum.step(gradients)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        ({**SGD, "lr": 0.1, "nesterov": True}, CONSTANT),
        ({**SGD, "lr": -0.1}, CONSTANT),
        ({**SGD, "momentum": 0.9}, CONSTANT),
        ({**SGD, "lr": 0.1}, {**CONSTANT, "factor": 0.5}),
        ({**SGD, "lr": 0.1}, {"_target_": "torch.optim.lr_scheduler.StepLR"}),
        ({"_target_": "torch.optim.Adam", "lr": 0.1}, CONSTANT),
    ],
)
def test_others_are_left_to_torch(optimizer: dict[str, Any], scheduler: dict[str, Any]) -> None:
    assert Momentum.of(optimizer, scheduler, parameters()) is None


def test_a_surrogate_is_trained_without_lightning_and_torchs_compiler(tmp_path: Any) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom glr_lightning import compose\n"
        "from glr_lightning.training.plain import train_plainly\n"
        "overrides = ['data=digits', '~experiment', '+surrogate=relu', 'epochs=1', 'progress=false']\n"
        "train_plainly(compose(overrides), Path('run'))\n"
        "print(*sorted({'pytorch_lightning', 'torchmetrics', 'torchvision', 'torch._dynamo'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
