"""Units of a layer two below the logits, moved one at a time: each changes a window of the layer that reads them.

    layer --threshold--> reader (a convolution, or linear) --threshold--> affine modules and the logits

The noise is in the layer alone. A unit (c, i, j) that jumps adds a column of the reader's weight to the pre-activations
a within its window, the kernel's places times all channels; of these few cross their own threshold, and the logits move
by what those read:

    u(unit) = u + sum_{taps t} W_p(t) (phi(a_p(t) + step K_t,c) - phi(a_p(t))),   p(t) the place that reads it by tap t.

All units that a tap connects to a place make one batched product, so there is neither a forward pass nor a gathered
readout for each unit. For most of them the window hardly matters, so some are chosen: the same number at each place of
the layer, over all samples and channels, with probabilities in proportion to the unit's weight f(t) / sigma times how
far the loss moves if single units of its window jump. The probabilities are positive, and what a chosen unit says is
divided by them, so the mean stays that of all units.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.estimators.moved_units import Beyond
from glr_lightning.estimators.settings import even_parts
from glr_lightning.estimators.unit_choice import by_weight
from glr_lightning.networks.modules import Shift
from glr_lightning.noise import Noise
from glr_lightning.propagation.function_call import FunctionCall, adds, keeps_order
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import weight_of
from glr_lightning.propagation.readout import is_under_the_logits, readout_weight
from glr_lightning.propagation.row_layout import FIRST
from glr_lightning.propagation.values import NoisySite, Shapes

MOVED_ELEMENTS = 2**22
"""Pre-activations of a layer, over batch and copies, of which units are chosen at once (16 MiB)."""
AT_ONCE = 2**19
"""Pre-activations within windows that are held at once (2 MiB)."""
LEAST_SHARE = 0.1
"""Of the mean over all units, how much is added to what a window matters: no probability may vanish."""

Slices = tuple[slice, slice]


class Tap(NamedTuple):
    """The places of a layer that the reader reads with one element of its kernel.

    Attributes:
        own: these places, in the grid of the layer.
        above: the places that read them, in the grid of the reader.
        columns: [2 in, out], what a jump down of each unit adds to the pre-activations above, then a jump up.
        readout: [places, classes, out], how the logits read those places above.
    """

    own: Slices
    above: Slices
    columns: Tensor
    readout: Tensor


def reader_of(graph: Graph, site: int) -> int | None:
    """The site of the layer that reads the units of a site in windows, None if there is none.

    Both have thresholds of two levels behind them, and the reader is right under the logits.
    """
    reader = _next_layer(graph, site)
    if reader is None or not is_under_the_logits(graph, reader):
        return None
    followers = (graph.follower(site), graph.follower(reader))
    steps = all(isinstance(module, PiecewiseConstant) and len(module.levels) == 2 for module in followers)
    return reader if steps else None


def _next_layer(graph: Graph, site: int) -> int | None:
    """The site of the layer that alone reads what is behind the threshold of a site, each unit by own columns.

    A linear layer, or a convolution of all channels that reads the map as it is; between are shifts and, for a linear
    layer, other shapes.
    """
    number, is_map = graph.only_user(graph.sites[site]), True
    while number is not None and (user := graph.only_user(number)) is not None:
        module = graph.nodes[user].module
        if graph.rows_of(number) != FIRST or graph.rows_of(user) != FIRST:
            return None
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1 and is_map):
            return graph.sites.index(user) if user in graph.sites else None
        shifts = isinstance(module, FunctionCall) and adds(module) and len(graph.nodes[user].inputs) == 1
        if type(module) not in (Shift, nn.Identity) and not shifts:
            if not keeps_order(module):
                return None
            is_map = False
        number = user
    return None


def places_of(graph: Graph, shapes: Shapes, site: int) -> tuple[int, int]:
    """The places of a layer and the units at each; a linear reader sees a vector at each of its own places."""
    reader = reader_of(graph, site)
    assert reader is not None
    layer, units = graph.layer(reader), shapes.sites[site].numel()
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    width = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    return units // width, width


def parts_for_windows(shapes: Shapes, batch: int, copies: int, group: int) -> list[int]:
    """Split copies so that the pre-activations of the widest layer, over a batch, fit in memory.

    Args:
        shapes: of one sample.
        batch: the number of samples.
        copies: the number of copies.
        group: how many of them belong together.
    """
    return even_parts(copies, MOVED_ELEMENTS // (batch * max(site.numel() for site in shapes.sites)), group)


def draw_windows(units: int, z: Tensor, places: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw what decides which units are moved.

    Args:
        units: how many of a sample and copy, on average; with as many as there are, all are moved.
        z: [copies, batch, *site], the noise.
        places: of the layer.
        width: units at each place.
        generator: all randomness comes from it.

    Returns:
        [places, m]: ascending points in [0, 1), evenly spaced behind a random first one; if all are moved, the numbers
        of all units at a place, int64, those of the first sample first.
    """
    rows = z.shape[:2].numel()
    if units >= places * width:
        return torch.arange(rows * width, device=z.device).expand(places, -1)
    m = -(-units * rows // places)
    start = torch.rand((places, 1), generator=generator, dtype=torch.float64, device=z.device)
    return (start + torch.arange(m, device=z.device)) / m


def window_signal(beyond: Beyond, at: NoisySite, noise: Noise, chosen: Tensor) -> Tensor:
    """dE[L]/dv0 [copies, batch, *site], each unit's own noise integrated out.

    Args:
        beyond: the network above the layer, which alone has noise.
        at: the layer.
        noise: its density.
        chosen: what `draw_windows` drew.
    """
    windows, sigma = _Windows(beyond, at), beyond.sigma[at.site]
    edge = (noise.pdf((windows.cut - at.v0) / sigma) / sigma).expand_as(at.v)  # the density with which v crosses it
    weight = windows.by_place(edge.flatten(0, 1))  # [height, width, rows, in]
    up = windows.by_place((at.v.flatten(0, 1) <= windows.cut).to(edge.dtype))
    shape, counts = weight.shape, None
    if chosen.is_floating_point():
        share = weight * windows.influence()[..., None]
        # float32 sums over many units would shift the probabilities of small shares
        chosen, counts = by_weight(chosen[None], share.reshape(1, len(chosen), -1).double())
        chosen, counts = chosen[0], counts[0].to(edge.dtype)
    weight, up = (values.reshape(len(chosen), -1).gather(1, chosen) for values in (weight, up))
    grid = chosen.view(*shape[:2], -1)
    at_once = max(1, AT_ONCE // windows.a.shape[0] // windows.a.shape[1] // windows.a.shape[3])
    parts = zip(grid.split(at_once, 2), up.view(grid.shape).split(at_once, 2), strict=True)
    change = torch.cat([windows.change(units, jumps) for units, jumps in parts], 1)
    signal = weight * (2 * up - 1) * change
    if counts is not None:
        signal = edge.new_zeros(len(chosen), shape[2] * shape[3]).scatter_add(1, chosen, signal * counts)
    return windows.of_places(signal.view(shape))


class _Windows:
    """The reader and the readout by places, in place of by samples.

    Attributes:
        cut: of the layer's threshold.
        a: [height, width, rows, out], the reader's pre-activations.
        readout: [height, width, classes, out], how the logits read what is behind them.
        grid: height and width of the layer.
        taps: see `Tap`.
        without: [height, width, classes, rows], the logits without what they read in the window of each place.
    """

    def __init__(self, beyond: Beyond, at: NoisySite) -> None:
        graph = beyond.graph
        reader = reader_of(graph, at.site)
        assert reader is not None
        below, activation = graph.follower(at.site), graph.follower(reader)
        assert isinstance(below, PiecewiseConstant)
        assert isinstance(activation, PiecewiseConstant)
        self.beyond, self.at, self.layer, self.activation = beyond, at, graph.layer(reader), activation
        (self.cut,), (low, high) = below.cuts, below.levels
        self.raw = beyond.noisy.values[graph.sites[reader]].to(at.v.dtype)
        self.weight = readout_weight(graph, beyond.noisy.readout[:1]).to(at.v.dtype)
        self.a, self.readout = self.by_place(self.raw, above=True), self.by_place(self.weight, above=True)
        height, width = at.v.shape[3:] if isinstance(self.layer, nn.Conv2d) else self.a.shape[:2]
        self.grid = (height, width)
        self.taps = []
        for own, above, kernel in _kernel(self.layer, self.grid, (self.a.shape[0], self.a.shape[1])):
            columns = (high - low) * kernel.T
            self.taps.append(Tap(own, above, torch.cat([-columns, columns]), self.readout[above].flatten(0, 1)))
        read = torch.matmul(self.readout, self.activation(self.a).mT)
        self.without = beyond.u.T.expand(*self.grid, -1, -1).clone(memory_format=torch.contiguous_format)
        for tap in self.taps:
            rest = self.without[tap.own]
            rest -= read[tap.above]

    def by_place(self, values: Tensor, above: bool = False) -> Tensor:
        """[rows, *site] -> [height, width, rows, channels]; above: the site is the reader's."""
        if isinstance(self.layer, nn.Conv2d):
            return values.permute(2, 3, 0, 1).contiguous()
        assert isinstance(self.layer, nn.Linear)
        width = self.layer.out_features if above else self.layer.in_features
        return values.reshape(len(values), -1, width).transpose(0, 1)[:, None].contiguous()

    def of_places(self, values: Tensor) -> Tensor:
        """[height, width, rows, channels] -> [copies, batch, *site], for the layer."""
        moved = values.permute(2, 3, 0, 1) if isinstance(self.layer, nn.Conv2d) else values.transpose(0, 2)
        return moved.reshape(self.at.v.shape)

    def influence(self) -> Tensor:
        """How far the loss moves if units of the reader jump one at a time: root sums of squares over the windows.

        [height, width, rows], plus a share of the mean.
        """
        up = (self.raw <= self.activation.cuts[0]).to(self.raw.dtype).flatten(1)
        low, high = self.activation.levels
        losses = self.beyond.output_loss.after_jumps(self.beyond.u, up, high - low, self.weight.flatten(1))
        square = (losses - self.beyond.losses[:, None]).square_()
        by_place = self.by_place(square.view_as(self.raw), above=True).sum(3)
        total = square.new_zeros(*self.grid, len(square))
        for tap in self.taps:
            own = total[tap.own]
            own += by_place[tap.above]
        root = total.sqrt_()
        return root + LEAST_SHARE * root.mean()

    def change(self, units: Tensor, up: Tensor) -> Tensor:
        """By how much the losses change if units jump one at a time, [places, m].

        Args:
            units: [height, width, m] int64, which units of each place.
            up: like it, 1 where the unit jumps up, 0 where down.
        """
        beyond, (classes, out), channels = self.beyond, self.readout.shape[2:], len(self.taps[0].columns) // 2
        rows, m = self.a.shape[2], units.shape[2]
        row, channel = units // channels, units % channels
        code = channel + channels * up.to(channel.dtype)  # into the columns of steps down, then of steps up
        place = torch.arange(self.a.shape[:2].numel(), device=units.device).view(*self.a.shape[:2], 1)
        a = self.a.view(-1, out)
        logits = self.without.gather(3, row[:, :, None].expand(-1, -1, classes, -1))
        for tap in self.taps:
            v = a.index_select(0, (place[tap.above] * rows + row[tap.own]).flatten())
            v += tap.columns.index_select(0, code[tap.own].flatten())
            h = self.activation(v).view(-1, m, out)
            read = torch.bmm(tap.readout, h.mT)  # four times as fast as h @ readout.mT
            moved = logits[tap.own]
            moved += read.view(moved.shape)
        labels = beyond.output_loss.labels.index_select(0, row.flatten())
        losses = beyond.output_loss.loss(logits.permute(2, 0, 1, 3).reshape(classes, -1).T, labels)
        return (losses - beyond.losses.index_select(0, row.flatten())).view(-1, m)


def _kernel(layer: nn.Module, own: tuple[int, int], above: tuple[int, int]) -> Iterator[tuple[Slices, Slices, Tensor]]:
    """For each element of a reader's kernel its places, those that it reads and those that read, and weight [out, in].

    Args:
        layer: the reader.
        own: height and width of the layer that it reads.
        above: its own.
    """
    weight = weight_of(layer).detach()
    if not isinstance(layer, nn.Conv2d):
        whole = (slice(None), slice(None))
        yield whole, whole, weight
        return
    rows, columns = (_overlaps(layer, own[axis], above[axis], axis) for axis in (0, 1))
    for i, row in rows.items():
        for j, column in columns.items():
            yield (row[0], column[0]), (row[1], column[1]), weight[:, :, i, j]


def _overlaps(layer: nn.Conv2d, own: int, above: int, axis: int) -> dict[int, Slices]:
    """For each element of the kernel along an axis that reads any, the places that it reads and those that read them.

    Place o reads the places o stride - padding + dilation t, t = 0 .. kernel - 1, as far as there are such.
    """
    stride, dilation, padding = layer.stride[axis], layer.dilation[axis], int(layer.padding[axis])
    found = {}
    for t in range(layer.kernel_size[axis]):
        shift = dilation * t - padding
        first, last = max(0, -(shift // stride)), min(above - 1, (own - 1 - shift) // stride)
        if first <= last:
            places = slice(first * stride + shift, last * stride + shift + 1, stride)
            found[t] = (places, slice(first, last + 1))
    return found
