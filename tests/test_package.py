"""The project as its users meet it: the wheel, the README, the help."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glr_lightning import __version__
from glr_lightning.cli import diagnose, evaluate, report, train
from tests.checks.cli_runner import run_cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_works_in_another_folder_without_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    (tmp_path / "elsewhere").mkdir()
    script = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "from glr_lightning import config\nfrom glr_lightning.cli import train\n"
        f"assert config.CONF_DIR.startswith({str(target)!r}), config.CONF_DIR\n"
        "sys.argv = ['glr-train', 'epochs=1', 'copies=4', 'progress=false', 'run_dir=run']\n"
        "train.main()\n"
        "from pathlib import Path\n"
        "from glr_lightning.reporting.report import report\n"
        "report([Path('run')], Path('report'))\n"  # its page is made from files of the package
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere/run/result.json").exists()
    assert (tmp_path / "elsewhere/report/report.html").exists()


def test_the_plain_torch_loop_of_the_readme_runs_and_learns() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    network, x, y = names["network"], names["x"], names["y"]
    predictions = network(x.float() / 16).argmax(1)  # type: ignore[operator]
    assert (predictions == y).float().mean() > 0.9  # type: ignore[attr-defined]
    assert len(predictions.unique()) == 10


def run_alone(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, whose last line of output is the slow libraries that it imported."""
    script = (
        f"import atexit, sys\nfrom glr_lightning.cli.{command} import main\n"
        "atexit.register(lambda: print(sorted({'torch', 'matplotlib', 'pytorch_lightning'} & set(sys.modules))))\n"
        f"sys.argv = {[f'glr-{command}', *arguments]}\nmain()\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["train", "evaluate", "report", "diagnose"])
def test_help_does_not_wait_for_torch(command: str) -> None:
    done = run_alone(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 10
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (
            "diagnose",
            ["experiment=lrt", "repetitions=10"],
            "repetitions must be a whole number of at least 20, got 10.",
        ),
        ("diagnose", ["experiment=lrt", "reference.repetitions=10"], "reference.repetitions must be a whole number"),
        ("train", ["epochs=0"], "epochs must be a whole number from 1"),
        ("evaluate", ["run=nowhere", "checkpoint=first"], "checkpoint must be one of 'best', 'last', got 'first'"),
    ],
)
def test_a_value_out_of_range_is_refused_without_torch(command: str, arguments: list[str], words: str) -> None:
    done = run_alone(command, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 110
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert len(links) > 20
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_citation_names_this_version_and_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "MIT"
    assert [paper["year"] for paper in citation["references"]] == [2022, 2020, 2024]


def test_the_changelog_has_dates_and_begins_with_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0].startswith(__version__)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading) for heading in headings)


ENTRY_POINTS = {"train": train.main, "evaluate": evaluate.main, "report": report.main, "diagnose": diagnose.main}


@pytest.mark.parametrize("main", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
def test_help_shows_examples_and_the_configuration(
    main: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_cli(main, ["--help"], monkeypatch, capsys)  # type: ignore[arg-type]
    assert outcome.code == 0
    assert outcome.out.startswith("glr-")
    assert "run" in outcome.out
