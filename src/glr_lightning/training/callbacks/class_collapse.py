"""Classes that a network stops predicting: count them, tell of them, and give them a way back.

Under 0-1 loss a class that no image is near to has no gradient: whatever is done to its logit, no loss changes. And
it easily comes to that. While the logits are small against their noise, E[L] is all but linear in them, and pays most
for the classes that stand apart; one that lies among others falls behind, and features that would tell it apart are
then not learned, for nothing depends on them. (A loss with a derivative always pulls such classes back.)

Reviving lifts, every few steps, the output bias of a class that is predicted for less than a tenth as many images as
bear its label, until it is not. Then images lie on its border, and losses do the rest. Only labels and predictions are
counted: no derivative is taken, and once all classes live nothing is changed any more.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.graph import Graph
from glr_lightning.training.callbacks.base import Recent, Sums, TrainingCallback
from glr_lightning.training.dead_classes import DEAD_BELOW, dead, dead_classes
from glr_lightning.training.module import GLRModule, glr_module
from glr_lightning.validation import Positive, checked

log = logging.getLogger(__name__)

LIFT_BELOW = 0.1
"""A class is lifted when it is predicted for less than this share of the number of images that bear its label."""
LEAST_LABELS = 20
"""Labels of a class that must have been seen for that share to mean something."""
REMEDY = (
    "callbacks=class_collapse, network.centre=0.5, estimator=local_expectation, a smaller batch_size or optimizer.lr"
)


class ClassCollapse(TrainingCallback):
    """Counts dead classes, logs when one dies or recovers, and revives them if asked to.

    metrics.csv has their number as `dead_classes`, checkpoints the classes themselves, where a run's result looks them
    up. Log messages are for losses without a derivative.

    Args:
        revive: what is added to the output bias of a class that is hardly predicted, every few steps, in units of the
            logits (`lifts` in metrics.csv counts how often); None: never.

    Raises:
        ConfigurationError: a number out of range; in `check`, a network to revive that has no output bias.
    """

    @checked
    def __init__(self, revive: Positive | None = None) -> None:
        self.revive = revive
        self.dead_classes: list[int] = []
        self._counts = Sums()
        self._recent = Recent()
        self._lifts: Tensor | int = 0  # of this epoch
        self._bias: nn.Parameter | None = None  # of the logits, looked up once a fit

    def check(self, trainer: pl.Trainer, module: GLRModule) -> None:
        """Raise ConfigurationError if there is no output bias to lift."""
        if self.revive is not None:
            output_bias(module.network)  # refuses a network without

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check once more, in a Trainer of one's own."""
        self.check(trainer, glr_module(pl_module))
        self._bias = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a step, and lift every few steps."""
        module = glr_module(pl_module)
        # at the end of an epoch too: it may move a bias, and validation tests what the checkpoint is going to hold
        columns = self._recent.add(trainer, module.outcome.logits, batch[1])
        if columns is not None:
            self._update(trainer, module, columns)

    def _update(self, trainer: pl.Trainer, module: GLRModule, columns: list[tuple[Tensor, ...]]) -> None:
        logits, y = (torch.cat(column) for column in columns)
        labels, predictions = count(y, logits.shape[1]), count(logits.argmax(1), logits.shape[1])
        self._counts.add(labels=labels, predictions=predictions)
        if self.revive is not None:
            if self._bias is None:
                self._bias = output_bias(module.network, logits.shape[1])
            if trainer.world_size > 1:  # the weights must stay equal on all ranks
                both = torch.stack([labels, predictions])
                labels, predictions = trainer.strategy.reduce(both, reduce_op="sum")
            self._lifts = self._lifts + lift(self._bias, labels, predictions, self.revive)

    @classmethod
    def changes_training(cls, options: Mapping[str, Any]) -> bool:
        """Return whether classes are revived."""
        return options["revive"] is not None

    def end_epoch(self, trainer: pl.Trainer, module: GLRModule) -> dict[str, float]:
        """Look for dead classes, and tell of those that are new or recovered."""
        left = self._recent.take()
        if left is not None:
            self._update(trainer, module, left)
        before, self.dead_classes = self.dead_classes, dead(**self._counts.take(trainer)).nonzero().flatten().tolist()
        if trainer.is_global_zero and not module.loss.differentiable:
            reviving = self.revive is not None
            for line in news_of_classes(before, self.dead_classes, trainer.current_epoch, reviving):
                log.warning(line)
        lifts, self._lifts = float(self._lifts), 0
        row = {"dead_classes": float(len(self.dead_classes))}
        return row if self.revive is None else row | {"lifts": lifts}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the dead classes, so that a resumed run tells of them once."""
        checkpoint["dead_classes"] = self.dead_classes

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the dead classes of a checkpoint."""
        self.dead_classes = dead_classes(checkpoint)


def output_bias(network: nn.Module, classes: int | None = None) -> nn.Parameter:
    """The bias of the logits. Raises ConfigurationError if there is none that is one number per class."""
    graph = Graph.of(network)
    bias = getattr(graph.layer(len(graph.sites) - 1), "bias", None)
    if not isinstance(bias, nn.Parameter) or bias.shape != (classes or len(bias),):
        raise ConfigurationError(
            "callbacks.class_collapse.revive lifts the output bias of a class, but the last layer has none; use "
            "network.bias=true, or callbacks.class_collapse.revive=null.",
            option="callbacks.class_collapse.revive",
        )
    return bias


def starving(labels: Tensor, predictions: Tensor) -> Tensor:
    """Which classes to lift, [classes] bool, from how often each was the label and the prediction, [classes] int64."""
    return (labels >= LEAST_LABELS) & (predictions < LIFT_BELOW * labels)


@torch.no_grad()
def lift(bias: Tensor, labels: Tensor, predictions: Tensor, by: float) -> Tensor:
    """Add `by`, in units of the logits, to the bias of every starving class, in place; return how many there were."""
    which = starving(labels, predictions)
    bias.add_(which.to(bias.dtype), alpha=by)
    return which.sum()


def count(index: Tensor, classes: int) -> Tensor:
    """Return how often each class occurs in index [n] int64, [classes] int64, without waiting for the device."""
    return index.new_zeros(classes).index_add_(0, index, torch.ones_like(index))


def news_of_classes(before: Sequence[int], now: Sequence[int], epoch: int, reviving: bool = False) -> list[str]:
    """What to say, once, about classes that died or recovered in an epoch, which is counted from 0.

    It names what to do about it if all were alive before, or what is done already.
    """
    died, recovered = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    one = len(died) == 1
    lifts = "its bias until it is" if one else "their biases until they are"
    recovers = f"{'It' if one else 'They'} may recover; else try {REMEDY}."
    advice = f"callbacks.class_collapse.revive lifts {lifts} predicted again." if reviving else recovers
    news = []
    if died:
        remedy = "" if before else f" {advice}"
        labels = "the label" if one else "their labels"
        news.append(
            f"{in_words(died)} died in epoch {epoch + 1}: predicted for less than {DEAD_BELOW:.0%} as many training "
            f"images as bear {labels}.{remedy}"
        )
    if recovered:
        news.append(f"{in_words(recovered)} recovered in epoch {epoch + 1}.")
    return news


def in_words(numbers: Sequence[int]) -> str:
    """Return "class 3", or "classes 3, 5"."""
    return f"class{'' if len(numbers) == 1 else 'es'} {', '.join(map(str, numbers))}"
