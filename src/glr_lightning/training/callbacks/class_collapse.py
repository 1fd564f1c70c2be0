"""Revival: a way back for classes that are never predicted.

Under 0-1 loss a class that no image is near to has no gradient: whatever is done to its logit, no loss changes. And
it easily comes to that. While the logits are small against their noise, E[L] is all but linear in them, and pays most
for the classes that stand apart; one that lies among others falls behind, and features that would tell it apart are
then not learned, for nothing depends on them.

So, every few steps, the output bias of a class is lifted when it is predicted for less than a tenth as many images
as bear its label, and again until it is not. Then images lie on its border, and losses do the rest. Only labels and
predictions are counted: no derivative is taken, and once all classes live nothing is changed any more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.chain import Chain

LIFT_BELOW = 0.1
"""A class is lifted when it is predicted for less than this share of the number of images that bear its label."""
LEAST_LABELS = 20
"""So many labels of a class must have been seen for that share to mean something."""


def output_bias(network: nn.Module, classes: int) -> nn.Parameter:
    """The bias of the logits. Raises ConfigurationError if there is none that is one number per class."""
    chain = Chain.of(network)
    bias = getattr(chain.layer(len(chain.sites) - 1), "bias", None)
    if not isinstance(bias, nn.Parameter) or bias.shape != (classes,):
        raise ConfigurationError(
            "revive lifts the output bias of a class, but the last layer has none; use network.bias=true, or "
            "revive=null."
        )
    return bias


def starving(labels: Tensor, predictions: Tensor) -> Tensor:
    """Which classes to lift, [classes] bool, from how often each was the label and the prediction, [classes] int64."""
    return (labels >= LEAST_LABELS) & (predictions < LIFT_BELOW * labels)


@torch.no_grad()
def lift(bias: Tensor, labels: Tensor, predictions: Tensor, by: float) -> Tensor:
    """Add `by`, in units of the logits, to the bias of every starving class, in place; returns how many there were."""
    which = starving(labels, predictions)
    bias.add_(which.to(bias.dtype), alpha=by)
    return which.sum()


DEAD_BELOW = 0.01
"""A class is dead when it is predicted for less than this share of the number of images that bear its label."""


REMEDY = "revive=0.5, network.centre=0.5, estimator=local_expectation, or a smaller batch_size and optimizer.lr"


def count(index: Tensor, classes: int) -> Tensor:
    """How often each class occurs in index [n] int64, [classes] int64. (torch.bincount would wait for the device.)"""
    return index.new_zeros(classes).index_add_(0, index, torch.ones_like(index))


class ClassCounts(Metric):
    """How often each class is the label and how often the prediction, over an epoch and all ranks."""

    full_state_update = False
    labels: Tensor
    predictions: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("labels", "predictions"):
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, y: Tensor) -> None:
        """logits [batch, classes], y [batch]."""
        self.labels += count(y, len(self.labels))
        self.predictions += count(logits.argmax(1), len(self.labels))

    def compute(self) -> Tensor:
        """[classes] bool: is the class dead?"""
        return (self.labels > 0) & (self.predictions < DEAD_BELOW * self.labels)


def news_of_classes(before: Sequence[int], now: Sequence[int], epoch: int, reviving: bool = False) -> list[str]:
    """What to say, once, about classes that died or recovered in an epoch, which is counted from 0; with what to
    do about it if all were alive before, or what is done already."""
    died, recovered = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    one = len(died) == 1
    lifts = "its bias until it is" if one else "their biases until they are"
    recovers = f"{'It' if one else 'They'} may recover; else try {REMEDY}."
    advice = f"revive lifts {lifts} predicted again." if reviving else recovers
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
    """class 3, or classes 3, 5."""
    return f"class{'' if len(numbers) == 1 else 'es'} {', '.join(map(str, numbers))}"
