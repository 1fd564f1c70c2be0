"""Receptive fields: what a unit can reach of the map of places that the logits read, and the losses without it.

A unit of a convolutional network reaches a few places of the map under the logits, and the noise of all other units
only blurs what it does. The logits are affine in that map, so what they would be if the places R(i) that unit i can
reach had no noise costs no forward pass:

    u_k(i) = u_k - sum_{p in R(i)} W_p (h_kp - h_p),   h the map in the noise-free pass, h_k in copy k.

L(u_k(i)) does not depend on the noise of unit i, so it may be subtracted from L(u_k) as a baseline (Law 2), and
whatever happened outside R(i) is in both. The signal of unit i is left with the noise of the units that share a place
with it.

R(i) is found from the geometry of the modules between, place by place and not unit by unit: an interval along each
axis.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.losses import Loss
from glr_lightning.networks.modules import add_branches
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import weight_of
from glr_lightning.propagation.module_facts import facts_of
from glr_lightning.propagation.readout import readout_weight
from glr_lightning.propagation.values import CleanPass, NoisyPass, Shapes

AT_ONCE = 2**24
"""Logits, of fields or of places, that are held at once (64 MiB)."""

Interval = tuple[Tensor, Tensor]
"""For each place of the noisy layer the first and the last that it reaches along an axis; none if first > last."""


@dataclass(frozen=True)
class Fields:
    """The sets R(i) of a layer. Along each axis, the distinct intervals and which of them each place has.

    Attributes:
        members: for each axis [places of the readout, intervals], 1 where the interval holds the place, else 0.
        of_place: for each axis [places of the layer] int64.
    """

    members: tuple[Tensor, Tensor]
    of_place: tuple[Tensor, Tensor]

    def losses_without(self, graph: Graph, clean: CleanPass, noisy: NoisyPass, loss: Loss, y: Tensor) -> Tensor:
        """L(u_k(i)) for every field, [copies, batch, fields]; noisy: a pass over K copies of the clean batch."""
        rows, columns = self.members
        batch, dtype = len(y), rows.dtype
        weight = readout_weight(graph, clean.readout.to(dtype))  # [classes, channels, height, width]
        by_place = weight.flatten(2).permute(2, 1, 0)
        moved = (noisy.readout.unflatten(0, (-1, batch)) - clean.readout).flatten(0, 1).to(dtype)
        logits, labels = noisy.logits.to(dtype), y.expand(len(noisy.logits) // batch, -1).reshape(-1)
        count = rows.shape[1] * columns.shape[1]
        losses = []
        part = max(1, AT_ONCE // (max(count, len(by_place)) * logits.shape[1]))
        for u, change, label in zip(logits.split(part), moved.split(part), labels.split(part), strict=True):
            places = torch.bmm(change.flatten(2).permute(2, 0, 1), by_place).view(len(rows), -1)
            fields = columns.T @ (rows.T @ places).view(rows.shape[1], len(columns), -1)  # rows first, then columns
            without = u - fields.view(count, *u.shape)
            losses.append(loss(without.flatten(0, 1), label.expand(count, -1).reshape(-1)).view(count, -1))
        by_copy: Tensor = torch.cat(losses, 1).T.unflatten(0, (-1, batch))
        return by_copy

    def spread(self, values: Tensor) -> Tensor:
        """[copies, batch, fields] -> [copies, batch, 1, height, width]: each place gets its field's value."""
        grid: Tensor = values.unflatten(2, (self.members[0].shape[1], -1))
        return grid.index_select(2, self.of_place[0]).index_select(3, self.of_place[1])[:, :, None]


def fields_of(graph: Graph, shapes: Shapes, site: int) -> Fields | None:
    """Return the fields of a site, or None where they are of no use.

    That is where not all tensors from its output to the readout are maps of places, the logits are not affine in the
    readout, or every place reaches every other.
    """
    weight = weight_of(graph.layer(site))
    key = (shapes.sites, site, weight.dtype, weight.device)
    if key not in graph.fields:
        graph.fields[key] = _fields(graph, shapes, site)
    fields: Fields | None = graph.fields[key]
    return fields


def _fields(graph: Graph, shapes: Shapes, site: int) -> Fields | None:
    last = graph.output == graph.sites[-1] and isinstance(graph.nodes[graph.output].module, nn.Linear)
    path = [number for number in graph.behind([site]) if number < graph.end[0]]
    maps = [shape for number in path if (shape := shapes.nodes[number]) is not None and len(shape) == 3]
    if not last or graph.readout not in path or len(maps) < len(path):
        return None
    axes = [_axis(graph, shapes, site, axis) for axis in (0, 1)]
    members, of_place = zip(*axes, strict=True)
    if all(part.shape[1] == 1 and bool(part.all()) for part in members):
        return None
    weight = weight_of(graph.layer(site))
    rows, columns = (part.to(dtype=weight.dtype, device=weight.device) for part in members)
    return Fields((rows, columns), (of_place[0].to(weight.device), of_place[1].to(weight.device)))


