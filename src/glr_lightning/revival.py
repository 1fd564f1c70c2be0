"""Revival: a way back for classes that are never predicted.

Under 0-1 loss a class that no image is near to has no gradient: whatever is done to its logit, no loss changes. And
it easily comes to that. While the logits are small against their noise, E[L] is all but linear in them, and pays most
for the classes that stand apart; one that lies among others falls behind, and features that would tell it apart are
then not learned, for nothing depends on them.

So, every few steps, the output bias of a class is lifted when it is predicted for less than a tenth as many images
as bear its label, and again until it is not. Then images lie on its border, and losses do the rest. Only labels and
predictions are counted: no derivative is taken, and once all classes live nothing is changed any more.
"""

import torch
from torch import Tensor, nn

from glr_lightning.chain import Chain
from glr_lightning.errors import ConfigurationError

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
