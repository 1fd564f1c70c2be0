"""The losses with one unit of a layer moved at a time, everything else staying as it was drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from glr_lightning.estimators.output_loss import OutputLoss, output_loss_for
from glr_lightning.losses import Loss
from glr_lightning.noise import Noise
from glr_lightning.propagation.graph import Graph
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
        head = output_loss_for(loss, noise, sigma[-1], top.z.flatten(0, 1), y.repeat(len(top.z)))
        u = top.v0.expand_as(top.z).flatten(0, 1)
        return Beyond(graph, noisy, sigma, head, u, head.values(u))

    def after_moves(self, at: NoisySite, v: Tensor, chosen: Tensor, target: Tensor) -> Tensor:
        """The losses [copies, batch, m] with one unit moved at a time, all noise above being as it was drawn.

        Args:
            at: the layer, as the noisy pass saw it.
            v: [copies, batch, units], the noisy pre-activations of the layer, flattened.
            chosen: [copies, batch, m] int64, the units to move.
            target: [copies, batch, m], where to.
        """
        m = chosen.shape[2]
        moved = v.repeat(m, 1, 1, 1)
        moved.scatter_(3, chosen.permute(2, 0, 1)[..., None], target.permute(2, 0, 1)[..., None])
        u = self._logits(at, moved.view(m, *at.v.shape))
        return self.output_loss.values(u).view(m, *v.shape[:2]).permute(1, 2, 0)

    def _logits(self, at: NoisySite, v: Tensor) -> Tensor:
        """The logits without their own noise, [moves, copies * batch, classes], with other pre-activations at a site.

        Args:
            at: the site; the noise behind it stays as it was drawn.
            v: [moves, copies, batch, *site].
        """
        values = list(self.noisy.values)
        values[self.graph.sites[at.site]] = v.flatten(0, 2)
        drawn = {self.graph.sites[other.site]: other for other in self.noisy.seen}
        for number in self.graph.behind((at.site,))[1:]:
            value = self.graph.call(number, values)
            if number in drawn and number != self.graph.output:
                other = drawn[number]
                value = value.unflatten(0, (len(v), -1)) + (self.sigma[other.site] * other.z).flatten(0, 1)
                value = value.flatten(0, 1)
            values[number] = value
        logits: Tensor = values[self.graph.output].unflatten(0, (len(v), -1))
        return logits
