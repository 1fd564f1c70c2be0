"""The LightningModule: manual optimization with estimated gradients. It alone writes `.grad`."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from glr_lightning.errors import ConfigurationError, DivergenceError
from glr_lightning.estimators import Estimate, Estimator, LikelihoodRatio
from glr_lightning.losses import Loss
from glr_lightning.propagation.chain import Chain
from glr_lightning.randomness import step_generator
from glr_lightning.training.callbacks import learned_sigma as scales
from glr_lightning.training.callbacks.annealing import Annealing
from glr_lightning.training.callbacks.class_collapse import ClassCounts, count, lift, news_of_classes, output_bias
from glr_lightning.training.callbacks.gradient_quality import SignalToNoise, WatchedBaseline, watched

CHECK_EVERY = 50
"""Steps between looks at the loss on an accelerator, where each look waits for the device."""
METRICS_EVERY = 50
"""Steps whose metrics are updated together: torchmetrics' own bookkeeping costs as much as a small network's step."""


class MakeOptimizer(Protocol):
    """torch.optim.<Name> with its options bound."""

    def __call__(self, params: Any) -> torch.optim.Optimizer: ...


class MakeScheduler(Protocol):
    """torch.optim.lr_scheduler.<Name> with its options bound; stepped once an epoch."""

    def __call__(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler: ...


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
        learn_sigma: learn the noise scales, one per "layer" or per "neuron", or None: they stay the estimator's.
        sigma_lr: the learning rate of their logarithms, or None: the optimizer's own. They have no weight decay.
        lr_factors: for every layer with weights a factor of the optimizer's learning rate, with which the scheduler
            starts (one that sets rates of its own undoes it); None: no factors.
        annealing: the estimator of every epoch, or None: always the same.
        revive: lift the output bias of classes that are hardly predicted by so much, in units of the logits (see
            glr_lightning.training.callbacks.class_collapse); None: never.
        diagnostics: log how good the gradients are (`SignalToNoise`, `WatchedBaseline`).
        notify: is told in one line when a class dies or recovers under a loss that has no derivative.

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
        learn_sigma: str | None = None,
        sigma_lr: float | None = None,
        lr_factors: Sequence[float] | None = None,
        annealing: Annealing | None = None,
        revive: float | None = None,
        diagnostics: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.estimator = estimator
        self.loss = loss
        self.seed = seed
        self.clip_norm = clip_norm
        self.sigma_lr = sigma_lr
        self.annealing = annealing
        self.notify = notify
        self.forwards = 0
        self.dead_classes: list[int] = []
        self.train_seconds = 0.0
        self._clock = 0.0
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._parameters_by_name = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._trained = list(self._parameters_by_name)  # of the network
        self.log_sigma = scales.log_scales(estimator, network, learn_sigma) if learn_sigma else nn.ParameterList()
        self._parameters_by_name |= {f"log_sigma.{site}": p for site, p in enumerate(self.log_sigma)}
        if learn_sigma and annealing is not None and annealing.changes("sigma"):
            raise ConfigurationError(
                f"learn_sigma={learn_sigma} and a sigma_schedule would both move sigma; "
                "use sigma_schedule=constant, or learn_sigma=null."
            )
        # torchmetrics would wait for the device at every step to look for NaNs; _require_finite looks in its own time
        self.train_loss, self.grad_norm, self.val_loss = (MeanMetric(nan_strategy="disable") for _ in range(3))
        self.train_accuracy, self.val_accuracy = (
            MulticlassAccuracy(classes, average="micro", validate_args=False) for _ in range(2)
        )
        self.class_counts = ClassCounts(classes)
        self.revive = revive
        if revive is not None:
            output_bias(network, classes)  # refuses a network without
        self._lifts: Tensor | int = 0  # of this epoch
        self._outcomes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # of steps that no metric knows yet
        self.snr = SignalToNoise() if diagnostics else None
        self._watch: WatchedBaseline | None = None
        estimator.check(network, loss)
        self._lr_factors = None if lr_factors is None else self._checked_factors(lr_factors)
        self._prepare(0)

    def _checked_factors(self, factors: Sequence[float]) -> tuple[float, ...]:
        sites = len(Chain.of(self.network).sites)
        fine = isinstance(factors, Sequence) and all(
            isinstance(f, int | float) and not isinstance(f, bool) and 0 <= f < math.inf for f in factors
        )
        if not fine or len(factors) != sites:
            raise ConfigurationError(
                f"lr_factors must be a factor of the learning rate for each of the {sites} layers with weights, as "
                f"{[0.1] + [1.0] * (sites - 1)}, or null, got {factors!r}."
            )
        if self.log_sigma:
            raise ConfigurationError("lr_factors and learn_sigma do not go together; leave out one of them.")
        return tuple(factors)

    def _prepare(self, epoch: int) -> None:
        """The estimator of an epoch: a function of the epoch alone, so that a resumed run has the same."""
        self._present = self.estimator if self.annealing is None else self.annealing.at(epoch)
        if self.snr is not None:
            self._present, self._watch = watched(self._present)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def configure_optimizers(self) -> Any:
        weights: list[Any] = [self._parameters_by_name[name] for name in self._trained]
        if self.log_sigma:
            lr = {} if self.sigma_lr is None else {"lr": self.sigma_lr}
            weights = [{"params": weights}, {"params": list(self.log_sigma), "weight_decay": 0.0, **lr}]
        elif self._lr_factors is not None:
            weights = self._weights_by_layer()
        optimizer = self._make_optimizer(weights)
        for group, factor in zip(optimizer.param_groups, self._lr_factors or (), strict=False):
            group["lr"] *= factor
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    def _weights_by_layer(self) -> list[dict[str, Any]]:
        """A parameter group for every layer, in their order."""
        layers: dict[str, list[nn.Parameter]] = {name: [] for name in Chain.of(self.network).site_names}
        for name in self._trained:
            layers[name.rpartition(".")[0]].append(self._parameters_by_name[name])
        return [{"params": parameters} for parameters in layers.values()]

    # ---- training -----------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = self._in_dtype_of_weights(batch)
        generator = step_generator(self.seed, self.global_step, self.global_rank, x.device)
        estimate = self._estimate(x, y, generator)
        gradients = [*(estimate.gradients[name] for name in self._trained), *estimate.log_sigma]
        if self.trainer.world_size > 1:
            gradients = self._mean_over_ranks(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if x.device.type == "cpu" or self.global_step % CHECK_EVERY == 0 or self.trainer.is_last_batch:
            self._require_finite(estimate, gradients, norm)
        if self.snr is not None:  # before they are clipped
            self.snr.update(dict(zip(self._trained, gradients, strict=False)))
        for parameter, gradient in zip(self._parameters_by_name.values(), gradients, strict=True):
            parameter.grad = gradient
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters_by_name.values(), self.clip_norm, norm)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()

        self.forwards += estimate.diagnostics["forwards"] * self.trainer.world_size
        self._outcomes.append((estimate.loss, norm, estimate.logits, y))
        # at the end of an epoch too, since it may move a bias, and validation shall judge what the checkpoint holds
        if len(self._outcomes) == METRICS_EVERY or self.trainer.is_last_batch:
            self._update_metrics()

    def _update_metrics(self) -> None:
        losses, norms, logits, labels = zip(*self._outcomes, strict=True)
        self._outcomes.clear()
        self.train_loss.update(torch.stack(losses))
        self.grad_norm.update(torch.stack(norms))
        every_logits, every_label = torch.cat(logits), torch.cat(labels)
        self.train_accuracy.update(every_logits, every_label)
        self.class_counts.update(every_logits, every_label)
        if self.revive is not None:
            self._revive(self.revive, every_logits, every_label)

    def _revive(self, by: float, logits: Tensor, y: Tensor) -> None:
        bias = output_bias(self.network, logits.shape[1])  # held as an attribute it would be a second key of the state
        counts = torch.stack([count(y, len(bias)), count(logits.argmax(1), len(bias))])
        if self.trainer.world_size > 1:  # the weights must stay equal on all ranks
            counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        self._lifts = self._lifts + lift(bias, counts[0], counts[1], by)

    def _estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        if not self.log_sigma:
            return self._present.estimate(self.network, self.loss, x, y, generator=generator)
        assert isinstance(self._present, LikelihoodRatio)  # as log_scales has checked
        present = dataclasses.replace(self._present, sigma=tuple(self._scales()))
        return present.estimate(self.network, self.loss, x, y, generator=generator)

    def _scales(self) -> list[Tensor]:
        """The learned sigma of every layer: positive, whatever the optimizer does."""
        return [log_sigma.detach().exp() for log_sigma in self.log_sigma]

    def _in_dtype_of_weights(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pixels become float32 after Lightning has cast a batch, so precision=64-true is for us to honour."""
        return batch[0].to(next(self.network.parameters()).dtype), batch[1]

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self._prepare(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        self._require_finite_weights()
        row = self._compute_and_reset(
            train_loss=self.train_loss, train_accuracy=self.train_accuracy, grad_norm=self.grad_norm
        )
        row |= {name: float(self.trainer.callback_metrics.get(name, math.nan)) for name in ("val_loss", "val_accuracy")}
        row |= self._noise_of_epoch() | {"dead_classes": float(len(self._look_for_dead_classes()))}
        if self.snr is not None:
            row |= self.snr.compute_and_reset() | (self._watch.compute_and_reset() if self._watch else {})
        if self.revive is not None:
            row["lifts"], self._lifts = float(self._lifts), 0
        row |= {"epoch": self.current_epoch, "lr": self._lr_of(scheduler), "forwards": self.forwards}
        # Lightning would write it after the checkpoint, and an interruption between the two would lose it
        for logger in self.loggers:
            logger.log_metrics({k: v for k, v in row.items() if v == v}, step=self.global_step - 1)
        scheduler.step()
        now = time.perf_counter()
        self.train_seconds += now - self._clock
        self._clock = now

    def _lr_of(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> float:
        """The learning rate, before the factors of the layers."""
        factors = self._lr_factors or (1.0,)
        largest = max(range(len(factors)), key=factors.__getitem__)
        return float(scheduler.get_last_lr()[largest]) / (factors[largest] or 1.0)

    def _noise_of_epoch(self) -> dict[str, float]:
        """What a schedule or learning has made of the noise."""
        row: dict[str, float] = scales.summary(self.network, self._scales()) if self.log_sigma else {}
        present: Any = self._present
        if self.annealing is not None and self.annealing.changes("copies"):
            row["copies"] = present.copies
        if self.annealing is not None and self.annealing.changes("sigma"):
            if isinstance(present.sigma, tuple):
                names = [f"sigma_{name}" for name in Chain.of(self.network).site_names]
                row |= dict(zip(names, present.sigma, strict=True))
            else:
                row["sigma"] = present.sigma
        return row

    def _look_for_dead_classes(self) -> list[int]:
        """The classes that are hardly predicted any more; 0-1 loss never pulls such a class back."""
        before, self.dead_classes = self.dead_classes, self.class_counts.compute().nonzero().flatten().tolist()
        self.class_counts.reset()
        # a loss with a derivative always pulls them back
        if self.notify is not None and self.trainer.is_global_zero and not self.loss.differentiable:
            reviving = self.revive is not None
            for line in news_of_classes(before, self.dead_classes, self.current_epoch, reviving):
                self.notify(line)
        return self.dead_classes

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
        learned = " or sigma_lr" if self.log_sigma else ""
        noisy = ", or raise sigma" if self.estimator.objective != "noise_free" else ""
        raise DivergenceError(
            f"training diverged at step {self.global_step} (epoch {self.current_epoch + 1}): "
            f"loss {estimate.loss.item():.4g}, gradient norm {norm.item():.4g}.\n{lines}\n"
            f"Lower optimizer.lr{learned}, or set clip_norm=1.0{noisy}; the last checkpoint of the run is kept."
        )

    def _require_finite_weights(self) -> None:
        """Before a checkpoint is written: an overflow may leave a finite 0-1 loss. Raises DivergenceError."""
        for name, parameter in self._parameters_by_name.items():
            if not torch.isfinite(parameter).all():
                raise DivergenceError(
                    f"'{name}' is no longer finite at the end of epoch {self.current_epoch + 1} "
                    f"(step {self.global_step}). "
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
        checkpoint["dead_classes"] = self.dead_classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        cost = checkpoint["cost"]
        self.forwards, self.train_seconds = cost["forwards"], cost["train_seconds"]
        self.dead_classes = checkpoint.get("dead_classes", [])
