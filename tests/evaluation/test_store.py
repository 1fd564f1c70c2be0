"""The record of an evaluation: resumed where it stopped, computed again when asked, never a mixture of networks."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import BarColumn, Progress

from glr_lightning.cli.evaluate import main
from glr_lightning.config import CONF_DIR, compose, load_yaml
from glr_lightning.evaluation import tasks
from glr_lightning.evaluation.attempts import Attempt
from glr_lightning.evaluation.per_image import read_per_image, write_per_image
from glr_lightning.evaluation.row import read_rows
from glr_lightning.evaluation.surrogate_options import SurrogateOptions
from glr_lightning.runs.trained_run import BEST
from glr_lightning.training.fit import train
from tests.checks.cli_runner import Outcome, run_cli

FAST = ["progress=false", "epochs=2"]
QUICK = ["threat=[clean,fgsm,contrast]", "surrogate.dir=surrogates", "surrogate.epochs=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(compose(["experiment=lrtz", *FAST]), folder / "runs/lrtz")
    train(compose(["experiment=lrt", *FAST]), folder / "runs/lrt")
    train(compose(["experiment=bp", *FAST]), folder / "bp")
    return folder


@pytest.fixture
def evaluate(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(trained)
    for name in ("robustness.csv", "robustness.npz"):
        for file in trained.glob(f"runs/*/{name}"):
            file.unlink()

    def call(*arguments: str) -> Outcome:
        return run_cli(main, [*arguments, "progress=false"], monkeypatch, capsys)

    return call


@pytest.fixture
def judgements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attempts that are run, in words; an interruption comes before the fourth if the first word is "stop"."""
    done: list[str] = []
    whole = tasks.run

    def run(attempt: Attempt, *arguments: Any, **options: Any) -> Any:
        if done[:1] == ["stop"] and len(done) == 4:
            raise KeyboardInterrupt
        done.append(attempt.words)
        return whole(attempt, *arguments, **options)

    monkeypatch.setattr(tasks, "run", run)
    return done


def test_an_interrupted_evaluation_goes_on_and_ends_as_an_uninterrupted_one(
    evaluate: Any, trained: Path, judgements: list[str]
) -> None:
    path = trained / "runs/lrtz/robustness.csv"
    assert evaluate("run=runs/lrtz", *QUICK).code == 0
    uninterrupted, evidence = read_rows(path), read_per_image(path.with_suffix(".npz"))
    assert len(judgements) == 7
    path.unlink()
    judgements[:] = ["stop"]
    assert evaluate("run=runs/lrtz", *QUICK).code == 130
    assert [row.threat for row in read_rows(path)] == ["clean", "fgsm", "contrast"]
    judgements[:] = []
    outcome = evaluate("run=runs/lrtz", *QUICK)
    assert len(judgements) == 4
    assert "3 of 7 rows were there already; again=true" in outcome.err + outcome.out
    assert [replace(row, seconds=0) for row in read_rows(path)] == [replace(row, seconds=0) for row in uninterrupted]
    resumed = read_per_image(path.with_suffix(".npz"))
    assert resumed.keys() == evidence.keys()
    assert all(np.array_equal(resumed[key].correct, evidence[key].correct) for key in evidence)


@pytest.mark.slow
def test_only_what_changed_is_computed_again_and_everything_when_asked(
    evaluate: Any, trained: Path, judgements: list[str]
) -> None:
    path = trained / "runs/lrtz/robustness.csv"
    for changes, run in (
        ([], 7),
        ([], 0),
        (["batch_size=100"], 0),  # which no result depends on
        (["threat.fgsm.epsilon=[0.13,0.2]"], 1),
        (["seed=1"], 7),
        (["seed=1", "again=true"], 7),
        (["seed=1", "limit=100"], 7),
        (["seed=1", "checkpoint=last"], 0),  # the same weights
    ):
        judgements[:] = []
        outcome = evaluate("run=runs/lrtz", *QUICK, *changes)
        assert (outcome.code, len(judgements)) == (0, run), changes
    rows = read_rows(path)
    assert [(row.level, row.n, row.evaluation_seed) for row in rows if row.threat == "fgsm"] == [
        (0.13, 359, 1),
        (0.2, 359, 0),
        (0.13, 100, 1),
    ]
    path.with_suffix(".npz").unlink()  # what a worst case would be counted from is gone
    judgements[:] = []
    assert evaluate("run=runs/lrtz", *QUICK, "seed=1").code == 0
    assert len(judgements) == 7


