"""The matrices by which a layer reads what a unit below it returns."""

import torch
from torch import Tensor, nn

from glr_lightning.networks.modules import Shift
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import weight_of
from glr_lightning.propagation.module_facts import facts_of


def readout_weight(graph: Graph, like: Tensor) -> Tensor:
    """The matrix by which the last layer reads the readout, [classes, ...]; like: the readout, [rows, ...]."""
    *before, last = (graph.nodes[number] for number in graph.end)
    if isinstance(last.module, nn.Linear) and all(_only_moves(node.module) for node in before):
        weight = weight_of(last.module).detach()
        return weight.view(len(weight), *like.shape[1:])

    def end(h: Tensor) -> Tensor:
        for node in (*before, last):
            h = node.module(h)
        return h

    # one layer deep, and affine: row c of the pull-back of the identity is the gradient of logit c
    classes = end(like.detach()[:1]).shape[1]
    at = like.detach().new_zeros(classes, *like.shape[1:])
    pull = torch.func.vjp(end, at)[1]
    matrix: Tensor = pull(torch.eye(classes, dtype=at.dtype, device=at.device))[0]
    return matrix


def is_under_the_logits(graph: Graph, site: int) -> bool:
    """Whether nothing but its own activation and affine modules lies between a unit of this layer and the logits."""
    user, last = graph.only_user(graph.sites[site]), graph.nodes[graph.sites[-1]].module
    elementwise = user is not None and user == graph.readout and facts_of(graph.nodes[user].module).elementwise
    return elementwise and (isinstance(last, nn.Linear | nn.Conv2d) or facts_of(last).affine)


def _only_moves(module: nn.Module) -> bool:
    """Whether a module's derivative is the identity but for shapes."""
    return type(module) in (Shift, nn.Flatten, nn.Identity)
