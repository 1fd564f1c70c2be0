"""What one moved unit changes of the values behind it: a number, some columns of a linear layer, or a whole tensor.

Until a layer mixes it with others, a moved unit is one number of each sample: it goes through activations, through sums
and products with values that have not changed, and beside others into `torch.cat`. A linear layer reads it by a column
of its weight. Of what else a linear layer reads, only the changed parts of `torch.cat` are multiplied again, and a
constant that has been added to them does not matter. The rest runs again as a whole.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from glr_lightning.networks.modules import Shift
from glr_lightning.propagation import narrow_linear
from glr_lightning.propagation.function_call import FunctionCall, adds, keeps_order, parts_of_cat, works_by_number
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import facts_of
from glr_lightning.propagation.row_layout import FIRST
from glr_lightning.propagation.values import Shapes

Form = Literal["number", "parts", "whole"]
"""How a changed value is held: every number of it as it is if it is the moved one; by what it is made of, for linear
layers to read; as a tensor with rows for every move."""


class ChangedPart(NamedTuple):
    """A changed part of what a linear layer reads.

    Attributes:
        start, width: the columns of the weight that belong to it.
        node: the node of which the value changes as it does.
        is_number: whether that is held as a number, else as a whole.
    """

    start: int
    width: int
    node: int
    is_number: bool

    def of(self, columns: Tensor) -> Tensor:
        """The columns that belong to the part."""
        return columns[self.start : self.start + self.width]


class Move(NamedTuple):
    """A node behind a moved unit.

    Attributes:
        node: its number.
        form: of its value.
        parts: for a linear layer that reads by columns, the changed parts of its input.
        numbers: for a call that is made again, the inputs that are held as a number.
    """

    node: int
    form: Form
    parts: tuple[ChangedPart, ...] = ()
    numbers: tuple[int, ...] = ()


def moves(graph: Graph, site: int, shapes: Shapes) -> tuple[Move, ...]:
    """The nodes behind a site, ascending, without the site itself; found once for each shape of the input."""
    key = (site, shapes.nodes[0])
    if key not in graph.moves:
        graph.moves[key] = _Moves(graph, shapes).behind(site)
    found: tuple[Move, ...] = graph.moves[key]
    return found


def direct_part(graph: Graph, site: int, shapes: Shapes) -> ChangedPart | None:
    """The part of its input by which the last layer itself reads a site's units behind their activation; None: none."""
    (parts,) = (move.parts for move in moves(graph, site, shapes) if move.node == graph.output)
    numbers = [part for part in parts if part.is_number]
    is_direct = len(numbers) == 1 and graph.nodes[numbers[0].node].inputs == (graph.sites[site],)
    return numbers[0] if is_direct else None


class _Moves:
    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self.forms: dict[int, Form] = {}
        self.parts: dict[int, tuple[ChangedPart, ...]] = {}

    def behind(self, site: int) -> tuple[Move, ...]:
        self.forms[self.graph.sites[site]] = "number"
        numbers = self.graph.behind((site,))[1:]
        linear = self._read_by_linear_layers(numbers)
        found = []
        for number in numbers:
            found.append(self._move(number, number in linear))
            self.forms[number] = found[-1].form
        return tuple(found)

    def _move(self, number: int, is_read_by_linear_layers: bool) -> Move:
        node = self.graph.nodes[number]
        changed = [i for i in node.inputs if i in self.forms]
        held = tuple(i for i in changed if self.forms[i] == "number")
        if _is_linear(node.module) and self._is_vector(changed[0]):
            return Move(number, "whole", self._parts(changed[0], 0))
        if is_read_by_linear_layers and not (len(changed) > 1 and self._adds(number)):
            self.parts[number] = self._parts_of_call(number, changed)
            return Move(number, "parts")
        if len(held) == len(changed) and self._keeps_its_place(number, held):
            return Move(number, "number")
        return Move(number, "whole", (), held)

    def _read_by_linear_layers(self, numbers: tuple[int, ...]) -> set[int]:
        """The nodes that put vectors side by side, or add to one, for linear layers alone."""
        found: set[int] = set()
        for number in reversed(numbers):
            users = self.graph.users[number]
            linear = all(user in found or _is_linear(self.graph.nodes[user].module) for user in users)
            if linear and number != self.graph.output and (self._adds(number) or self._is_cat(number)):
                found.add(number)
        return found

    def _parts(self, number: int, start: int) -> tuple[ChangedPart, ...]:
        """The changed parts of a vector that stands at column `start` of a weight."""
        if self.forms[number] == "parts":
            return tuple(part._replace(start=start + part.start) for part in self.parts[number])
        return (ChangedPart(start, self._width(number), number, self.forms[number] == "number"),)

    def _parts_of_call(self, number: int, changed: list[int]) -> tuple[ChangedPart, ...]:
        """The changed parts of a vector that `_read_by_linear_layers` found."""
        if self._adds(number):
            return self._parts(changed[0], 0)
        node, start = self.graph.nodes[number], 0
        parts: list[ChangedPart] = []
        assert isinstance(node.module, FunctionCall)
        for i in (node.inputs[place] for place in parts_of_cat(node.module)):
            parts += self._parts(i, start) if i in changed else ()
            start += self._width(i)
        return tuple(parts)

    def _adds(self, number: int) -> bool:
        """Whether a node adds to vectors, which then change as they do by themselves."""
        node = self.graph.nodes[number]
        if type(node.module) is not Shift and not (isinstance(node.module, FunctionCall) and adds(node.module)):
            return False
        return all(self._is_vector(i) and self.shapes.nodes[i] == self.shapes.nodes[number] for i in node.inputs)

    def _is_cat(self, number: int) -> bool:
        """Whether a node puts vectors side by side."""
        node = self.graph.nodes[number]
        if not isinstance(node.module, FunctionCall) or not parts_of_cat(node.module):
            return False
        return all(self._is_vector(i) for i in node.inputs)

    def _keeps_its_place(self, number: int, changed: tuple[int, ...]) -> bool:
        """Whether a number of a node's value rests on those at its own place of these inputs alone."""
        node, shapes = self.graph.nodes[number], self.shapes.nodes
        if any(self.graph.rows_of(i) != FIRST for i in (number, *changed)):
            return False
        if len(node.inputs) == 1 and facts_of(node.module).elementwise:
            return True
        if len(changed) == 1 and keeps_order(node.module):
            own, before = shapes[number], shapes[changed[0]]
            return own is not None and before is not None and own.numel() == before.numel()
        is_known = isinstance(node.module, FunctionCall) and works_by_number(node.module)
        return is_known and all(shapes[i] == shapes[number] for i in changed)

    def _is_vector(self, number: int) -> bool:
        """Whether a sample's value is a vector."""
        shape = self.shapes.nodes[number]
        return shape is not None and len(shape) == 1 and self.graph.rows_of(number) == FIRST

    def _width(self, number: int) -> int:
        shape = self.shapes.nodes[number]
        assert shape is not None  # `_is_vector`
        return shape[0]


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of which nothing changes what it returns."""
    return isinstance(module, nn.Linear) and narrow_linear.is_plain(module)
