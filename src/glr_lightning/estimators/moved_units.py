"""The losses with one unit of a layer moved at a time, everything else staying as it was drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glr_lightning.estimators.output_loss import OutputLoss, output_loss_for
from glr_lightning.estimators.passes import of_copies
from glr_lightning.losses import Loss
from glr_lightning.noise import Noise
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import weight_of
from glr_lightning.propagation.readout import next_linear
from glr_lightning.propagation.values import NoisyPass, NoisySite


@dataclass(frozen=True)
class Beyond:
    """The part of a network above a layer: its graph, the noise drawn in it, and the losses under that noise."""

    graph: Graph
    noisy: NoisyPass
    sigma: Sequence[float]  # by site
    output_loss: OutputLoss
    u: Tensor  # [copies * batch, classes], the logits without their own noise
    losses: Tensor  # [copies * batch]

    @staticmethod
    def of(graph: Graph, noisy: NoisyPass, sigma: tuple[float, ...], loss: Loss, noise: Noise, y: Tensor) -> "Beyond":
        """Build from a pass with noise at all sites."""
        top = noisy.seen[-1]
        head = output_loss_for(loss, noise, sigma[-1], top.z.flatten(0, 1), of_copies(y, len(top.z)))
        u = top.v0.expand_as(top.z).flatten(0, 1)
        return Beyond(graph, noisy, sigma, head, u, head.values(u))

    def after_moves(self, at: NoisySite, target: Tensor, chosen: Tensor) -> Tensor:
        """The losses [m, copies, batch] with one unit moved at a time, all noise above being as it was drawn.

        Where a linear layer reads the unit, the move of its pre-activations is a column of its weight, and only what is
        behind that layer runs again; elsewhere all that is behind the unit's own.

        Args:
            at: the layer, as the noisy pass saw it.
            target: [copies, batch, *site], where each unit moves to.
            chosen: [m, copies, batch] int64, the units to move.
        """
        reader = self._reader(at)
        if reader is None:
            v = at.v.flatten(2).repeat(len(chosen), 1, 1, 1)
            v.scatter_(3, chosen[..., None], of_units(target, chosen)[..., None])
            u = self._logits(at.site, v.view(-1, *at.v.shape))
        else:
            u = self._logits(reader, self._pushed(at, reader, target, chosen))
        return self.output_loss.values(u).view(chosen.shape)

    def _reader(self, at: NoisySite) -> int | None:
        """The site of the linear layer that reads each unit by one column; none if it is applied to several places."""
        reader = next_linear(self.graph, at.site)
        if reader is None:
            return None
        above = next(other for other in self.noisy.seen if other.site == reader)
        return reader if above.v.dim() == 3 else None

    def _pushed(self, at: NoisySite, reader: int, target: Tensor, chosen: Tensor) -> Tensor:
        """The pre-activations [m, copies, batch, units] of the linear layer that reads a site."""
        activation = self.graph.follower(at.site)
        assert activation is not None  # `next_linear`
        step = of_units(activation(target) - activation(at.v), chosen)
        above = next(other for other in self.noisy.seen if other.site == reader)
        if chosen.stride(1) == chosen.stride(2) == 0:  # the same units of all samples
            chosen = chosen[:, :1, :1]
        columns = weight_of(self.graph.layer(reader)).T.contiguous()
        own = columns.index_select(0, chosen.flatten()).view(*chosen.shape, -1)
        return torch.addcmul(above.v, step[..., None], own)

    def widest_above(self, at: NoisySite) -> int:
        """The most pre-activations of a sample in a layer that runs again when a unit moves."""
        reader = self._reader(at)
        first = at.site if reader is None else reader
        return max(other.v[0, 0].numel() for other in self.noisy.seen[first:])

    def _logits(self, site: int, v: Tensor) -> Tensor:
        """The logits without their own noise, [moves, copies * batch, classes], with other pre-activations at a site.

        Args:
            site: its number; the noise behind it stays as it was drawn.
            v: [moves, copies, batch, *site].
        """
        values = list(self.noisy.values)
        values[self.graph.sites[site]] = self.graph.layouts.put_back(self.graph.sites[site], v.flatten(0, 2))
        drawn = {self.graph.sites[other.site]: other for other in self.noisy.seen}
        for number in self.graph.behind((site,))[1:]:
            value = self.graph.call(number, values)
            if number in drawn and number != self.graph.output:
                other = drawn[number]
                value = self.graph.layouts.in_front(number, value).unflatten(0, (len(v), -1))
                value = value + (self.sigma[other.site] * other.z).flatten(0, 1)
                value = self.graph.layouts.put_back(number, value.flatten(0, 1))
            values[number] = value
        logits: Tensor = values[self.graph.output].unflatten(0, (len(v), -1))
        return logits


def of_units(values: Tensor, chosen: Tensor) -> Tensor:
    """The values [copies, batch, *site] of the chosen units, [m, copies, batch] like `chosen`."""
    return values.flatten(2).permute(2, 0, 1).gather(0, chosen)
