"""Figures are found by their declaration, also those of a user's module."""

import subprocess
import sys
from pathlib import Path

import pytest

from glr_lightning.reporting.figures import find_figures
from glr_lightning.reporting.report import report
from tests.checks.refusals import refused
from tests.checks.reports import call, make_run, standard

MODULE = """
from matplotlib.figure import Figure
from glr_lightning.reporting.figures import report_figure

@report_figure("Accuracy against training time, of all runs")
def training_time(comparison):
    figure = Figure()
    axes = figure.subplots()
    for run in comparison.runs:
        axes.plot(run.result["train_seconds"], run.result["test_accuracy"], "o")
    return figure

@report_figure("Nothing to see")
def without_data(comparison):
    return None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module with figures, in a package of its own."""
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "my_figures.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield "my_package.my_figures"
    for name in ("my_package", "my_package.my_figures"):
        sys.modules.pop(name, None)


def test_the_figures_of_the_package_are_found_in_their_order() -> None:
    names = [figure.name.removesuffix(".png") for figure in find_figures()]
    assert names == ["learning_curves", "accuracy_per_threat", "severity", "epsilon", "corruptions", "certified"]


def test_a_function_in_a_users_module_is_a_figure_of_the_report(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = make_run(tmp_path / "run", rows=standard()), tmp_path / "out"
    assert call(monkeypatch, f"runs={folder}", f"out={out}", f"figures=[{module}]") == 0
    assert (out / "training_time.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "without_data.png").exists()
    text = (out / "report.md").read_text()
    assert "![training time](training_time.png)\n\nAccuracy against training time, of all runs." in text
    assert text.index("epsilon.png") < text.index("training_time.png")
    assert "Accuracy against training time, of all runs." in (out / "report.html").read_text()
    (out / "mine.png").write_bytes(b"no figure of the report")
    assert call(monkeypatch, f"runs={folder}", f"out={out}") == 0
    assert not (out / "training_time.png").exists()
    assert (out / "mine.png").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be imported"),
        ("1 / 0", "cannot be imported"),
        ("x = 1", "it has none"),
        (MODULE.replace("training_time", "epsilon"), "declares epsilon.png, which another figure has"),
    ],
)
def test_a_module_without_figures_is_refused(
    content: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "strange_figures.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with refused("figures", words):
        report([make_run(tmp_path / "run")], tmp_path / "out", figures=["strange_figures"])
    assert not (tmp_path / "out").exists()
    sys.modules.pop("strange_figures", None)


def test_help_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys; sys.argv = ['glr-report', '--help']\n"
        "from glr_lightning.cli.report import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('matplotlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]"), done.stdout[-200:]
