"""The layout: imports run one way, the root stays small, files stay readable."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "glr_lightning"
ORDER = (
    ("cli",),
    ("diagnosis",),
    ("reporting",),
    ("evaluation",),
    ("training",),
    ("threats",),
    ("runs",),
    ("estimators",),
    ("propagation",),
    ("data", "networks"),
    ("schedules", "injection", "baselines", "sampling"),
    ("noise", "losses", "activations"),
    ("terminal",),
    ("config",),
    ("storage", "randomness", "validation"),
    ("errors",),
)
"""From the top down; a package imports from the lines below its own, and what stands on one line may not meet."""
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MOST_ROOT_MODULES = 14
LONGEST = 300  # lines of a file
LONGEST_NAME = 72  # of a test


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The parts of this package, packages and root modules, that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "glr_lightning":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("glr_lightning."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("glr_lightning.")}
    return found & set(RANK)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part_of(path) for path in modules()} == {*RANK, "__init__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_up(path: Path) -> None:
    own = part_of(path)
    if own == "__init__":  # the public face of the package, which may name all of it
        return
    up = {part for part in imported(path) - {own} if RANK[part] <= RANK[own]}
    assert not up, f"{path.name} is in {own} and imports {', '.join(sorted(up))}, which stand beside or above it"


def test_the_root_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_ROOT_MODULES


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_long_file_says_why_it_is_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    why = [line for line in (ast.get_docstring(ast.parse(text)) or "").splitlines() if line.startswith("Long because ")]
    lines = len(text.splitlines())
    assert lines <= LONGEST or why, f"{path.name} has {lines} lines; split it, or say why in its docstring"


def test_names_of_tests_are_short_enough_to_be_read_in_a_list() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.rglob("test_*.py")]
    names = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [name for name in names if name.startswith("test_") and len(name) > LONGEST_NAME]


def test_no_test_file_imports_another() -> None:
    """What several of them use is in tests/checks."""
    for path in Path(__file__).parent.rglob("test_*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names]
        names += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        assert not [name for name in names if name.startswith("tests.") and ".test_" in name], path.name
