"""The studies: their text agrees with what it is drawn from, and their figures can be drawn from it."""

import csv
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from glr_lightning.reporting.published import PUBLISHED

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "experiments"


def test_figures_are_drawn_from_the_committed_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, *lines = (STUDIES / "robustness" / "results.csv").read_text().splitlines()
    (tmp_path / "robustness").mkdir()
    one = [line for line in lines if line.startswith("lrt,")]
    (tmp_path / "robustness" / "results.csv").write_text("\n".join([header, *one, ""]))
    (tmp_path / "case").mkdir()
    shutil.copy(STUDIES / "estimators" / "diagnoses" / "lrt-784-50-10" / "diagnosis.csv", tmp_path / "case")
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path)])
    runpy.run_path(str(STUDIES / "figures.py"), run_name="__main__")
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    names = ("accuracy_per_threat", "severity", "epsilon", "corruptions", "certified")
    assert drawn == {"case/diagnosis.png", *(f"robustness/{name}.png" for name in names)}


def test_the_tables_of_the_estimators_study_are_those_of_its_csv_files(tmp_path: Path) -> None:
    shutil.copytree(STUDIES / "estimators", tmp_path / "estimators")
    runpy.run_path(str(tmp_path / "estimators" / "summary.py"), run_name="__main__")
    readme = (STUDIES / "estimators" / "README.md").read_text()
    for name in ("accuracy.md", "best.md"):
        text = (tmp_path / "estimators" / name).read_text()
        assert text == (STUDIES / "estimators" / name).read_text()
        assert text in readme


def test_the_accuracies_of_the_recurrent_study_are_those_of_its_csv_file() -> None:
    accuracies: dict[str, list[float]] = {}
    with (STUDIES / "recurrent" / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            accuracies.setdefault(re.sub(r"/\d+$", "", row["run"]), []).append(100 * float(row["accuracy"]))
    readme = (STUDIES / "recurrent" / "README.md").read_text()
    shown = dict(re.findall(r"^\| `([\w/]+)` \|.*\| (\d+ \| \d\d\.\d\d) \|", readme, flags=re.MULTILINE))
    assert shown == {run: f"{len(seeds)} | {fmean(seeds):.2f}" for run, seeds in accuracies.items()}
    studies = (ROOT / "docs" / "studies.md").read_text()
    assert f"{fmean(accuracies['seven_steps/lrt']):.2f}" in studies


@pytest.mark.parametrize("page", ["README.md", "experiments/estimators/README.md"])
def test_pages_quote_the_published_numbers_as_they_are(page: str) -> None:
    known = set()
    for model in PUBLISHED["mnist"].accuracies:
        shares = [PUBLISHED[data].accuracy(model, "clean") or 0 for data in ("mnist", "fashion_mnist")]
        known.add(" / ".join(f"{100 * share:.2f}" for share in shares))
    quoted = set(re.findall(r"\| (\d\d\.\d\d / \d\d\.\d\d) \|", (ROOT / page).read_text()))
    assert quoted
    assert quoted <= known


def test_only_figures_that_a_page_shows_are_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "*.png"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout.split() == ["experiments/estimators/variance_time.png"]
