"""The matrix by which the logits of a network read what their affine end is given."""

import torch
from torch import Tensor, nn

from glr_lightning.networks.modules import Shift
from glr_lightning.propagation.graph import Graph


def readout_weight(graph: Graph, like: Tensor) -> Tensor:
    """The matrix by which the last layer reads the readout, [classes, ...]; like: the readout, [rows, ...]."""
    *before, last = (graph.nodes[number] for number in graph.end)
    weight = last.module.get_parameter("weight").detach()
    if isinstance(last.module, nn.Linear) and all(_only_moves(node.module) for node in before):
        return weight.view(len(weight), *like.shape[1:])
    at = like.detach().new_zeros(len(weight), *like.shape[1:])

    def end(h: Tensor) -> Tensor:
        for node in (*before, last):
            h = node.module(h)
        return h

    # one layer deep, and affine: row c of the pull-back of the identity is the gradient of logit c
    pull = torch.func.vjp(end, at)[1]
    matrix: Tensor = pull(torch.eye(len(weight), dtype=at.dtype, device=at.device))[0]
    return matrix


def _only_moves(module: nn.Module) -> bool:
    """Whether a module's derivative is the identity but for shapes."""
    return type(module) in (Shift, nn.Flatten, nn.Identity)
