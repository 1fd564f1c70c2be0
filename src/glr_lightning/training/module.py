"""The LightningModule: manual optimization with estimated gradients. It alone writes `.grad`."""

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.estimators import Estimate, Estimator
from glr_lightning.estimators.batch import checked_batch, require_kinds, require_labels
from glr_lightning.estimators.bound import Bound
from glr_lightning.losses import Loss
from glr_lightning.randomness import seeded


class MakeOptimizer(Protocol):
    """torch.optim.<Name> with its options bound."""

    def __call__(self, params: Any) -> Optimizer:
        """Make the optimizer of parameters or parameter groups."""


class MakeScheduler(Protocol):
    """torch.optim.lr_scheduler.<Name> with its options bound; stepped once an epoch."""

    def __call__(self, optimizer: Optimizer) -> LRScheduler:
        """Make the scheduler of an optimizer's learning rates."""


@dataclass(frozen=True)
class StepOutcome:
    """What callbacks can see of a training step, from before the optimizer's step on.

    Attributes:
        loss: the estimate's mean loss over the batch and the noise copies, a scalar.
        logits: [batch, classes].
        gradient_norm: the 2-norm of the whole gradient, a scalar; before any clipping.
        forwards: samples sent through the network, over all ranks.
    """

    loss: Tensor
    logits: Tensor
    gradient_norm: Tensor
    forwards: int