def _axis(graph: Graph, shapes: Shapes, site: int, axis: int) -> tuple[Tensor, Tensor]:
    """(members, of_place) along an axis."""
    own = torch.arange(shapes.sites[site][1 + axis])
    reached: dict[int, Interval] = {graph.sites[site]: (own, own)}
    for number in graph.behind([site])[1:]:
        if number < graph.end[0]:
            module, size = graph.nodes[number].module, _size(shapes, number, axis)
            before = [(reached[i], _size(shapes, i, axis)) for i in graph.nodes[number].inputs if i in reached]
            if _keeps_places(module):  # a map of another size is broadcast: each of its places reaches all
                before = [(own if places == size else _everywhere(own, size), size) for own, places in before]
            hull = functools.reduce(_hull, [own for own, _ in before])
            reached[number] = hull if _keeps_places(module) else _behind(module, hull, size, axis)
    low, high = reached[graph.readout]
    place = torch.arange(_size(shapes, graph.readout, axis))[:, None]
    intervals, of_place = torch.unique(torch.stack([low, high]), dim=1, return_inverse=True)
    return (place >= intervals[0]) & (place <= intervals[1]), of_place


def _size(shapes: Shapes, number: int, axis: int) -> int:
    shape = shapes.nodes[number]
    assert shape is not None  # since `_fields`
    return shape[1 + axis]


_SUMS = (*(getattr(place, name) for place in (operator, torch, Tensor) for name in ("add", "sub", "mul")), add_branches)


def _keeps_places(module: nn.Module) -> bool:
    return (isinstance(module, FunctionCall) and module.function in _SUMS) or facts_of(module).elementwise


def _behind(module: nn.Module, field: Interval, size: int, axis: int) -> Interval:
    """The intervals behind a module that returns `size` places along an axis."""
    low, high = dependent_places(module, *field, axis)
    return _where_any(field, low.clamp(min=0), high.clamp(max=size - 1))


def _everywhere(field: Interval, size: int) -> Interval:
    return _where_any(field, torch.zeros_like(field[0]), torch.full_like(field[1], size - 1))


def _where_any(field: Interval, low: Tensor, high: Tensor) -> Interval:
    """The intervals low..high where those of a field are not empty."""
    empty = field[0] > field[1]
    return torch.where(empty, 1, low), torch.where(empty, 0, high)


def _hull(a: Interval, b: Interval) -> Interval:
    """The smallest interval that holds both, of which one may be empty."""
    no_a, no_b = a[0] > a[1], b[0] > b[1]
    low = torch.where(no_a, b[0], torch.where(no_b, a[0], torch.minimum(a[0], b[0])))
    high = torch.where(no_a, b[1], torch.where(no_b, a[1], torch.maximum(a[1], b[1])))
    return low, high


@functools.singledispatch
def dependent_places(module: nn.Module, low: Tensor, high: Tensor, axis: int) -> Interval:
    """Return which places of a module's output depend on the places low..high of its input, along an axis (0: height).

    The answer may be too large, never too small, and may go beyond the edges. A module that is neither
    known here nor elementwise mixes all. Adding one: register it.
    """
    return torch.zeros_like(low), torch.full_like(high, torch.iinfo(torch.int32).max)


@dependent_places.register
def _(module: nn.Conv2d, low: Tensor, high: Tensor, axis: int) -> Interval:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return dependent_places.dispatch(object)(module, low, high, axis)
    return _window(module.kernel_size, module.stride, module.padding, module.dilation, low, high, axis)


@dependent_places.register
def _(module: nn.MaxPool2d, low: Tensor, high: Tensor, axis: int) -> Interval:
    return _window(module.kernel_size, module.stride, module.padding, module.dilation, low, high, axis)


@dependent_places.register
def _(module: nn.AvgPool2d, low: Tensor, high: Tensor, axis: int) -> Interval:
    return _window(module.kernel_size, module.stride, module.padding, 1, low, high, axis)


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any, low: Tensor, high: Tensor, axis: int) -> Interval:
    """Output o reads the inputs o stride - padding + dilation t, t = 0 .. kernel - 1."""
    k, s, p, d = (v[axis] if isinstance(v, Sequence) else v for v in (kernel, stride, padding, dilation))
    first = -torch.div(d * (k - 1) - p - low, s, rounding_mode="floor")  # ceil((low + p - d (k - 1)) / s)
    return first, torch.div(high + p, s, rounding_mode="floor")
