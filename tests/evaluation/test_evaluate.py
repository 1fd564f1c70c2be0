"""glr-evaluate: from a run folder to rows, with nothing re-declared and nothing run."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from glr_lightning.cli.evaluate import main
from glr_lightning.config import compose
from glr_lightning.evaluation import evaluate as evaluate_module
from glr_lightning.evaluation.row import read_rows, write_rows
from glr_lightning.reporting.figures.severity import by_severity
from glr_lightning.reporting.results import accuracy_interval, all_columns
from glr_lightning.reporting.runs import read_runs
from glr_lightning.runs.trained_run import load_checkpoint
from glr_lightning.training.fit import train
from tests.checks.cli_runner import Outcome, run_cli

FAST = ["progress=false", "copies=8", "epochs=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, a threshold network and a backprop one."""
    folder = tmp_path_factory.mktemp("trained")
    train(compose(FAST), folder / "runs/lrtz")
    train(compose(["experiment=bp", "progress=false", "epochs=3"]), folder / "runs/bp")
    return folder


@pytest.fixture
def evaluate(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """glr-evaluate in the folder of the runs, which holds no rows yet."""
    monkeypatch.chdir(trained)
    for table in trained.glob("runs/*/robustness.csv"):
        table.unlink()

    def call(*arguments: str) -> Outcome:
        return run_cli(main, [*arguments, "progress=false"], monkeypatch, capsys)

    return call


def test_every_run_gets_a_row_per_threat_and_level(evaluate: Any, trained: Path) -> None:
    outcome = evaluate("run=runs/*", "threat=standard", "surrogate.dir=surrogates")
    assert outcome.code == 0, outcome.err
    for run in ("lrtz", "bp"):
        rows = read_rows(trained / f"runs/{run}/robustness.csv")
        assert [(r.threat, r.level) for r in rows] == [
            ("clean", None),
            ("fgsm", 0.13),
            *(
                (name, float(s))
                for name in ("gaussian_noise", "impulse_noise", "glass_blur", "contrast")
                for s in range(1, 6)
            ),
        ]
        fgsm = rows[1]
        assert fgsm.gradient_source == "transfer"
        assert 0 < fgsm.max_linf <= 0.13 + 1e-6
        assert fgsm.accuracy < rows[0].accuracy
    assert "lrtz" in outcome.out
    assert len(list((trained / "surrogates").iterdir())) == 1  # trained once, for both, and nothing left beside it

    surrogate = next((trained / "surrogates").iterdir())
    before = (surrogate / "checkpoints/best.ckpt").stat().st_mtime_ns
    assert evaluate("run=runs/bp", "threat=fgsm", "surrogate.dir=surrogates").code == 0
    assert (surrogate / "checkpoints/best.ckpt").stat().st_mtime_ns == before
    options = ("threat=fgsm", "surrogate.dir=surrogates", "surrogate.epochs=1")  # of every data set
    assert evaluate("run=runs/bp", *options).code == 0
    assert len(list((trained / "surrogates").iterdir())) == 2


def test_the_progress_of_two_runs_grows_to_two(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    after: list[float] = []

    class Noted(Progress):
        """Notes what is completed after each change."""

        def update(self, *arguments: Any, **options: Any) -> None:
            super().update(*arguments, **options)
            after.append(self.tasks[0].completed)

        def advance(self, *arguments: Any, **options: Any) -> None:
            super().advance(*arguments, **options)
            after.append(self.tasks[0].completed)

    bars: list[Noted] = []
    monkeypatch.setattr(evaluate_module, "progress_bar", lambda *_, **__: bars.append(Noted(disable=True)) or bars[0])
    assert evaluate("run=runs/*", "threat=[clean,random_noise]", "limit=30", "batch_size=10").code == 0
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(after))
    assert after[-1] == pytest.approx(2.0)
    assert max(after) <= 2.0 + 1e-9
    assert len({round(each, 6) for each in after}) > 2 * 3  # with the batches


def test_an_evaluation_of_fewer_images_leaves_the_fuller_rows_alone(evaluate: Any, trained: Path) -> None:
    path = trained / "runs/bp/robustness.csv"
    assert evaluate("run=runs/bp", "threat=[clean,contrast]").code == 0
    whole = read_rows(path)
    outcome = evaluate("run=runs/bp", "threat=contrast", "limit=50")
    assert outcome.code == 0
    rows = read_rows(path)
    assert rows[: len(whole)] == whole
    assert [(row.threat, row.n) for row in rows[len(whole) :]] == [("contrast", 50)] * 5
    (run,) = read_runs([trained / "runs/bp"])
    assert {row.n for cell in run.cells.values() for row in cell.rows} == {whole[0].n}


def test_the_same_seed_gives_the_same_rows_at_any_batch_size(evaluate: Any, trained: Path) -> None:
    tables = []
    for batch_size in ("1000", "77"):
        assert evaluate("run=runs/lrtz", "threat=corruptions", f"batch_size={batch_size}").code == 0
        tables.append([replace(row, seconds=0) for row in read_rows(trained / "runs/lrtz/robustness.csv")])
    for one, other in zip(*tables, strict=True):
        assert one.correct == other.correct
        assert one.mean_l2 == pytest.approx(other.mean_l2)


def test_a_white_box_gradient_attack_on_a_threshold_network_is_flagged(evaluate: Any, trained: Path) -> None:
    for run, masked in (("lrtz", True), ("bp", False)):
        outcome = evaluate(f"run=runs/{run}", "threat=fgsm", "threat.fgsm.gradient_source=autograd")
        (row,) = read_rows(trained / f"runs/{run}/robustness.csv")
        assert row.unreliable is masked
        assert row.zero_gradient_fraction == (1.0 if masked else 0.0)
        assert ("says nothing about robustness" in outcome.out) is masked


def test_noisy_passes_add_a_row_beside_the_noise_free_one(evaluate: Any, trained: Path) -> None:
    path = trained / "runs/lrtz/robustness.csv"
    assert evaluate("run=runs/lrtz", "threat=[clean,contrast]").code == 0
    (before, *_) = read_rows(path)
    outcomes = {}
    for size in ("1000", "77"):
        outcome = evaluate("run=runs/lrtz", "threat=contrast", "noisy_passes=3", f"batch_size={size}")
        assert outcome.code == 0, outcome.err
        rows = {r.noisy_passes: r for r in read_rows(path) if r.threat == "clean"}
        assert rows.keys() == {0, 3}
        noisy = rows[3]
        assert (noisy.kind, noisy.n, noisy.max_linf) == ("clean", before.n, 0.0)
        assert rows[0].correct == before.correct
        outcomes[size] = noisy.correct
        assert "passes" in outcome.out
    assert outcomes["1000"] == outcomes["77"] != before.correct
    (run,) = read_runs([trained / "runs/lrtz"])
    noise_free, with_noise = [column for column in all_columns([run]) if column.kind == "clean"]
    if noise_free.noisy_passes:  # whichever was written first
        noise_free, with_noise = with_noise, noise_free
    assert (noise_free.words, with_noise.words[-1]) == (["clean"], "noisy passes 3")
    assert accuracy_interval(run) == run.cells[noise_free].interval


def test_what_needs_the_noise_free_row_takes_it_whatever_stands_first(evaluate: Any, trained: Path) -> None:
    path = trained / "runs/lrtz/robustness.csv"
    assert evaluate("run=runs/lrtz", "threat=[clean,contrast]", "noisy_passes=2").code == 0
    rows = read_rows(path)
    accuracy = rows[0].accuracy
    moved = [row for row in rows if row.noisy_passes] + rows[:-1]
    write_rows(path, [replace(moved[0], accuracy=accuracy, wilson_low=0.0), *moved[1:]])  # equal, but another row
    (run,) = read_runs([trained / "runs/lrtz"])
    assert accuracy_interval(run) == (rows[0].wilson_low, rows[0].wilson_high)
    points = by_severity(run, [cell for column, cell in run.cells.items() if column.kind == "corruption"])
    assert points[0.0].noisy_passes == 0


def test_noisy_passes_of_a_run_without_noise_are_refused_by_name(evaluate: Any, trained: Path) -> None:
    outcome = evaluate("run=runs/*", "threat=clean", "noisy_passes=3")
    assert outcome.code == 2
    assert "these were not: runs/bp. Leave them out" in outcome.err
    assert not list(trained.glob("runs/*/robustness.csv"))


REFUSED = {
    "no noisy passes": (["run=runs/lrtz", "threat=clean", "noisy_passes=0"], "noisy_passes must be a whole number"),
    "no run named": ([], "which run?"),
    "no such run": (["run=nowhere"], "matches nothing"),
    "a glob without runs": (["run=runs/*/checkpoints"], "none of them a run folder"),
    "unknown threat": (["run=runs/bp", "threat=fog"], "gaussian_noise"),
    "negative epsilon": (["run=runs/bp", "threat=fgsm", "threat.fgsm.epsilon=[-0.1]"], "epsilon"),
    "unknown preset": (["run=runs/bp", "threat=contrast", "threat.contrast.preset=mine"], "cifar10_c"),
    "a set without its file": (["run=runs/bp", "threat=adversarial_set"], "threat.adversarial_set.path must be given"),
    "an odd number of copies": (
        ["run=runs/bp", "threat=fgsm", "threat.fgsm.gradient.copies=5"],
        "copies must be an even",
    ),
    "a loss that does not exist": (
        ["run=runs/bp", "threat=[clean,pgd_linf]", "threat.pgd_linf.loss=hinge"],
        "'margin'",
    ),
    "steps that are no number": (
        ["run=runs/bp", "threat=[clean,pgd_linf]", "threat.pgd_linf.steps=abc"],
        "threat.pgd_linf.steps must be a whole number",
    ),
    "a step size of nan": (
        ["run=runs/bp", "threat=[clean,pgd_linf]", "threat.pgd_linf.step_size=nan"],
        "threat.pgd_linf.step_size must be a number above 0, or null, got nan",
    ),
    "no threats": (["run=runs/bp", "threat=[]"], "threat"),
    "limit 0": (["run=runs/bp", "threat=clean", "limit=0"], "limit must be a whole number from 1"),
    "unknown checkpoint": (["run=runs/bp", "checkpoint=first"], "one of 'best', 'last'"),
    "unknown device": (["run=runs/bp", "device=abacus"], "device=abacus"),
    "unknown surrogate": (["run=runs/bp", "threat=fgsm", "surrogate.experiment=surrogate/none"], "no surrogate=none"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_words(arguments: list[str], words: str, evaluate: Any, trained: Path) -> None:
    outcome = evaluate(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(trained.glob("runs/*/robustness.csv"))


def test_weights_that_do_not_fit_and_a_missing_checkpoint_are_refused(evaluate: Any, trained: Path) -> None:
    path = trained / "runs/bp/checkpoints/best.ckpt"
    good = path.read_bytes()
    checkpoint = load_checkpoint(path)
    checkpoint["state_dict"]["network.linear1.weight"] = torch.zeros(3, 3)
    try:
        torch.save(checkpoint, path)
        outcome = evaluate("run=runs/bp", "threat=clean")
        assert (outcome.code, "do not fit the network" in outcome.err) == (2, True)
        path.unlink()
        outcome = evaluate("run=runs/bp", "threat=clean")
        assert outcome.code == 2
        assert "use checkpoint=last, or go on with glr-train resume=runs/" in outcome.err
    finally:
        path.write_bytes(good)
