"""The LightningModule: manual optimization with estimated gradients. It alone writes `.grad`."""

import hashlib
import math
import time
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from glr_lightning.errors import DivergenceError
from glr_lightning.estimators import Estimate, Estimator
from glr_lightning.losses import Loss

CHECK_EVERY = 50
"""Steps between looks at the loss on an accelerator, where each look waits for the device."""


class MakeOptimizer(Protocol):
    """torch.optim.<Name> with its options bound."""

    def __call__(self, params: Any) -> torch.optim.Optimizer: ...


class MakeScheduler(Protocol):
    """torch.optim.lr_scheduler.<Name> with its options bound; stepped once an epoch."""

    def __call__(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler: ...


def step_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """The generator of all noise of one step; a function of its arguments alone, so a resumed run repeats it."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest))


class GLRModule(pl.LightningModule):
    """Trains a network with the gradients that an estimator returns.

    Args:
        network: a plain torch network; evaluation uses it as it is, without noise.
        estimator: turns a batch into gradients.
        loss: the per-sample loss.
        optimizer, scheduler: factories (`hydra` `_partial_`).
        classes: the number of classes, for the accuracy.
        seed: seeds the noise, together with the step and the rank.
        clip_norm: the largest 2-norm of the whole gradient, or None. (`Trainer(gradient_clip_val=)` refuses
            manual optimization.)

    Raises:
        ConfigurationError: the estimator cannot train this network and loss.
    """

    def __init__(
        self,
        network: nn.Module,
        estimator: Estimator,
        loss: Loss,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler,
        *,
        classes: int,
        seed: int = 0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.estimator = estimator
        self.loss = loss
        self.seed = seed
        self.clip_norm = clip_norm
        self.forwards = 0
        self.train_seconds = 0.0
        self._clock = 0.0
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._parameters_by_name = {name: p for name, p in network.named_parameters() if p.requires_grad}
        # torchmetrics would wait for the device at every step to look for NaNs; _require_finite looks in its own time
        self.train_loss, self.grad_norm, self.val_loss = (MeanMetric(nan_strategy="disable") for _ in range(3))
        self.train_accuracy, self.val_accuracy = (
            MulticlassAccuracy(classes, average="micro", validate_args=False) for _ in range(2)
        )
        estimator.check(network, loss)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(list(self._parameters_by_name.values()))
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    # ---- training -----------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = self._in_dtype_of_weights(batch)
        generator = step_generator(self.seed, self.global_step, self.global_rank, x.device)
        estimate = self.estimator.estimate(self.network, self.loss, x, y, generator=generator)
        gradients = [estimate.gradients[name] for name in self._parameters_by_name]
        if self.trainer.world_size > 1:
            gradients = self._mean_over_ranks(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if x.device.type == "cpu" or self.global_step % CHECK_EVERY == 0 or self.trainer.is_last_batch:
            self._require_finite(estimate, gradients, norm)
        for parameter, gradient in zip(self._parameters_by_name.values(), gradients, strict=True):
            parameter.grad = gradient
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters_by_name.values(), self.clip_norm, norm)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()

        self.forwards += estimate.diagnostics["forwards"] * self.trainer.world_size
        self.train_loss.update(estimate.loss)
        self.grad_norm.update(norm)
        self.train_accuracy.update(estimate.logits, y)

    def _in_dtype_of_weights(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pixels become float32 after Lightning has cast a batch, so precision=64-true is for us to honour."""
        return batch[0].to(next(self.network.parameters()).dtype), batch[1]

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        self._require_finite_weights()
        row = self._compute_and_reset(
            train_loss=self.train_loss, train_accuracy=self.train_accuracy, grad_norm=self.grad_norm
        )
        row |= {name: float(self.trainer.callback_metrics.get(name, math.nan)) for name in ("val_loss", "val_accuracy")}
        row |= {"epoch": self.current_epoch, "lr": float(scheduler.get_last_lr()[0]), "forwards": self.forwards}
        # Lightning would write it after the checkpoint, and an interruption between the two would lose it
        for logger in self.loggers:
            logger.log_metrics({k: v for k, v in row.items() if v == v}, step=self.global_step - 1)
        scheduler.step()
        now = time.perf_counter()
        self.train_seconds += now - self._clock
        self._clock = now

    def _mean_over_ranks(self, gradients: list[Tensor]) -> list[Tensor]:
        """DDP reduces only what its own backward made; average the estimates in one flat buffer instead."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        mean = self.trainer.strategy.reduce(flat, reduce_op="mean")
        pieces = mean.split([gradient.numel() for gradient in gradients])
        return [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]

    def _require_finite(self, estimate: Estimate, gradients: list[Tensor], norm: Tensor) -> None:
        """Stop at a NaN, on a CPU before it reaches the weights. Raises DivergenceError."""
        if torch.isfinite(estimate.loss) and torch.isfinite(norm):
            return
        lines = "\n".join(
            f"  {name:<24} |weights| {parameter.detach().norm().item():.4g}   |gradient| {gradient.norm().item():.4g}"
            for (name, parameter), gradient in zip(self._parameters_by_name.items(), gradients, strict=True)
        )
        raise DivergenceError(
            f"training diverged at step {self.global_step} (epoch {self.current_epoch}): "
            f"loss {estimate.loss.item():.4g}, gradient norm {norm.item():.4g}.\n{lines}\n"
            "Lower optimizer.lr, set clip_norm=1.0, or raise sigma; the last checkpoint of the run is kept."
        )

    def _require_finite_weights(self) -> None:
        """Before a checkpoint is written: an overflow may leave a finite 0-1 loss. Raises DivergenceError."""
        for name, parameter in self._parameters_by_name.items():
            if not torch.isfinite(parameter).all():
                raise DivergenceError(
                    f"'{name}' is no longer finite at the end of epoch {self.current_epoch} (step {self.global_step}). "
                    "Lower optimizer.lr or set clip_norm=1.0; the last checkpoint of the run is kept."
                )

    # ---- validation: the plain network, noise off --------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = self._in_dtype_of_weights(batch)
        logits = self.network(x)
        self.val_loss.update(self.loss(logits, y))
        self.val_accuracy.update(logits, y)

    def on_validation_epoch_end(self) -> None:
        self._compute_and_reset(val_loss=self.val_loss, val_accuracy=self.val_accuracy)

    def _compute_and_reset(self, **metrics: Any) -> dict[str, float]:
        """Once an epoch: logging every step costs more than a small network's step."""
        values = {name: float(metric.compute()) for name, metric in metrics.items()}
        for name, metric in metrics.items():
            self.log(name, values[name], logger=False)  # for the callbacks
            metric.reset()
        return values

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cost"] = {"forwards": self.forwards, "train_seconds": self.train_seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        cost = checkpoint["cost"]
        self.forwards, self.train_seconds = cost["forwards"], cost["train_seconds"]
