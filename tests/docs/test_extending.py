"""Each page of docs/extending has an example: its files are written as they stand, and its commands are run."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glr_lightning.cli import diagnose, evaluate, report, train
from tests.checks.cli_runner import run_cli
from tests.checks.docs_scripts import docs_script

EXTENDING = Path(__file__).parents[2] / "docs/extending"
FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ PYTHONPATH=\. (.+)$", flags=re.MULTILINE)
MAIN = {
    "glr-train": train.main,
    "glr-evaluate": evaluate.main,
    "glr-report": report.main,
    "glr-diagnose": diagnose.main,
}
KINDS = sorted(path.stem for path in EXTENDING.glob("*.md") if path.stem != "index")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported, until the test is over."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_runs_and_help_documentation_and_report_have_it(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (EXTENDING / f"{kind}.md").read_text(encoding="utf-8")
    files = FILE.findall(page)
    assert any(name.endswith(".py") for name, _ in files)
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    commands = COMMAND.findall(page)
    assert commands
    for command in commands:
        name, *arguments = shlex.split(command)
        outcome = run_cli(MAIN[name], arguments, monkeypatch, capsys)
        assert outcome.code == 0, f"{command}\n{outcome.err}"
    for run, percent in re.findall(r"`(runs/\w+)` is right about more than (\d+) %", page):
        assert json.loads((folder / run / "result.json").read_text())["test_accuracy"] > int(percent) / 100
    for figure in re.findall(r"`(report/\w+\.png)`", page):
        assert (folder / figure).exists()
        assert Path(figure).name in (folder / "report/report.md").read_text(encoding="utf-8")
    for name, content in files:
        if name.startswith("conf/"):
            group, option = Path(name).relative_to("conf").parent.as_posix(), Path(name).stem
            chooser = evaluate.main if group == "threat" else train.main
            listed = run_cli(chooser, ["--config-dir", "conf", "--help"], monkeypatch, capsys).out
            line = next(line for line in listed.splitlines() if line.strip().startswith(f"{group}:"))
            assert option in line
            assert f"`{group}={option}`" in docs_script("generated").configuration_page(folder / "conf")
            if group == "callbacks":  # they are no part of what reports compare
                continue
            if group != "threat":
                assert run_cli(report.main, ["runs=runs"], monkeypatch, capsys).code == 0
            named = option if group == "threat" else re.findall(r"^ *_target_: (\S+)", content, re.MULTILINE)[0]
            assert named in (folder / "report/report.md").read_text(encoding="utf-8")


def test_every_page_is_listed_in_the_overview() -> None:
    index = (EXTENDING / "index.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"({kind}.md)" in index
