"""The first layer of a network, if all that the logits take from the input goes through it."""

from torch import Tensor

from glr_lightning.propagation.graph import Graph


def is_entrance(graph: Graph, site: int) -> bool:
    """Whether all that is computed from the input goes through this site, or leads to it."""
    before = {0, *graph.ancestors(graph.sites[site])}
    return all(set(graph.users[earlier]) <= before | {graph.sites[site]} for earlier in before)


def preactivation(graph: Graph, x: Tensor, site: int) -> Tensor:
    """The noise-free pre-activation at a site, [batch, *site]; nothing else is computed."""
    number = graph.sites[site]
    return graph.run(x, [*graph.ancestors(number)[1:], number])[number]  # type: ignore[no-any-return]
