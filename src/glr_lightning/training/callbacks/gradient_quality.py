"""How good the estimated gradients are while a network trains. Everything stays on the device until an epoch ends."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from glr_lightning.baselines import Baseline
from glr_lightning.estimators import Estimator
from glr_lightning.training.callbacks.base import TrainingCallback
from glr_lightning.training.module import GLRModule, glr_module

WINDOW = 10
"""Successive steps in which `SignalToNoise` takes the true gradient to be constant."""


class GradientQuality(TrainingCallback):
    """Logs each layer's signal-to-noise ratio (`snr_<layer>`) and what the baseline explains (`baseline_explained`).

    The training itself stays the same, bit for bit. Gradients are looked at before they are clipped.
    """

    def __init__(self) -> None:
        self._snr = SignalToNoise()
        self._watch: WatchedBaseline | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watch the baseline of the estimator."""
        module = glr_module(pl_module)
        module.estimator, self._watch = watched(module.estimator)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradients of a step."""
        trained = glr_module(pl_module).trained
        self._snr.update(
            {name: p.grad for name, p in trained.items() if p.grad is not None and not name.startswith("log_sigma.")}
        )

    @classmethod
    def changes_training(cls, options: Mapping[str, Any]) -> bool:
        """Return False: it only watches."""
        return False

    def end_epoch(self, trainer: pl.Trainer, module: GLRModule) -> dict[str, float]:
        """Return the ratios and what the baseline explained."""
        return self._snr.compute_and_reset() | (self._watch.compute_and_reset() if self._watch else {})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the estimator its own baseline back."""
        if self._watch is not None:
            module: Any = pl_module
            module.estimator = dataclasses.replace(module.estimator, baseline=self._watch.inner)


class SignalToNoise:
    """The signal-to-noise ratio of every layer's gradient over an epoch, from the gradients that training makes anyway.

    In a window of W successive steps the true gradient is taken to be constant. Then, g_i being the gradients of a
    layer and m their mean,

        s^2 = sum_i |g_i - m|^2 / (W - 1),    E|m|^2 = |signal|^2 + s^2 / W,

    and signal^2 = |m|^2 - s^2 / W, s^2 are averaged over the epoch's whole windows; the ratio is
    max(signal^2, 0) / s^2. The noise is all there is: of the estimator and of the choice of the minibatch.
    """

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._steps = 0
        self._totals: dict[str, tuple[Tensor, Tensor]] = {}  # by layer: signal^2 and s^2, summed over windows

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """The gradients of one step, by parameter name."""
        for name, gradient in gradients.items():
            if self._steps == 0:
                self._sum[name], self._squares[name] = torch.zeros_like(gradient), gradient.new_zeros(())
            self._sum[name] += gradient
            self._squares[name] += gradient.square().sum()
        self._steps += 1
        if self._steps == WINDOW:
            self._close_window()

    def _close_window(self) -> None:
        self._steps = 0
        for name, total in self._sum.items():
            mean = total / WINDOW
            length = mean.square().sum()
            noise = (self._squares[name] - WINDOW * length) / (WINDOW - 1)
            layer = name.rpartition(".")[0]
            before = self._totals.get(layer, (0.0, 0.0))
            self._totals[layer] = (before[0] + length - noise / WINDOW, before[1] + noise)

    def compute_and_reset(self) -> dict[str, float]:
        """`snr_<layer>`; nothing of an epoch that is shorter than a window."""
        ratios = {f"snr_{layer}": float(signal.clamp(min=0) / noise) for layer, (signal, noise) in self._totals.items()}
        self._steps, self._totals = 0, {}
        return ratios


@dataclass(frozen=True, eq=False)
class WatchedBaseline(Baseline):
    """Another baseline, whose effect on the losses is summed up in `seen`; it changes nothing."""

    inner: Baseline
    seen: list[Tensor] = field(default_factory=list, compare=False)

    def __eq__(self, other: object) -> bool:
        """Equal to the baseline that it watches."""
        return bool(self.inner == (other.inner if isinstance(other, WatchedBaseline) else other))

    def __hash__(self) -> int:
        return hash(self.inner)

    @property
    def needs_clean(self) -> bool:  # type: ignore[override]  # of this object, not of its class
        """As the inner baseline's."""
        return self.inner.needs_clean

    @property
    def required_groups(self) -> int:  # type: ignore[override]  # as above
        """As the inner baseline's."""
        return self.inner.required_groups

    def __call__(self, loss: Tensor, group: Tensor, clean_loss: Tensor | None) -> Tensor:
        """Return what the inner baseline does."""
        baseline = self.inner(loss, group, clean_loss)
        variances = torch.stack([loss.var(), (loss - baseline).var()])
        self.seen[:] = [self.seen[0] + variances if self.seen else variances]
        return baseline

    def compute_and_reset(self) -> dict[str, float]:
        """`baseline_explained` = 1 - Var(L - b) / Var(L), the variances over all copies of a batch's images."""
        if not self.seen:
            return {}
        plain, left = self.seen.pop().tolist()
        return {"baseline_explained": 1 - left / plain} if plain > 0 else {}


def watched(estimator: Estimator) -> tuple[Estimator, WatchedBaseline | None]:
    """The same estimator with its baseline watched, if it has one."""
    baseline = getattr(estimator, "baseline", None)
    if not isinstance(baseline, Baseline):
        return estimator, None
    watch = WatchedBaseline(baseline)
    changed: Any = estimator
    return dataclasses.replace(changed, baseline=watch), watch
