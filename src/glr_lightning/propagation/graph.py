"""A network as the graph of the calls that it makes, and its forward pass with noise at chosen sites.

The network stays an ordinary torch module: no wrappers, no hooks, no armed state. Its state dict, its evaluation and
every attack on it are plain torch; noise exists only in the functions below. They run again what lies behind a noisy
layer, and nothing else.

Long because all of it reads the nodes: their order, what reads what, and the passes.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation import narrow_linear
from glr_lightning.propagation.asked_values import Like, seen
from glr_lightning.propagation.function_call import SIZED, FunctionCall
from glr_lightning.propagation.layer_vjp import has_weights, weight_vjp
from glr_lightning.propagation.module_facts import facts_of, observe_calls
from glr_lightning.propagation.network_state import State, is_same, state_of
from glr_lightning.propagation.requirements import require_own_output, require_own_parameters, require_rows_first
from glr_lightning.propagation.row_layout import FIRST, Layouts, Rows, aligned
from glr_lightning.propagation.traced_nodes import Node
from glr_lightning.propagation.tracing import trace
from glr_lightning.propagation.values import CleanPass, NoisyPass, NoisySite, Shapes


@dataclass(frozen=True, eq=False)
class Graph:
    """The calls of a network in the order in which it makes them.

    A site is a call of a layer with weights and a registered weight gradient; it is where noise can enter. A layer that
    is called several times has several sites.

    Attributes:
        nodes: the calls; node 0 is the input.
        output: the node that returns the logits.
        sites: the nodes of the sites.
        layers: the names of the layers with weights, in the order of their first sites.
        layer_of: of each site, the number of its layer.
        parameters: for each "layer.parameter" the network's name of it, which is another where layers share one.
        fields: the receptive fields that were asked for; see `receptive_field.py`.
        moves: what moved units change, as far as it was asked for; see `moves.py`.
        known_shapes: what `shapes` was asked for.
        layouts: where the nodes' values have their rows, as far as `shapes` was asked.
        checked: shapes of samples for which `rows.py` has found nothing wrong.
        made_for: the inputs whose shape the network's code asks for; None: it asks for none.
    """

    nodes: tuple[Node, ...]
    output: int
    sites: tuple[int, ...]
    layers: tuple[str, ...]
    layer_of: tuple[int, ...]
    parameters: dict[str, str]
    _behind: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict, repr=False)
    fields: dict[Any, Any] = field(default_factory=dict, repr=False)
    moves: dict[Any, Any] = field(default_factory=dict, repr=False)
    known_shapes: dict[torch.Size, Shapes] = field(default_factory=dict, repr=False)
    checked: set[torch.Size] = field(default_factory=set, repr=False)
    layouts: Layouts = field(default_factory=Layouts, repr=False)
    made_for: Like | None = None

    @staticmethod
    def of(network: nn.Module) -> "Graph":
        """Trace a network; the same network, unchanged, is traced once for inputs of one shape.

        Raises:
            ConfigurationError: the network cannot be traced, has no site, or holds parameters that are not those of
                its layers. UnseenError: it asks for the shape of its input, and `asked_values.see` was not called.
        """
        own = getattr(network, "graph", None)
        if isinstance(own, Graph):
            return own
        state = state_of(network)
        if network in _traced and is_same(_traced[network][0], state):
            known = _traced[network][1]
            if known.made_for in (None, seen(network)):
                return known
        _traced[network] = (state, _graph(network))
        return _traced[network][1]

    def layer(self, site: int) -> nn.Module:
        """The layer at a site."""
        return self.nodes[self.sites[site]].module

    def weight_dtype(self, site: int) -> torch.dtype:
        """The type of the weights of the layer at a site, which its noise has."""
        weight: Any = self.layer(site).weight  # get_parameter is slow
        return weight.dtype  # type: ignore[no-any-return]

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """What is called, with names, in order."""
        return [(node.name, node.module) for node in self.nodes]

    @property
    def named_layers(self) -> list[tuple[str, nn.Module]]:
        """The layers with weights, with their names."""
        return [(name, self.layer(self.layer_of.index(number))) for number, name in enumerate(self.layers)]

    def sites_of(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The sites of some layers, ascending."""
        return tuple(site for site, layer in enumerate(self.layer_of) if layer in layers)

    @functools.cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that take its value."""
        numbers = range(len(self.nodes))
        return tuple(tuple(user for user in numbers if number in self.nodes[user].inputs) for number in numbers)

    def only_user(self, number: int) -> int | None:
        """The one node that takes the value of a node, None if there are several or it is returned."""
        return self.users[number][0] if len(self.users[number]) == 1 and number != self.output else None

    def follower(self, site: int) -> nn.Module | None:
        """The module that alone reads the site's pre-activation, None if there is none."""
        user = self.only_user(self.sites[site])
        return None if user is None else self.nodes[user].module

    def parameter_name(self, site: int, name: str) -> str:
        """The network's name of a parameter of the layer at a site."""
        return self.parameters[f"{self.nodes[self.sites[site]].name}.{name}"]

    def weight_vjp(self, site: int, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
        """`layer_vjp.weight_vjp` of the layer at a site, by the network's names of its parameters."""
        gradients = weight_vjp(self.layer(site), *self.layouts.as_called(self.sites[site], x, signal))
        return {self.parameter_name(site, name): gradient for name, gradient in gradients.items()}

    def ancestors(self, number: int) -> list[int]:
        """The nodes whose values a node rests on, ascending."""
        found = set(self.nodes[number].inputs)
        for earlier in range(number - 1, -1, -1):
            if earlier in found:
                found.update(self.nodes[earlier].inputs)
        return sorted(found)

    def is_exit(self, site: int) -> bool:
        """Whether everything that the logits take from the input goes through this site."""
        after = set(self.behind([site])) - {self.sites[site]}
        return all(
            self.sites[site] == i or i in after or i not in self.with_rows for n in after for i in self.nodes[n].inputs
        )

    def behind(self, sites: Sequence[int]) -> tuple[int, ...]:
        """The nodes whose values change with the pre-activations at some sites, ascending; these sites among them."""
        if (key := tuple(sites)) not in self._behind:
            self._behind[key] = tuple(sorted(self._reached({self.sites[site] for site in sites})))
        return self._behind[key]

    @functools.cached_property
    def end(self) -> tuple[int, ...]:
        """The last layer, and before it the affine modules without parameters that alone read what they are given."""
        numbers = [self.sites[-1]]
        while True:
            (number,) = self.nodes[numbers[0]].inputs
            module = self.nodes[number].module
            affine = facts_of(module).affine and next(module.parameters(), None) is None
            if number == 0 or not affine or len(self.nodes[number].inputs) != 1 or self.only_user(number) is None:
                return tuple(numbers)
            numbers.insert(0, number)

    @property
    def readout(self) -> int:
        """The node whose value `end` reads."""
        return self.nodes[self.end[0]].inputs[0]

    def settle(self) -> None:
        """Find again what rests on facts about modules, and all that a pass looks up."""
        for found in ("end", "_spent"):
            vars(self).pop(found, None)
        self.fields.clear()
        self.moves.clear()
        _ = self.end, self._spent, self.with_rows

    @functools.cached_property
    def with_rows(self) -> frozenset[int]:
        """The nodes that rest on the input: their tensors have a row for each sample."""
        return frozenset(self._reached({0}))

    def rows_of(self, number: int) -> Rows | None:
        """Where a node's value has its rows; None: it has none."""
        return self.layouts.of(number) if number in self.with_rows else None

    @functools.cached_property
    def _spent(self) -> dict[int, list[int]]:
        """For each node those whose values it is the last to read; not the readout's."""
        spent: dict[int, list[int]] = {}
        for number, users in enumerate(self.users):
            if users and number != self.readout:
                spent.setdefault(users[-1], []).append(number)
        return spent

    def _reached(self, numbers: set[int]) -> set[int]:
        """These nodes, and those whose values rest on theirs."""
        reached = set(numbers)
        for number, node in enumerate(self.nodes):
            if not reached.isdisjoint(node.inputs):
                reached.add(number)
        return reached

    def with_modules(self, modules: Mapping[int, nn.Module]) -> "Graph":
        """The graph with other modules at some nodes."""
        nodes = [replace(node, module=modules.get(number, node.module)) for number, node in enumerate(self.nodes)]
        graph = replace(self, nodes=tuple(nodes), fields={}, moves={})
        graph.settle()
        return graph

    def shapes(self, x: Tensor) -> Shapes:
        """The shapes of one sample's values, for inputs like x [batch, ...]; found once for each shape of x."""
        if x.shape[1:] not in self.known_shapes:
            devices = [x.device] if x.device.type == "cuda" else []
            with torch.no_grad(), torch.random.fork_rng(devices):  # one row alone could be squeezed away
                values, others = (self.clean(torch.cat([x[:1]] * rows)).values for rows in (2, 3))
            self.layouts.find(values, others)
            require_rows_first((self.nodes[number], self.layouts.of(number)) for number in self.sites)
            rows_first = (
                node for node in self.nodes if len(node.inputs) == 1 and self.rows_of(node.inputs[0]) == FIRST
            )
            observe_calls((node.module, values[node.inputs[0]]) for node in rows_first)
            samples = [
                self.layouts.in_front(number, value).shape[1:] if isinstance(value, Tensor) else None
                for number, value in enumerate(values)
            ]
            sites = [self.layouts.in_front(number, values[number]).shape[1:] for number in self.sites]
            self.known_shapes[x.shape[1:]] = Shapes(tuple(samples), tuple(sites))
        return self.known_shapes[x.shape[1:]]

    def clean(self, x: Tensor) -> CleanPass:
        """Run without noise, keeping all values. x [batch, ...]."""
        values = self.run(x, range(1, len(self.nodes)))
        inputs = [values[self.nodes[number].inputs[0]] for number in self.sites]
        preactivations = [self.layouts.in_front(number, values[number]) for number in self.sites]
        return CleanPass(values, inputs, preactivations, values[self.readout], values[self.output])

    def run(self, x: Tensor, numbers: Iterable[int]) -> list[Any]:
        """The values of these nodes, ascending, for an input x [batch, ...]; None for the others."""
        values: list[Any] = [x, *[None] * (len(self.nodes) - 1)]
        for number in numbers:
            node = self.nodes[number]
            values[number] = narrow_linear.call(node.module, *[values[i] for i in node.inputs])
        return values

    def noisy(
        self, clean: CleanPass, noise: Mapping[int, Tensor], sigma: Sequence[float | Tensor], *, keep: bool = False
    ) -> NoisyPass:
        """Run with noise at some sites; what is not behind them is not computed again.

        Args:
            clean: the noise-free pass over the same batch.
            noise: by site, ascending, the standardised noise, [copies, batch, *site].
            sigma: the noise scale of every site; a tensor broadcasts to its pre-activation.
            keep: whether to keep the values of all nodes.
        """
        batch, values = len(clean.logits), list(clean.values)
        self.shapes(values[0])  # it tells which values have rows
        changed = {self.sites[site]: site for site in noise}
        seen: list[NoisySite] = []
        for number in self.behind(tuple(noise)):
            node = self.nodes[number]
            site = changed.get(number)
            if site is None:
                values[number] = self.call(number, values)
                if not keep:
                    for spent in self._spent.get(number, ()):
                        values[spent] = None
                continue
            x = values[node.inputs[0]]
            # noise and scores need the parameters' precision, which autocast may have lowered
            v0 = values[number] if x is clean.inputs[site] else narrow_linear.call(node.module, x)
            v0 = self.layouts.in_front(number, v0).to(self.weight_dtype(site)).unflatten(0, (-1, batch))
            scale, z = sigma[site], noise[site]
            if isinstance(scale, Tensor) and scale.dim() > v0.dim() - 2:  # it would broadcast along the copies
                raise ConfigurationError(
                    f"noise scales of shape {list(scale.shape)} do not fit the pre-activations {list(v0.shape[2:])} of "
                    f"{node.what}; give the layer one scale (callbacks.learned_sigma.per=layer), or normalise vectors "
                    "by nn.LayerNorm."
                )
            v = v0 + scale * z if isinstance(scale, Tensor) else torch.add(v0, z, alpha=scale)
            seen.append(NoisySite(site, x, v0, v, z))
            values[number] = self.layouts.put_back(number, v.flatten(0, 1))
        return NoisyPass(values[self.output], seen, values[self.readout], values)

    def call(self, number: int, values: Sequence[Any]) -> Any:
        """The value of a node, given those before it, some of which may be common to all copies of others."""
        node = self.nodes[number]
        given = [values[i] for i in node.inputs]
        if len(given) > 1:
            sizes = isinstance(node.module, FunctionCall) and node.module.name in SIZED
            given = aligned(given, [self.rows_of(i) for i in node.inputs], sizes=sizes)
        return narrow_linear.call(node.module, *given)


_traced: WeakKeyDictionary[nn.Module, tuple[State, Graph]] = WeakKeyDictionary()
"""By network, what it was when it was traced, and its graph."""


def _graph(network: nn.Module) -> Graph:
    nodes, output, asked = trace(network)
    require_own_output((node.name, node.module) for node in nodes)
    sites = tuple(number for number, node in enumerate(nodes) if has_weights(node.module))
    if not sites:
        raise ConfigurationError("the network has no layer with weights, so there is nothing to train.")
    require_own_parameters(network, [(node.name, node.module) for node in nodes])
    names = [nodes[number].name for number in sites]
    layers = tuple(dict.fromkeys(names))
    by_parameter = {parameter: name for name, parameter in network.named_parameters()}
    parameters = {
        f"{layer}.{name}": by_parameter[parameter]
        for layer, number in zip(names, sites, strict=True)
        for name, parameter in nodes[number].module.named_parameters(recurse=False)
    }
    made_for = seen(network) if asked else None
    return Graph(nodes, output, sites, layers, tuple(map(layers.index, names)), parameters, made_for=made_for)
