"""A graph as a module: for attacks on networks of which some calls were replaced."""

from torch import Tensor, nn

from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.probing import ModuleFacts


class GraphModule(nn.Module):
    """A graph's forward pass."""

    facts = ModuleFacts()

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.calls = nn.ModuleList(node.module for node in graph.nodes)
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of x [batch, ...]."""
        return self.graph.clean(x).logits