def test_a_table_is_about_one_network(evaluate: Any, trained: Path) -> None:
    assert evaluate("run=runs/lrtz", *QUICK).code == 0
    path = trained / "runs/lrtz" / BEST
    good = path.read_bytes()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["network.linear1.bias"] += 0.1
    try:
        torch.save(checkpoint, path)
        outcome = evaluate("run=runs/*", "threat=clean")
        assert outcome.code == 2
        assert "about other weights (checkpoint=best)" in outcome.err
        assert "again=true" in outcome.err
        assert not (trained / "runs/lrt/robustness.csv").exists()  # refused before anything was run
        assert evaluate("run=runs/lrtz", "threat=clean", "again=true").code == 0
        assert [row.threat for row in read_rows(trained / "runs/lrtz/robustness.csv")] == ["clean"]
    finally:
        path.write_bytes(good)


def test_a_damaged_record_is_refused(evaluate: Any, trained: Path) -> None:
    assert evaluate("run=runs/lrtz", "threat=clean").code == 0
    path = trained / "runs/lrtz/robustness.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    outcome = evaluate("run=runs/lrtz", "threat=clean")
    assert outcome.code == 2
    assert "Remove the file" in outcome.err
    path.write_bytes(whole)
    ((key, evidence),) = read_per_image(path).items()
    for change in ({"correct": evidence.correct[:-1]}, {"correct": ~evidence.correct}):
        write_per_image(path, {key: replace(evidence, **change)})
        outcome = evaluate("run=runs/lrtz", "threat=clean")
        assert (outcome.code, "Remove the file" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["surrogate.dir=runs/lrtz/config.yaml"], "surrogate.dir=runs/lrtz/config.yaml must be a folder"),
        (["surrogate.dir=null"], "surrogate.dir must be"),
        (["surrogate.dir=''"], "surrogate.dir must be"),
        (["surrogate.experiment=3"], "surrogate.experiment must be"),
        (["surrogate.keep_images=3"], "surrogate.keep_images must be true or false, got 3"),
        (["surrogate.epochs=0"], "surrogate.epochs must be a whole number"),
        (["surrogate.epochs.mnist=x"], "surrogate.epochs must be"),
        (["surrogate.nothing=3"], "no option 'nothing' in surrogate"),
        (["surrogate.experiment=nope"], "the surrogates are those of threat.transfer_pgd.surrogates; leave it out"),
        (["threat=clean", "surrogate.experiment=nope"], "no threat needs a surrogate; leave it out"),
        (["threat=fgsm", "surrogate.experiment=nope"], "a surrogate is named as surrogate/relu"),
        (["threat=fgsm", "surrogate.experiment=surrogate/nope"], "there is no surrogate=nope. Choose from"),
        (["run=null"], "run must be a folder, a glob"),
        (["run=[]"], "run must be a folder, a glob"),
        (["run=[null]"], "run must be a folder, a glob"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_cannot_be_used_is_refused_in_one_line(evaluate: Any, options: list[str], words: str) -> None:
    chosen = ["run=runs/lrtz", "threat=[clean,transfer_pgd]", "limit=5"]
    given = {option.partition("=")[0] for option in options}
    outcome = evaluate(*(option for option in chosen if option.partition("=")[0] not in given), *options)
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_surrogate_trains_under_the_one_bar_of_the_evaluation(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    shown: list[str] = []
    whole = Progress.update

    def update(self: Progress, *arguments: Any, **options: Any) -> None:
        assert sum(isinstance(column, BarColumn) for column in self.columns) == 1
        shown.append(options.get("description") or "")
        whole(self, *arguments, **options)

    monkeypatch.setattr(Progress, "update", update)
    options = ["run=runs/lrtz", "threat=fgsm", "limit=5", "surrogate.epochs=1", f"surrogate.dir={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["glr-evaluate", *options])
    main()
    assert shown[0] == "training surrogate/relu"


def test_the_options_of_surrogates_have_the_defaults_of_the_configuration() -> None:
    section = load_yaml(Path(CONF_DIR) / "evaluate.yaml")["surrogate"]
    assert {"epochs", *section} == {field.name for field in fields(SurrogateOptions)}
    assert replace(SurrogateOptions(**section), epochs=None) == SurrogateOptions()


def test_each_family_of_surrogates_has_a_row_and_its_images_once(evaluate: Any, trained: Path) -> None:
    families = "surrogate.experiment=[surrogate/relu,surrogate/straight_through]"
    assert evaluate("run=runs/lrtz", *QUICK, "threat=fgsm", families).code == 0
    kept = {path: path.stat().st_mtime_ns for path in trained.glob("surrogates/*/adversarial/*.npz")}
    assert evaluate("run=runs/lrt", *QUICK, "threat=fgsm", families).code == 0
    assert {path: path.stat().st_mtime_ns for path in trained.glob("surrogates/*/adversarial/*.npz")} == kept
    assert len(kept) >= 2
    for run in ("lrtz", "lrt"):
        rows = read_rows(trained / f"runs/{run}/robustness.csv")
        rows = [row for row in rows if row.kind == "attack"]
        assert [row.surrogate for row in rows] == ["surrogate/relu", "surrogate/straight_through"]
        assert rows[1].zero_gradient_fraction == 0  # by its slopes
        assert len({row.correct for row in rows}) == 2

    name = f"threat.adversarial_set.path={max(kept, key=kept.__getitem__)}"  # the newest: other tests keep others here
    assert evaluate("run=runs/lrt", *QUICK, "threat=adversarial_set", name).code == 0
    assert "adversarial_set" in {row.threat for row in read_rows(trained / "runs/lrt/robustness.csv")}
    outcome = evaluate("run=runs/lrt", "threat=adversarial_set", name, "limit=10", "seed=3")
    assert outcome.code == 0
    outcome = evaluate("run=runs/lrt", "threat=adversarial_set", "threat.adversarial_set.path=nowhere.npz")
    assert (outcome.code, "nowhere.npz cannot be read" in outcome.err) == (2, True)


def test_inference_noise_runs_every_threat_against_the_noisy_network(evaluate: Any, trained: Path) -> None:
    options = ("threat=[clean,fgsm]", "threat.fgsm.gradient_source=[straight_through,autograd]", "limit=100")
    outcome = evaluate("run=runs/lrtz", *options, "noisy_passes=2", "inference_noise=true")
    assert outcome.code == 0, outcome.err
    rows = read_rows(trained / "runs/lrtz/robustness.csv")
    assert {row.noisy_passes for row in rows} == {2}
    assert all(row.randomized for row in rows)
    clean, straight, autograd, *_ = rows
    assert (clean.queries, straight.queries, autograd.masked) == (None, 8, True)
    assert "gradients are means over 8 noisy passes" in straight.note
    assert straight.accuracy < clean.accuracy
    outcome = evaluate("run=runs/lrtz", *options, "inference_noise=true")
    assert (outcome.code, "noisy_passes=32" in outcome.err) == (2, True)


def test_a_certificate_has_a_row_per_radius_and_needs_noise(evaluate: Any, trained: Path) -> None:
    options = ("threat=[clean,certify]", "threat.certify.draws=200", "threat.certify.radii=[0,0.5]", "limit=50")
    outcome = evaluate("run=[runs,bp]", *options)
    assert (outcome.code, "error: bp: a certificate needs Gaussian noise" in outcome.err) == (2, True)
    assert not list(trained.glob("**/robustness.csv"))  # refused before anything was run
    assert evaluate("run=[runs,bp]", *options, "threat.certify.sigma=0.5").code == 0
    for run in ("runs/lrtz", "runs/lrt", "bp"):
        rows = [row for row in read_rows(trained / run / "robustness.csv") if row.kind == "certificate"]
        assert [(row.level_name, row.level) for row in rows] == [("radius", 0.0), ("radius", 0.5)]
        assert rows[0].correct >= rows[1].correct
    kept = evaluate("run=[runs,bp]", *options, "threat.certify.sigma=0.5")
    assert "9 of 9 rows were there already" in kept.out + kept.err
