"""Baselines: what is subtracted from a copy's loss to lower the variance without moving the mean.

E[b_k s(z_k)] = 0 holds when b_k is independent of z_k, so b_k may use only losses of copies that are
independent of copy k (Law 2). A moving average that includes the present loss is biased, and so is leaving
out only the own loss when copies come in dependent groups; neither is offered.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import Checked


class Baseline(Checked, ABC):
    """A rule for b in (L - b)."""

    needs_clean: ClassVar[bool] = False
    """Whether it uses the loss of the noise-free pass."""

    required_groups: ClassVar[int] = 1
    """The smallest number of independent groups of copies."""

    def check(self, groups: int) -> None:
        """Refuse too few independent groups.

        Raises:
            ConfigurationError: fewer groups than `required_groups`.
        """
        if groups < self.required_groups:
            raise ConfigurationError(
                f"this baseline needs at least {self.required_groups} independent groups of copies to leave one out, "
                f"got {groups}; raise copies, for example copies=32 (at least 2 with sampling=independent, 4 with "
                "antithetic), or sampling.randomisations (2 with sobol), or use baseline=clean."
            )

    @abstractmethod
    def __call__(self, loss: Tensor, group: Tensor, clean_loss: Tensor | None) -> Tensor:
        """Return the baseline of every copy and sample.

        Args:
            loss: [copies, batch].
            group: [copies] int64, the dependence group of each copy.
            clean_loss: [batch], the noise-free loss, or None where `needs_clean` is false.

        Returns:
            A tensor that broadcasts to [copies, batch].
        """


@dataclass(frozen=True)
class NoBaseline(Baseline):
    """b = 0, as in the published formula."""

    def __call__(self, loss: Tensor, group: Tensor, clean_loss: Tensor | None) -> Tensor:
        """Return zero."""
        return torch.zeros_like(loss[:1])


@dataclass(frozen=True)
class Clean(Baseline):
    """b = the sample's noise-free loss; one extra forward pass per step, independent of every copy."""

    needs_clean = True

    def __call__(self, loss: Tensor, group: Tensor, clean_loss: Tensor | None) -> Tensor:
        """Return the clean loss."""
        assert clean_loss is not None
        return clean_loss[None]


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """b_k = the mean loss of the same sample over all copies outside the group of copy k.

    With groups of m copies out of K:  b_k = (sum_j L_j - sum_{j in group(k)} L_j) / (K - m).
    """

    required_groups = 2

    def __call__(self, loss: Tensor, group: Tensor, clean_loss: Tensor | None) -> Tensor:
        """Return the mean loss over the other groups."""
        counted = nn.functional.pad(loss, (0, 1), value=1.0)  # a last column that counts copies
        per_group = torch.zeros_like(counted).index_add_(0, group, counted)  # at most one group per copy
        others = counted.sum(0) - per_group.index_select(0, group)
        return others[..., :-1] / others[..., -1:]
