"""A training that is interrupted and resumed, and what has to be the same as without the interruption."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from glr_lightning.estimators import Bound
from glr_lightning.runs.trained_run import load_checkpoint
from glr_lightning.training.fit import train


def lasting(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that decides how training goes on, flattened."""
    checkpoint = load_checkpoint(path)
    (optimizer,) = checkpoint["optimizer_states"]
    tensors = dict(checkpoint["state_dict"])
    for key, state in optimizer["state"].items():
        tensors |= {f"{key}.{name}": value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors | {"epoch": torch.tensor(checkpoint["epoch"]), "step": torch.tensor(checkpoint["global_step"])}


def train_in_two_parts(config: dict[str, Any], run_dir: Path, stop_at: int) -> dict[str, Any]:
    """Train, be interrupted (Ctrl-C) after a number of steps, and resume: the content of result.json."""
    steps = 0
    estimate = Bound.estimate

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > stop_at:
            raise KeyboardInterrupt
        return estimate(*args, **kwargs)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bound, "estimate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="glr-train resume="):
            train(config, run_dir)
    signal.signal(signal.SIGINT, handler)  # Lightning turns it off on its way out
    assert steps == stop_at + 1
    assert not (run_dir / "result.json").exists()
    return train(config, run_dir, resume=True)


def assert_same_training(whole: Path, parts: Path) -> None:
    """Checkpoints and metrics of two run folders, bit for bit."""
    for name in ("last", "best"):
        a, b = (lasting(run / f"checkpoints/{name}.ckpt") for run in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
