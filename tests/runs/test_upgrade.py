"""Run folders that version 0.4 made are still loaded, evaluated and reported."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from glr_lightning.cli import evaluate, report, train
from glr_lightning.config import load_yaml
from glr_lightning.reporting.runs import read_runs
from glr_lightning.runs.trained_run import accuracy, load_run
from glr_lightning.runs.upgrade import upgrade
from glr_lightning.training.trained_noise import noise_averaged
from tests.checks.cli_runner import run_cli

OLD = Path(__file__).parent / "v0_4"
RUNS = ("annealed", "learned", "lrtz")
"""lrtz has been evaluated, learned has scales that were learned per neuron, annealed has scheduled ones."""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "v0_4"))


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", RUNS)
def test_the_network_of_an_earlier_run_has_the_accuracy_that_was_reported(name: str) -> None:
    before = listing(OLD)
    run = load_run(OLD / name)
    reported = json.loads((OLD / name / "result.json").read_text())["test_accuracy"]
    assert accuracy(run.network, *run.data.split("test")) == pytest.approx(reported, abs=1e-7)
    assert listing(OLD) == before


@pytest.mark.parametrize("name", RUNS)
def test_an_upgraded_configuration_needs_no_second_upgrade(name: str) -> None:
    once = upgrade(load_yaml(OLD / name / "config.yaml"))
    assert upgrade(once) == once


def test_the_noise_of_an_earlier_run_is_the_one_that_it_was_trained_with() -> None:
    found = {name: noise_averaged(load_run(OLD / name), 1) for name in RUNS}
    scales = {name: [torch.as_tensor(s) for s in model.sigma] for name, model in found.items() if model is not None}
    assert [float(s) for s in scales["lrtz"]] == [0.5, 0.5]
    assert [float(s) for s in scales["annealed"]] == pytest.approx([0.2, 0.2])
    assert [s.shape for s in scales["learned"]] == [(5,), (10,)]
    stored = torch.load(OLD / "learned/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(scales["learned"][0], stored["log_sigma.0"].exp())


def accuracies(folder: Path) -> dict[tuple[str, ...], float]:
    """Of robustness.csv, by threat, level, number of images and of noisy passes."""
    with (folder / "robustness.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {tuple(row[key] for key in ("threat", "level", "n", "noisy_passes")): float(row["accuracy"]) for row in rows}


def test_an_evaluation_of_an_earlier_run_finds_its_results_again(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = accuracies(folders / "lrtz")
    assert len(before) == 6
    arguments = [f"run={folders / 'lrtz'}", "threat=[clean,gaussian_noise]", "limit=100", "progress=false"]
    assert run_cli(evaluate.main, arguments, monkeypatch, capsys).code == 0
    assert accuracies(folders / "lrtz") == before
    arguments = [f"run={folders}", "threat=clean", "noisy_passes=2", "limit=50", "progress=false"]
    assert run_cli(evaluate.main, arguments, monkeypatch, capsys).code == 0
    after = accuracies(folders / "lrtz")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def test_earlier_runs_are_reported_under_their_experiments(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_cli(report.main, [f"runs={folders}", f"out={tmp_path / 'report'}"], monkeypatch, capsys)
    assert outcome.code == 0
    page = (tmp_path / "report/report.md").read_text()
    assert all(name in page for name in RUNS)
    assert len({run.experiment_hash for run in read_runs([folders / name for name in RUNS])}) == len(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_run_is_not_resumed_and_is_left_as_it_is(
    name: str, folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing to resume" in run_cli(train.main, [f"resume={folders / name}"], monkeypatch, capsys).err
    (folders / name / "result.json").unlink()
    before = listing(folders)
    outcome = run_cli(train.main, [f"resume={folders / name}"], monkeypatch, capsys)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "begun by an earlier version of glr-train" in outcome.err
    assert "go on with that version, or train anew" in outcome.err
    assert listing(folders) == before
