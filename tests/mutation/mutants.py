"""Wrong formulas, generated from the package's source: factors of two, flipped signs and dropped terms."""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STRATA: dict[str, tuple[str, ...]] = {
    "estimators": (
        "noise",
        "sampling",
        "baselines",
        "losses",
        "activations",
        "schedules",
        "estimators",
        "diagnosis",
    ),
    "robustness": ("threats", "evaluation", "reporting/corruption_error"),
    "networks": ("propagation", "networks", "training"),
}
"""Parts of the package whose formulas are mutated, by the sample that is drawn from them."""

KINDS = ("twice", "sign", "drop")
PRODUCTS = (ast.Mult, ast.Div, ast.MatMult)
SUMS = (ast.Add, ast.Sub)
SHAPES = {
    "view",
    "reshape",
    "unflatten",
    "expand",
    "repeat",
    "range",
    "arange",
    "zeros",
    "ones",
    "empty",
    "randn",
    "len",
}
"""Calls whose arguments are sizes: a size that is twice too large raises and is no test of a formula."""
MATHS = {"sum", "mean", "mul", "square", "sqrt", "exp", "log", "norm", "std", "var", "median", "score", "log_prob"}
"""Methods and functions whose result is a number in a formula."""
TENSORS = {"Tensor", "float"}
PATHS = {"path", "folder", "dir", "root", "parent", "file"}


@dataclass(frozen=True)
class Mutant:
    """One change of one expression.

    Attributes:
        path: the file, relative to the package.
        line: where the expression starts.
        function: the function that holds it.
        kind: a name in `KINDS`.
        before: the expression.
        after: what replaces it.
        span: its first and last offset in the file's UTF-8 bytes.
    """

    path: str
    line: int
    function: str
    kind: str
    before: str
    after: str
    span: tuple[int, int]

    def applied(self, source: str) -> str:
        """The file's text with this change."""
        encoded, (first, last) = source.encode(), self.span
        return (encoded[:first] + self.after.encode() + encoded[last:]).decode()

    def __str__(self) -> str:
        short = " ".join(self.before.split())
        return (
            f"{self.path}:{self.line} {self.function} [{self.kind}] {short[:70]} -> {' '.join(self.after.split())[:75]}"
        )


def files_of(package: Path, stratum: str) -> list[Path]:
    """The modules of a stratum; a part is a package or a module."""
    found: list[Path] = []
    for part in STRATA[stratum]:
        found += sorted((package / part).rglob("*.py")) or [package / f"{part}.py"]
    return found


def mutants_of(path: Path, package: Path, kinds: tuple[str, ...] = KINDS) -> list[Mutant]:
    """Every change of these kinds to an arithmetic expression or a returned number in this file."""
    source = path.read_text(encoding="utf-8")
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for function, node, kind, after in _changes(source):
        if kind in kinds:
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            span = (starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset)
            before = source.encode()[span[0] : span[1]].decode()
            mutant = Mutant(str(path.relative_to(package)), node.lineno, function, kind, before, after, span)
            found[span, kind] = mutant
    return list(found.values())


def sample(package: Path, stratum: str, number: int, kinds: tuple[str, ...], seed: int) -> list[Mutant]:
    """Mutants of a stratum, drawn without replacement; files in turn, so that long ones do not crowd out short ones."""
    generator = random.Random(f"{seed} {stratum} {kinds}")
    by_file = [mutants_of(path, package, kinds) for path in files_of(package, stratum)]
    queues = [generator.sample(mutants, len(mutants)) for mutants in by_file if mutants]
    generator.shuffle(queues)
    drawn: list[Mutant] = []
    while queues and len(drawn) < number:
        queues = [queue for queue in queues if queue]
        drawn += [queue.pop() for queue in queues]
    return drawn[:number]


def _changes(source: str) -> Iterator[tuple[str, ast.expr, str, str]]:
    """(function, expression, kind, its replacement)."""
    tree = ast.parse(source)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("__post_init__"):
            for statement in function.body:
                yield from _in_tree(statement, None, function, source)


def _in_tree(
    node: ast.AST, parent: ast.AST | None, function: ast.FunctionDef, source: str
) -> Iterator[tuple[str, ast.expr, str, str]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.JoinedStr | ast.Raise | ast.Assert | ast.Subscript):
        return  # functions inside functions have their own turn; messages and indices are no formulas
    if isinstance(node, ast.Call) and _name(node.func) in SHAPES:
        return
    if isinstance(node, ast.BinOp) and _is_number(node):
        text = ast.get_source_segment(source, node) or ""
        outermost = not (isinstance(parent, ast.BinOp) and isinstance(parent.op, PRODUCTS + SUMS))
        if isinstance(node.op, PRODUCTS + SUMS) and (outermost or isinstance(node.op, PRODUCTS)):
            yield function.name, node, "twice", f"(2 * ({text}))"
        if isinstance(node.op, SUMS):
            left, right = (ast.get_source_segment(source, side) or "" for side in (node.left, node.right))
            yield function.name, node, "sign", f"(({left}) {'-' if isinstance(node.op, ast.Add) else '+'} ({right}))"
            yield function.name, node, "drop", f"({left})"
    elif isinstance(node, ast.Call) and _name(node.func) in MATHS and not isinstance(parent, ast.BinOp | ast.Attribute):
        yield function.name, node, "twice", f"(2 * ({ast.get_source_segment(source, node)}))"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield function.name, node, "sign", f"({ast.get_source_segment(source, node.operand)})"
    elif isinstance(node, ast.Return) and node.value is not None and _name(function.returns) in TENSORS:
        text = ast.get_source_segment(source, node.value) or ""
        if not isinstance(node.value, ast.BinOp | ast.Constant):
            yield function.name, node.value, "twice", f"(2 * ({text}))"
    for child in ast.iter_child_nodes(node):
        yield from _in_tree(child, node, function, source)


def _is_number(node: ast.BinOp) -> bool:
    """Whether this looks like a formula: no text, list or path is added or joined, and it is more than a count."""
    texts = (ast.List, ast.Tuple, ast.Dict, ast.JoinedStr, ast.ListComp, ast.Set)
    for side in ast.walk(node):
        if isinstance(side, texts) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes)):
            return False
        if PATHS & {*_name(side).lower().split("_")}:
            return False
    return any(_name(side) not in {"", "len", "dim", "numel"} for side in ast.walk(node) if not _inside_len(side, node))


def _inside_len(node: ast.AST, within: ast.AST) -> bool:
    lengths = [call for call in ast.walk(within) if isinstance(call, ast.Call) and _name(call.func) in {"len", "dim"}]
    return any(node is inner for call in lengths for inner in ast.walk(call))


def _name(node: ast.AST | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
