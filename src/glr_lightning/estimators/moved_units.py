"""The losses with one unit of a layer moved at a time, everything else staying as it was drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from glr_lightning.estimators.output_loss import OutputLoss, output_loss_for
from glr_lightning.losses import Loss
from glr_lightning.noise import Noise
from glr_lightning.propagation.chain import Chain, NoisySite
from glr_lightning.propagation.residual_steps import State, plus


@dataclass(frozen=True)
class Beyond:
    """The part of a network above a layer: the chain, the noise drawn in it, and the losses under that noise."""

    chain: Chain
    seen: tuple[NoisySite, ...]
    sigma: Mapping[int, float]  # by site
    output_loss: OutputLoss
    u: Tensor  # [copies * batch, classes], the logits without their own noise
    losses: Tensor  # [copies * batch]

    @staticmethod
    def of(
        chain: Chain, seen: Sequence[NoisySite], sigma: tuple[float, ...], loss: Loss, noise: Noise, y: Tensor
    ) -> "Beyond":
        """Build from a pass with noise at all sites."""
        top = seen[-1]
        head = output_loss_for(loss, noise, sigma[-1], top.z.flatten(0, 1), y.repeat(len(top.z)))
        u = top.v0.expand_as(top.z).flatten(0, 1)
        return Beyond(chain, tuple(seen), dict(enumerate(sigma)), head, u, head.values(u))

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
        state: State = (moved.view(-1, *at.v.shape[2:]), *at.waiting)
        for position in range(self.chain.sites[at.site] + 1, len(self.chain.modules)):
            state = self.chain.step(position, state)
            if position in self.chain.sites[:-1]:
                site = self.chain.sites.index(position)
                state = (plus(state[0], self.sigma[site] * self.seen[site].z.flatten(0, 1)), *state[1:])
        return self.output_loss.values(state[0].unflatten(0, (m, -1))).view(m, *v.shape[:2]).permute(1, 2, 0)