class GLRModule(pl.LightningModule):
    """Trains a network with the gradients that an estimator returns, and validates it without noise.

    Everything else that happens in training is a callback of `glr_lightning.training.callbacks`. A callback may
    replace `estimator`, extend `trained` and `optimizer_options` in its `setup`, and read `outcome` at every step.

    Args:
        network: a plain torch network.
        estimator: turns a batch into gradients.
        loss: the per-sample loss.
        optimizer: makes the optimizer from parameter groups, such as `torch.optim.Adam`.
        scheduler: makes the learning rate's scheduler from the optimizer; None: the rate is constant.
        seed: seeds the noise, together with the step and the rank.
        compile: whether steps run as one graph of `torch.compile`; see `Bound`.

    Attributes:
        trained: the parameters that are trained, by the name of their gradient.
        optimizer_options: options of single parameters by name, such as their `weight_decay`; or a `lr_factor`, which
            multiplies the optimizer's learning rate.
        outcome: of the present or the last training step.

    Raises:
        ConfigurationError: the estimator cannot train this network and loss.
    """

    outcome: StepOutcome

    def __init__(
        self,
        network: nn.Module,
        estimator: Estimator,
        loss: Loss,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        require_kinds(network, loss)
        estimator.check(network, loss)
        self.network, self.estimator, self.loss, self.seed = network, estimator, loss, seed
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.optimizer_options: dict[str, dict[str, Any]] = {}
        self._generator: torch.Generator | None = None  # one for all steps
        self._bound: Bound | None = None
        self._compiles = compile

    def forward(self, x: Tensor) -> Tensor:
        """Return the noise-free logits."""
        logits: Tensor = self.network(x)
        return logits

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the scheduler."""
        runs = itertools.groupby(self.trained, lambda name: self.optimizer_options.get(name, {}))
        groups = [{"params": [self.trained[name] for name in names], **options} for options, names in runs]
        optimizer = self.make_optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0)
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Estimate the gradients of a batch, write them into `.grad` and take a step."""
        outputs = self.write_gradients(batch)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()
        return outputs

    def write_gradients(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Estimate the gradients of a batch, write them into `.grad`, and return what the step is to return."""
        trainer = self.trainer
        x, y = self._in_dtype_of_weights(batch)
        if self._generator is None or self._generator.device != x.device:
            self._generator = torch.Generator(x.device)
        generator = seeded(self._generator, self.seed, trainer.global_step, trainer.global_rank)
        estimate = self._estimate(x, y, generator)
        gradients = self._mean_over_ranks(self._in_order(estimate))
        for parameter, gradient in zip(self.trained.values(), gradients, strict=True):
            parameter.grad = gradient
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # one kernel for all
        forwards = estimate.diagnostics["forwards"] * trainer.world_size
        # not by setattr, which would look for parameters in it
        vars(self)["outcome"] = StepOutcome(estimate.loss, estimate.logits, norm, forwards)
        return {"loss": estimate.loss, "logits": estimate.logits}

    def _estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Estimate the gradients; the first batch, and the first of a new estimator, is checked."""
        if self._bound is not None and self._bound.estimator is self.estimator:
            return self._bound.estimate(x, y, generator)
        if self._bound is not None and self._compiles:
            raise ConfigurationError(
                "compile=true compiles the step of one estimator, and a callback (annealing or learned_sigma) has "
                "changed it; leave out that callback, or compile.",
                option="compile",
            )
        with checked_batch(self.network, self.loss, x, y, generator):
            self._bound = self.estimator.bind(self.network, self.loss, compile=self._compiles)
            estimate = self._bound.estimate(x, y, generator)
        require_labels(y, estimate.logits)
        return estimate

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the per-sample losses and the logits of the network without noise."""
        x, y = self._in_dtype_of_weights(batch)
        logits = self.network(x)
        return {"loss": self.loss(logits, y), "logits": logits}

    def on_train_epoch_end(self) -> None:
        """Step the scheduler; with manual optimization Lightning does not."""
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LRScheduler):
            scheduler.step()

    def _in_dtype_of_weights(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pixels become float32 after Lightning has cast a batch, so precision=64-true is honoured here."""
        return batch[0].to(next(iter(self.trained.values())).dtype), batch[1]

    def _in_order(self, estimate: Estimate) -> list[Tensor]:
        """The gradients of the trained parameters, in their order."""
        by_name = estimate.gradients
        if estimate.log_sigma:
            by_name = by_name | {f"log_sigma.{site}": g for site, g in enumerate(estimate.log_sigma)}
        return [by_name[name] for name in self.trained]

    def _mean_over_ranks(self, gradients: list[Tensor]) -> list[Tensor]:
        """DDP reduces only what its own backward made; average the estimates in one flat buffer instead."""
        if self.trainer.world_size == 1:
            return gradients
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        mean = self.trainer.strategy.reduce(flat, reduce_op="mean")
        pieces = mean.split([gradient.numel() for gradient in gradients])
        return [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> NoReturn:
        """Raise ConfigurationError: a checkpoint holds weights only, and not the parts that a module is made of."""
        folder = Path(str(checkpoint_path)).parents[1:2]
        raise ConfigurationError(
            f"{checkpoint_path} holds weights and not the network that they belong to. For the network of a run folder "
            f"call glr_lightning.load_run({str(folder[0]) if folder else 'FOLDER'!r}); for a GLRModule of yours, make "
            f"it and call module.load_state_dict(torch.load({str(checkpoint_path)!r}, weights_only=True)"
            "['state_dict'])."
        )


def glr_module(pl_module: pl.LightningModule) -> GLRModule:
    """The module that a callback of this package is called with. Raises ConfigurationError for any other."""
    if not isinstance(pl_module, GLRModule):
        raise ConfigurationError(f"this callback is for the training of a GLRModule, got {type(pl_module).__name__}.")
    return pl_module


def require_working_optimizer(module: GLRModule) -> None:
    """Make optimizer and scheduler once and take a step of the rate; torch checks their options only then.

    Raises:
        ConfigurationError: torch refuses an option.
    """
    try:
        made = module.configure_optimizers()
        with warnings.catch_warnings():  # that the optimizer has not stepped
            warnings.simplefilter("ignore")
            if isinstance(made, dict):
                made["lr_scheduler"].step()
    except Exception as error:  # torch has no type of its own for these
        raise ConfigurationError(f"torch refuses the options of optimizer or scheduler: {words_of(error)}") from error
