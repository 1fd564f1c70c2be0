"""The loop over batches: it is Lightning's in all that can be seen, and calls nothing that nobody implements."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.profilers import PassThroughProfiler
from torch import nn

from glr_lightning.activations import HardThreshold
from glr_lightning.config import compose
from glr_lightning.data import Digits
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.losses import ZeroOne
from glr_lightning.runs.trained_run import LAST, METRICS, load_checkpoint
from glr_lightning.training import batch_loop, fit, trainer
from glr_lightning.training.batch_loop import BatchLoop
from glr_lightning.training.fit import train
from glr_lightning.training.images import LightningImages
from glr_lightning.training.module import GLRModule

HOOKS = [name for name in vars(Callback) if name.startswith("on_") and "checkpoint" not in name]
FAST = ["copies=4", "epochs=2", "data.validation=0.1", "progress=false", "batch_size=256"]  # 5 steps an epoch


class Observer(Callback):
    """Writes down every hook that is called, with what can be seen there; logs; and may stop a training."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[Any] = []
        self.stop_at = stop_at

    def see(self, name: str, trainer: Any, module: Any, *arguments: Any) -> None:
        tensors = [float(a[0].double().sum()) for a in arguments if isinstance(a, tuple | list)]
        losses = [float(a["loss"].mean()) for a in arguments if isinstance(a, dict) and "loss" in a]
        numbers = [a for a in arguments if isinstance(a, int)]
        state = trainer.fit_loop.epoch_loop.state_dict()
        self.seen.append((name, module._current_fx_name, trainer.is_last_batch, tensors, losses, numbers, state))
        if name == "on_train_batch_end":
            module.log("both", losses[0], on_step=True, on_epoch=True, logger=False)
            module.log("first", float(module.outcome.loss), on_step=False, on_epoch=True)
            if trainer.global_step == self.stop_at:
                trainer.should_stop = True
        if name in ("on_train_batch_start", "on_train_epoch_end"):
            self.seen.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def observing(name: str) -> Callable[..., None]:
    return lambda self, trainer, module, *arguments, **_: self.see(name, trainer, module, *arguments)


for hook in HOOKS:
    setattr(Observer, hook, observing(hook))


@pytest.mark.parametrize(
    "options",
    [
        ["data.crop=1", "clip_norm=0.1"],
        ["data.validation=0", "callbacks=[class_collapse,gradient_quality]"],
        ["+trainer.limit_train_batches=3"],
        ["precision=64-true"],
        ["precision=bf16-mixed"],
        ["+stop"],
    ],
    ids=" ".join,
)
def test_all_that_can_be_seen_is_as_in_lightnings_loop(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose([*FAST, *(option for option in options if option != "+stop")])
    make, runs = trainer.make_trainer, {}
    for loop in (BatchLoop, _TrainingEpochLoop):
        observer = Observer(stop_at=7 if "+stop" in options else None)
        monkeypatch.setattr(trainer, "BatchLoop", loop)
        monkeypatch.setattr(fit, "make_trainer", lambda *a, o=observer: make(*a[:3], [*a[3], o], *a[4:]))
        train(config, tmp_path / loop.__name__)
        runs[loop] = observer.seen, (tmp_path / loop.__name__ / METRICS).read_text()
    ours, lightnings = runs.values()
    assert len(ours[0]) > 40
    assert ours == lightnings
    last = [plain(load_checkpoint(tmp_path / loop.__name__ / LAST)) for loop in runs]
    assert last[0] == last[1]


def plain(content: Any) -> Any:
    """A checkpoint as something that can be compared."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items() if key not in ("train_seconds", "callbacks")}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content.tolist() if isinstance(content, torch.Tensor) else content


def calls_by_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls pass the profiler in a training of 2 and of 5 batches an epoch."""
    calls: list[str] = []
    profile = PassThroughProfiler.profile
    monkeypatch.setattr(PassThroughProfiler, "profile", lambda self, name: calls.append(name) or profile(self, name))
    counts = []
    for batches in (2, 5):
        calls.clear()
        train(compose([*FAST, f"+trainer.limit_train_batches={batches}"]), folder / str(batches))
        counts.append(len(calls))
    return counts


def test_a_step_calls_nothing_that_nobody_implements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = calls_by_batches(tmp_path, monkeypatch)
    assert few == many > 0


def test_with_another_release_of_lightning_the_loop_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_loop, "TESTED", "2.5.")
    few, many = calls_by_batches(tmp_path, monkeypatch)
    assert few < many


def fitted(module: GLRModule, **options: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    made: Any = pl.Trainer(max_epochs=1, accelerator="cpu", log_every_n_steps=0, **quiet, **options)
    made.fit_loop.epoch_loop = BatchLoop(made)
    made.fit(module, datamodule=LightningImages(Digits(batch_size=512, validation=0.1)))
    return made


class Hooked(GLRModule):
    """A module of somebody else's."""

    batches = 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1


class Stepping(GLRModule):
    """Another one."""

    batches = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches += 1
        return super().training_step(batch, batch_idx)


def parts() -> tuple[Any, ...]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), HardThreshold(), nn.Linear(10, 10))
    return network, LikelihoodRatio(copies=4), ZeroOne(), torch.optim.Adam


@pytest.mark.parametrize("kind", [Hooked, Stepping])
def test_a_module_with_hooks_or_steps_of_its_own_has_them_called(kind: type[Hooked] | type[Stepping]) -> None:
    module = kind(*parts())
    assert fitted(module).global_step == module.batches == 3


def test_a_profiler_sees_every_step() -> None:
    profiler = fitted(GLRModule(*parts()), profiler="simple").profiler
    assert len(profiler.recorded_durations["run_training_batch"]) == 3
