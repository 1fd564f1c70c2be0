"""Every command that the documentation shows can be composed, and every option that it names exists."""

import re
import shlex
from pathlib import Path

import pytest

from glr_lightning.cli import diagnose, evaluate, report, train
from glr_lightning.config import SHORT_FORMS
from tests.checks.cli_runner import run_cli
from tests.checks.docs_scripts import docs_script

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAIN = {f"glr-{each.__name__.rpartition('.')[2]}": each.main for each in (diagnose, evaluate, report, train)}
SWEPT = re.compile(r"=([^\[\]{},]+),[^\[\]{}]*$")


def commands() -> list[str]:
    """The commands of all pages but for those of docs/extending that need their own files and are run elsewhere."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\$ (glr-.+)$", text, flags=re.MULTILINE):
            found[line.partition("  #")[0].strip()] = None
    return list(found)


@pytest.mark.parametrize("command", commands())
def test_every_command_can_be_composed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = shlex.split(command)
    arguments = [SWEPT.sub(r"=\1", each) for each in arguments if each != "--multirun"]  # one job of a sweep
    outcome = run_cli(MAIN[name], [*arguments, "--cfg", "job"], monkeypatch, capsys)
    assert outcome.code == 0, outcome.err


def named_options() -> list[tuple[str, str, str]]:
    """(page, key, value) of what stands as KEY=VALUE in inline code, calls of Python aside."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`\n]+)`", text):
            for key, value in [] if re.search(r"\w\(", code) else re.findall(r"(?:^| )([a-z][a-z_./]*)=(\S+)", code):
                found.append((page.relative_to(ROOT).as_posix(), key, value))
    return found


def test_every_option_that_the_text_names_exists() -> None:
    pytest.importorskip("nbformat")
    generated = docs_script("generated")
    groups = {group: {option.name for option in generated.options(group)} for group in generated.groups()}
    groups |= {short: groups[long] for short, long in SHORT_FORMS.items() if "/" in long}
    texts = [(generated.CONF / f"{command}.yaml").read_text(encoding="utf-8") for command in generated.COMMANDS]
    keys = {setting.path for text in texts for setting in generated.settings(text)}
    keys |= {
        each.path for group in generated.groups() for option in generated.options(group) for each in option.settings
    }
    keys |= {short for short, long in SHORT_FORMS.items() if long in keys}
    named = named_options()
    assert len(named) > 30
    for page, key, value in named:
        if key in groups:
            chosen = re.sub(r"[\[\]]", "", value).split(",")
            own = f'title="conf/{key}/{{}}.yaml"'  # the file of an example on the same page
            text = (ROOT / page).read_text(encoding="utf-8")
            chosen = [name for name in chosen if not name.isupper() and own.format(name) not in text]
            unknown = [name for name in chosen if name not in groups[key]]
            assert not unknown, f"{page}: {key}={value}"
        elif "NAME" not in key:
            assert any(f"{known}.".startswith(f"{key}.") or f"{key}.".startswith(f"{known}.") for known in keys), (
                f"{page}: {key}={value}"
            )


def test_every_target_that_the_documentation_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, flags=re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert targets == set(phony.split())
    named: set[str] = set()
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / ".ci/run", *ROOT.glob("experiments/*/README.md")]:
        named |= set(re.findall(r"(?:^|[`$] ?)make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"quickstart", "test", "docs", "lint"} <= named <= targets
