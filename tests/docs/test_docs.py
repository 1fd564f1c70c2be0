"""The documentation: generated pages are complete, citations are numbered, every example runs."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.checks.docs_scripts import DOCS, docs_script

ROOT = Path(__file__).parents[2]
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    pytest.importorskip("nbformat")
    return docs_script("generated")


@pytest.fixture(scope="module")
def overview() -> ModuleType:
    return docs_script("overview")


def keys(node: object, prefix: str) -> Iterator[str]:
    """The dotted keys of a configuration that an override can name."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not str(key).startswith("_") and key not in ("defaults", "hydra"):
                name = f"{prefix}.{key}".lstrip(".")
                inner = list(keys(value, name))
                if inner or not (isinstance(value, dict) and value):  # not what holds nothing but a _target_
                    yield name
                yield from inner


def is_shown(key: str, shown: list[str]) -> bool:
    """A mapping on one line stands for what is in it, the inner keys of a longer one for itself."""
    return any(f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") for path in shown)


def test_every_option_and_setting_of_every_group_is_in_the_reference(generated: ModuleType) -> None:
    page = generated.configuration_page()
    files = [path for path in generated.CONF.rglob("*.yaml") if path.parent != generated.CONF]
    assert len(files) > 100
    for path in files:
        group, name = path.parent.relative_to(generated.CONF).as_posix(), path.stem
        for parent in generated.SORTED_INTO:
            if group.startswith(f"{parent}/"):
                group, name = parent, f"{group.removeprefix(f'{parent}/')}/{name}"
        row = next(line for line in page.splitlines() if line.startswith(f"| [`{group}`]"))
        assert f"`{name}`" in row
        assert not row.endswith("|  |"), f"no file says what {group} chooses"
        heading = f"#### `{group}={name}`"
        assert page.count(heading + " ") == 1, heading
        section = page[page.index(heading) + len(heading) :].split("\n##")[0]
        shown = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
        text = path.read_text(encoding="utf-8")
        prefix = "" if "# @package _global_" in text else group.replace("/", ".")
        for key in keys(yaml.safe_load(text), prefix):
            assert is_shown(key, shown), f"{group}={name}: {key}"


def test_every_setting_and_example_of_every_command_is_in_the_reference(generated: ModuleType) -> None:
    page = generated.commands_page()
    for command, name in generated.COMMANDS.items():
        config = yaml.safe_load((generated.CONF / f"{command}.yaml").read_text(encoding="utf-8"))
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        shown = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
        for key in keys(config, ""):
            assert is_shown(key, shown), f"{name}: {key}"
        assert f"  {name} " in section


def test_comments_of_several_lines_are_read_whole(generated: ModuleType) -> None:
    text = "a: 1  # first\n      # second\nb:\n  c: x|y # third\n"
    found = {each.path: (each.default, each.comment) for each in generated.settings(text, "group")}
    assert found == {"group.a": ("1", "first second"), "group.b.c": ("x|y", "third")}
    assert "`x\\|y`" in generated.settings_table(generated.settings(text))


def test_a_folder_of_options_elsewhere_is_documented_too(generated: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/mine.yaml").write_text("# A loss of mine.\n_target_: mine.Loss\nmargin: 2  # in logits\n")
    page = generated.configuration_page(tmp_path)
    assert "#### `loss=mine`" in page
    assert "A loss of mine." in page
    assert "| `loss.margin` | `2` | in logits |" in page


def test_every_public_module_has_a_place_in_the_api_reference(generated: ModuleType) -> None:
    named = {line for page in generated.api_pages().values() for line in page.splitlines() if line.startswith("::: ")}
    for path in generated.PACKAGE.rglob("*.py"):
        parts = ("glr_lightning", *path.relative_to(generated.PACKAGE).with_suffix("").parts)
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            assert f"::: {'.'.join(part for part in parts if part != '__init__')}" in named


@pytest.mark.parametrize("kind", ["law", "paper"])
def test_every_law_and_paper_that_is_cited_is_numbered(kind: str) -> None:
    laws = (DOCS / "laws.md").read_text(encoding="utf-8")
    cited: dict[str, Path] = {}
    for folder in ("src", "conf", "tests", "docs", "experiments"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".md"):
                text = path.read_text(encoding="utf-8")
                for found in re.findall(rf"\b{kind}s? (\d+(?:(?:, | and | to )\d+)*)", text, flags=re.IGNORECASE):
                    cited |= dict.fromkeys(re.findall(r"\d+", found), path)
    assert cited
    for number, path in cited.items():
        assert f"{{ #{kind}-{number} }}" in laws, f"{kind} {number}, cited in {path.relative_to(ROOT)}"


def test_a_paper_is_named_by_its_number() -> None:
    for folder in ("src", "conf", "tests", "docs", "experiments"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".md", ".sh"):
                found = re.findall(
                    r"\b(?:the|this|that) papers?\b(?! \d).{,20}", path.read_text(encoding="utf-8"), re.IGNORECASE
                )
                assert not found, path.relative_to(ROOT)


def test_the_tables_of_readme_and_studies_are_the_committed_results(overview: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    studies = (DOCS / "studies.md").read_text(encoding="utf-8")
    for run, data in overview.accuracies():
        for text, where in ((readme, "README.md"), (studies, "docs/studies.md")):
            if not run.startswith("hybrid") and not ("straight" in run and text is readme):
                assert overview.cell(run, data) in text, f"{where}: {run} on {data}"
    for run, points in overview.worst_cases().items():
        for epsilon in (0.0, 0.03, 0.06, 0.1):
            row = next(line for line in studies.splitlines() if line.startswith(f"| {epsilon:g} |"))
            assert f" {points[epsilon]:.1f} " in row, f"{run} at {epsilon}"


def test_the_figure_of_the_readme_can_be_drawn_again(overview: ModuleType) -> None:
    left, right = overview.draw().axes
    assert len(left.get_yticks()) == len(overview.BARS)
    assert {line.get_label() for line in right.lines} == {label for label, _, _ in overview.CURVES.values()}
    assert (DOCS / "assets/overview.svg").exists()


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON.search((DOCS / page).read_text(encoding="utf-8"))])
def test_the_python_of_every_page_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in PYTHON.findall((DOCS / page).read_text(encoding="utf-8")):
        exec(compile(code, page, "exec"), names)
