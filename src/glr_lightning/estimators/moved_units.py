"""The losses with one unit of a layer moved at a time, everything else staying as it was drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.estimators.output_loss import OutputLoss, output_loss_for
from glr_lightning.estimators.passes import of_copies
from glr_lightning.losses import Loss
from glr_lightning.noise import Noise
from glr_lightning.propagation import narrow_linear
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import weight_of
from glr_lightning.propagation.moves import ChangedPart, Move, direct_part, moves
from glr_lightning.propagation.values import NoisyPass, NoisySite, Shapes


@dataclass(frozen=True)
class Beyond:
    """The part of a network above a layer: its graph, the noise drawn in it, and the losses under that noise."""

    graph: Graph
    noisy: NoisyPass
    sigma: Sequence[float]  # by site
    output_loss: OutputLoss
    u: Tensor  # [copies * batch, classes], the logits without their own noise
    losses: Tensor  # [copies * batch]
    _drawn: dict[int, NoisySite] = field(default_factory=dict, init=False, repr=False)
    _columns: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _without: dict[tuple[int, tuple[ChangedPart, ...]], Tensor] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def of(graph: Graph, noisy: NoisyPass, sigma: tuple[float, ...], loss: Loss, noise: Noise, y: Tensor) -> "Beyond":
        """Build from a pass with noise at all sites."""
        top = noisy.seen[-1]
        head = output_loss_for(loss, noise, sigma[-1], top.z.flatten(0, 1), of_copies(y, len(top.z)))
        u = top.v0.expand_as(top.z).flatten(0, 1)
        return Beyond(graph, noisy, sigma, head, u, head.values(u))

    def after_moves(self, at: NoisySite, target: Tensor, chosen: Tensor) -> Tensor:
        """The losses [m, copies, batch] with one unit moved at a time, all noise above being as it was drawn.

        What is behind the unit changes as `moves.py` says: where a linear layer reads the unit, the move of its
        pre-activations is a column of its weight.

        Args:
            at: the layer, as the noisy pass saw it.
            target: [copies, batch, *site], where each unit moves to.
            chosen: [m, copies, batch] int64, the units to move.
        """
        moved = _Moved(self, at, target.expand_as(at.v).flatten(0, 1), chosen.flatten(1))
        return self.output_loss.values(moved.logits()).view(chosen.shape)

    def changes_by_jumps(self, at: NoisySite, activation: PiecewiseConstant, columns: Tensor) -> Tensor:
        """By how much the losses change if a unit of two levels jumps, for every unit, [copies, batch, *site].

        Args:
            at: the layer.
            activation: its two levels.
            columns: [classes, units], how the logits answer a unit; nothing else changes.
        """
        low, high = activation.levels
        up = (at.v <= activation.cuts[0]).to(at.v.dtype).flatten(0, 1).flatten(1)
        losses = self.output_loss.after_jumps(self.u, up, high - low, columns)
        return (losses - self.losses[:, None]).view_as(at.v)

    def direct_changes(self, at: NoisySite) -> Tensor | None:
        """As `changes_by_jumps`, if of a unit's readers the last layer alone saw it jump; None if that is not one."""
        part, activation = direct_part(self.graph, at.site, self.shapes), self.graph.follower(at.site)
        if part is None or not isinstance(activation, PiecewiseConstant) or len(activation.levels) != 2:
            return None
        return self.changes_by_jumps(at, activation, part.of(self.columns(self.graph.output)).T)

    def moves(self, site: int) -> tuple[Move, ...]:
        """What changes behind a site."""
        return moves(self.graph, site, self.shapes)

    @property
    def shapes(self) -> Shapes:
        """The shapes of one sample."""
        return self.graph.shapes(self.noisy.values[0])

    def widest_above(self, at: NoisySite) -> int:
        """The most pre-activations of a sample in a layer that runs again when a unit moves."""
        behind = self.moves(at.site)
        whole = {self.graph.sites[at.site]} if any(move.numbers for move in behind) else set()
        whole |= {move.node for move in behind if move.form == "whole"}
        return max(other.v[0, 0].numel() for other in self.noisy.seen if self.graph.sites[other.site] in whole)

    def drawn(self, number: int) -> NoisySite | None:
        """What the noisy site at a node saw; None for other nodes, and for the logits, whose noise is not in them."""
        if not self._drawn:
            self._drawn.update((self.graph.sites[other.site], other) for other in self.noisy.seen[:-1])
        return self._drawn.get(number)

    def value(self, number: int) -> Tensor:
        """The value of a node in the noisy pass, [copies * batch, ...]; the logits without their own noise."""
        if (site := self.drawn(number)) is not None:
            return site.v.flatten(0, 1)
        value: Tensor = self.u if number == self.graph.output else self.noisy.values[number]
        return value

    def columns(self, number: int) -> Tensor:
        """What a linear layer returns more for each unit of its input, [in_features, out_features]."""
        layer = self.graph.layer_of[self.graph.sites.index(number)]
        if layer not in self._columns:
            self._columns[layer] = narrow_linear.columns_of(weight_of(self.graph.nodes[number].module))
        return self._columns[layer]

    def without(self, number: int, parts: tuple[ChangedPart, ...]) -> Tensor:
        """The value of a linear layer without what it takes from some parts of its input, [copies * batch, units]."""
        if (key := (number, parts)) not in self._without:
            value = self.value(number)
            for part in parts:
                value = value - narrow_linear.product(self.value(part.node), part.of(self.columns(number)))
            self._without[key] = value
        return self._without[key]


