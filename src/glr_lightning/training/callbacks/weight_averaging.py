"""The mean of the weights over the last steps of a training."""

from collections.abc import Mapping
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from annotated_types import Interval
from torch import Tensor

from glr_lightning.training.callbacks.base import TrainingCallback, epochs_of
from glr_lightning.training.module import GLRModule, glr_module
from glr_lightning.validation import checked


class WeightAveraging(TrainingCallback):
    """Averages the weights over the last part of a training, which takes the noise of the gradients out of them.

    The steps go on from the weights themselves. From the first step of that part on the mean is what is validated, what
    checkpoints hold as the network's weights, and with what the training ends; they keep the weights themselves too,
    so that a run resumes bit for bit. Every parameter is averaged, buffers are not.

    References. Polyak & Juditsky, SIAM J. Control Optim. 30, 1992; Izmailov et al., UAI 2018.

    Args:
        share: of the steps of the training, the last ones, in (0, 1].

    Raises:
        ConfigurationError: a share out of range; in `check`, a Trainer without a number of epochs.
    """

    @checked
    def __init__(self, share: Annotated[float, Interval(gt=0, le=1)]) -> None:
        self.share = share
        self._mean: list[Tensor] | None = None  # in the order of the module's parameters; None: the part has not begun
        self._steps = 0  # whose weights are in the mean
        self._first = 0  # the number of the first of them in the training

    def check(self, trainer: pl.Trainer, module: GLRModule) -> None:
        """Raise ConfigurationError unless the training has a number of epochs."""
        epochs_of(trainer, "weight averaging")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin without a mean; a checkpoint may bring one."""
        self.check(trainer, glr_module(pl_module))
        self._mean, self._steps = None, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look up when to begin."""
        steps = epochs_of(trainer, "weight averaging") * int(trainer.num_training_batches)
        self._first = steps - max(1, round(self.share * steps)) + 1

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the weights of a step to the mean."""
        if trainer.global_step < self._first:
            return
        weights: list[Tensor] = [*pl_module.parameters()]
        self._steps += 1
        if self._mean is None:
            self._mean = [weight.detach().clone() for weight in weights]
        else:
            torch._foreach_lerp_(self._mean, weights, 1 / self._steps)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the mean."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the weights."""
        self._swap(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the mean in the network."""
        self._swap(pl_module)
        self._mean = None

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        """Exchange the weights and their mean."""
        if self._mean is not None:
            for weight, mean in zip(pl_module.parameters(), self._mean, strict=True):
                kept = weight.clone()
                weight.copy_(mean)
                mean.copy_(kept)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the mean as the weights, and beside them the weights to go on with."""
        if self._mean is not None:
            weights = checkpoint["state_dict"]
            mean_of = dict(zip(pl_module.parameters(), self._mean, strict=True))
            shared_too = pl_module.named_parameters(remove_duplicate=False)
            checkpoint["state_dict"] = weights | {name: mean_of[weight] for name, weight in shared_too}
            checkpoint["weight_averaging"] = {"steps": self._steps, "weights": weights}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the mean, and give the network the weights to go on with."""
        saved: Mapping[str, Any] | None = checkpoint.get("weight_averaging")
        if saved is not None:
            self._steps = saved["steps"]
            means = checkpoint["state_dict"]
            self._mean = [means[name].to(weight.device, copy=True) for name, weight in pl_module.named_parameters()]
            pl_module.load_state_dict(saved["weights"])