class _Moved:
    """The values behind moved units.

    Args:
        beyond: the network above.
        at: the layer whose units are moved.
        target: [copies * batch, *site], where each unit moves to.
        chosen: [m, copies * batch], the units to move.
    """

    def __init__(self, beyond: Beyond, at: NoisySite, target: Tensor, chosen: Tensor) -> None:
        self.beyond, self.site, self.chosen = beyond, at.site, chosen
        self.values = list(beyond.noisy.values)
        self.values[beyond.graph.sites[at.site]] = target
        self.steps: dict[int, Tensor] = {}

    def logits(self) -> Tensor:
        """The logits without their own noise, [m, copies * batch, classes]."""
        graph = self.beyond.graph
        for move in self.beyond.moves(self.site):
            if move.form == "number":
                self.values[move.node] = graph.call(move.node, self.values)
            elif move.parts:
                self.values[move.node] = self._by_columns(move).flatten(0, 1)
            elif move.form == "whole":
                self.values[move.node] = self._again(move)
        logits: Tensor = self.values[graph.output].unflatten(0, (len(self.chosen), -1))
        return logits

    def _again(self, move: Move) -> Tensor:
        """The value of a node that runs again as a whole, [m * copies * batch, ...]."""
        graph, m, values = self.beyond.graph, len(self.chosen), self.values
        if move.numbers:
            values = list(values)
            for number in move.numbers:
                values[number] = self._whole(number)
        value: Tensor = graph.call(move.node, values)
        other = self.beyond.drawn(move.node)
        if other is not None:
            value = graph.layouts.in_front(move.node, value).unflatten(0, (m, -1))
            value = value + (self.beyond.sigma[other.site] * other.z).flatten(0, 1)
            value = graph.layouts.put_back(move.node, value.flatten(0, 1))
        return value

    def _whole(self, number: int) -> Tensor:
        """The value of a node that is held as a number, as a tensor with rows for every move."""
        before, moved = self.beyond.value(number), self.values[number]
        value = before.flatten(1).repeat(len(self.chosen), 1, 1)
        value = value.scatter(2, self.chosen[..., None], _chosen(moved, self.chosen)[..., None])
        return self.beyond.graph.layouts.put_back(number, value.view(-1, *before.shape[1:]))

    def _by_columns(self, move: Move) -> Tensor:
        """The value of a linear layer that reads changed parts, [m, copies * batch, units]."""
        beyond, m = self.beyond, len(self.chosen)
        columns = beyond.columns(move.node)
        whole = tuple(part for part in move.parts if not part.is_number)
        value = beyond.without(move.node, whole)
        for part in whole:
            own = narrow_linear.product(self.values[part.node], part.of(columns))
            value = own.view(m, *value.shape[-2:]).add_(value)
        for part in move.parts:
            if part.is_number:
                value = torch.addcmul(value, self._step(part.node)[..., None], self._own_columns(part, columns))
        return value

    def _own_columns(self, part: ChangedPart, columns: Tensor) -> Tensor:
        """The columns of the moved units, [m, copies * batch, units], or [m, 1, units] where all samples have these."""
        chosen = self.chosen
        if chosen.stride(1) == 0:
            chosen = chosen[:, :1]
        return columns.index_select(0, (part.start + chosen).flatten()).view(*chosen.shape, -1)

    def _step(self, number: int) -> Tensor:
        """By how much the moved number of a node changes, [m, copies * batch]."""
        if number not in self.steps:
            self.steps[number] = _chosen(self.values[number] - self.beyond.value(number), self.chosen)
        return self.steps[number]


def _chosen(values: Tensor, chosen: Tensor) -> Tensor:
    """The numbers of samples [rows, ...] that were chosen, [m, rows] like `chosen`."""
    return values.flatten(1).gather(1, chosen.T).T.contiguous()
