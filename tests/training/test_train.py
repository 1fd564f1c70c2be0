"""glr-train: run folders, resume, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from glr_lightning.cli.train import main
from glr_lightning.config import CONF_DIR, compose, config_hash
from glr_lightning.errors import ConfigurationError, DivergenceError
from glr_lightning.estimators.passes import CleanBatch
from glr_lightning.losses import CrossEntropy
from glr_lightning.randomness import step_generator
from glr_lightning.runs.trained_run import load_checkpoint, load_run
from glr_lightning.threats import Clean
from glr_lightning.training import fit
from glr_lightning.training.fit import train
from tests.checks.cli_runner import run_cli
from tests.checks.harness_cases import evaluate
from tests.checks.interruption import assert_same_training, lasting, train_in_two_parts
from tests.checks.refusals import refused
from tests.checks.tiny_layout import TOP, two_hundred_classes, write_folder

EXPERIMENTS = sorted(
    str(path.relative_to(Path(CONF_DIR) / "experiment").with_suffix(""))
    for path in (Path(CONF_DIR) / "experiment").rglob("*.yaml")
)
LIKELIHOOD_RATIO = ["estimator=likelihood_ratio", "sampling=antithetic", "copies=8"]
LEARNING = [*LIKELIHOOD_RATIO, "callbacks=learned_sigma", "callbacks.learned_sigma.per=neuron"]
COPIES = "callbacks.annealing.copies={_target_:glr_lightning.schedules.Geometric,end:%s}"
MILESTONES = ["scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.MultiStepLR", "~scheduler.step_size"]
FAST = ["progress=false", "copies=8", "epochs=2", "data.validation=0.1"]


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Tiny-ImageNet of a few images for each of 200 classes."""
    return write_folder(tmp_path_factory.mktemp("tiny") / TOP, two_hundred_classes())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_one_step(experiment: str, tmp_path: Path, tiny_root: Path) -> None:
    options = [f"experiment={experiment}", "epochs=1", "batch_size=1500", "progress=false"]
    if "tiny" in experiment:
        options += [f"data.root={tiny_root}", f"data.cache={tmp_path}"]
    config = compose(options)
    result = train(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 1
    assert 0 <= result["test_accuracy"] <= 1


@pytest.mark.parametrize("experiment", ["lrtz", "lrs", "bp", "paper/lrs"])
def test_a_reloaded_run_has_the_accuracy_that_training_reported(experiment: str, tmp_path: Path) -> None:
    options = [option for option in FAST if experiment != "bp" or not option.startswith("copies")]
    result = train(compose([f"experiment={experiment}", *options]), tmp_path / "run")
    run = load_run(tmp_path / "run")
    x, y = run.data.split("test")
    (row,) = evaluate(run.network, x, y, {"clean": Clean()}, seed=0)
    assert row.accuracy == pytest.approx(result["test_accuracy"], abs=1e-7)
    assert row.n == len(y)


def test_a_run_folder_holds_what_the_readme_says(tmp_path: Path) -> None:
    config = compose(["seed=3", *FAST])
    result = train(config, tmp_path / "run")
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert files == {"config.yaml", "result.json", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    assert result["parameters"] == 64 * 50 + 50 + 50 * 10 + 10
    images = len(load_run(tmp_path / "run").data.split("train")[0])
    assert result["forwards"] == 2 * images * (8 + 1)  # epochs x images x (noisy copies + the noise-free pass)
    assert result["config_hash"] == config_hash(config)
    assert "${" not in (tmp_path / "run/config.yaml").read_text()


def test_metrics_are_those_of_the_network_that_they_describe(tmp_path: Path) -> None:
    # a learning rate of 0 and one batch: every number of the epoch belongs to the network that is saved
    options = [
        "experiment=bp",
        "data.validation=0.1",
        "optimizer=sgd",
        "optimizer.lr=0.0",
        "batch_size=1500",
        "epochs=1",
        "progress=false",
    ]
    train(compose(options), tmp_path / "run")
    header, values = (line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines())
    metrics = dict(zip(header, map(float, values), strict=True))
    run = load_run(tmp_path / "run")
    for split in ("train", "val"):
        x, y = run.data.split(split)
        logits = run.network(x)
        assert metrics[f"{split}_loss"] == pytest.approx(CrossEntropy()(logits, y).mean().item(), rel=1e-5)
        assert metrics[f"{split}_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item(), rel=1e-5)


def test_the_same_seed_gives_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(compose([f"seed={seed}", *FAST]), tmp_path / name)
    a, b, c = (lasting(tmp_path / name / "checkpoints/last.ckpt") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["network.linear1.weight"], c["network.linear1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [5, 17, 22])  # in the first epoch, in the second, at an epoch's end; 11 steps each
@pytest.mark.parametrize("options", [["experiment=lrtz"], ["experiment=lrt"], LIKELIHOOD_RATIO], ids=" ".join)
def test_resume_equals_uninterrupted_training_bit_for_bit(options: list[str], stop_at: int, tmp_path: Path) -> None:
    config = compose([*options, "progress=false", "batch_size=128", "epochs=3", "data.validation=0.1"])
    whole = train(config, tmp_path / "whole")
    resumed = train_in_two_parts(config, tmp_path / "parts", stop_at)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    assert {**whole, "train_seconds": 0} == {**resumed, "train_seconds": 0}


def test_noise_of_a_step_depends_on_seed_step_and_rank_alone() -> None:
    device = torch.device("cpu")
    draws = {
        key: torch.randn(4, generator=step_generator(*key, device))
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 10, 0), (0, 1, 10)]
    }
    assert torch.equal(draws[0, 1, 0], torch.randn(4, generator=step_generator(0, 1, 0, device)))
    assert len({tuple(d.tolist()) for d in draws.values()}) == len(draws)


def test_gradient_clipping_bounds_the_norm_of_the_whole_gradient(tmp_path: Path) -> None:
    # one step of plain SGD with lr 1: the weights move by the clipped gradient
    options = ["experiment=bp", "epochs=1", "batch_size=1500", "progress=false", "optimizer=sgd", "optimizer.lr=1.0"]
    moved = {}
    for name, clip in (("free", "null"), ("clipped", "0.01")):
        train(compose([*options, f"clip_norm={clip}"]), tmp_path / name)
        moved[name] = load_checkpoint(tmp_path / name / "checkpoints/last.ckpt")["state_dict"]
    change = torch.cat([(moved["free"][k] - moved["clipped"][k]).flatten() for k in moved["free"] if "network" in k])
    full = train_norm(tmp_path / "free")
    assert float(change.norm()) == pytest.approx(full - 0.01, rel=1e-4)


def train_norm(folder: Path) -> float:
    lines = (folder / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("grad_norm")
    return next(float(cells[column]) for cells in (line.split(",") for line in lines[1:]) if cells[column])


@pytest.mark.parametrize("loss", ["zero_one", "cross_entropy"])
def test_a_nan_stops_the_run_and_keeps_the_last_checkpoint(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose([f"loss={loss}", *LIKELIHOOD_RATIO, *FAST, "batch_size=128", "epochs=3"])
    steps = 0
    run = CleanBatch.run

    def poisoned(self: CleanBatch, z: Any) -> Any:
        nonlocal steps
        steps += 1
        noisy, losses = run(self, z)
        return noisy, (losses * float("nan") if steps == 14 else losses)

    monkeypatch.setattr(CleanBatch, "run", poisoned)
    with pytest.raises(DivergenceError) as caught:
        train(config, tmp_path / "run")
    message = str(caught.value)
    assert "step 13 (epoch 2)" in message
    assert all(words in message for words in ("linear1.weight", "|weights|", "optimizer.lr", "clip_norm"))
    last = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert last["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_divergence_by_a_huge_learning_rate_is_noticed(tmp_path: Path) -> None:
    options = ["experiment=lrs", "optimizer=sgd", "optimizer.lr=1e38", "progress=false", "copies=8"]
    with pytest.raises(DivergenceError, match=r"Lower optimizer\.lr"):
        train(compose(options), tmp_path / "run")


REFUSED = {
    "unknown option": (["copys=3"], "there is no option 'copys'. Did you mean copies?"),
    "unknown option of a group": (
        ["estimator.unit=3"],
        "there is no option 'unit' in estimator. Did you mean",
    ),
    "unknown group": (["experment=lrt"], "there is no option 'experment'. Did you mean experiment?"),
    "a group of another command": (["threat=fgsm"], "this command does not take threat=OPTION"),
    "an option added for nobody": (["+foo=3"], "there is no option 'foo'"),
    "unknown choice": (["loss=hinge"], "there is no loss=hinge. Choose from cross_entropy, zero_one."),
    "unknown choice in a folder": (["experiment=wide/lrtt"], "Did you mean wide/lrt or wide/lrtz?"),
    "no number": (["epochs=abc"], "epochs must be a whole number"),
    "half a list": (["sigma=[1"], "no viable alternative"),
    "wrong type": (["copies=many"], "got 'many'"),
    "wrong type where there are none": (["experiment=bp", "copies=many"], "estimator=backprop has no copies"),
    "several copies": (["copies=[4,8]"], "got [4, 8]"),
    "sigma zero": (["sigma=0"], "sigma must be a number from 1e-12"),
    "sigma negative in a list": (["sigma=[1.0,-1.0]"], "sigma must be a number from 1e-12"),
    "sigma of wrong length": (["sigma=[1.0,1.0,1.0]"], "3 values but the network has 2 layers"),
    "sigma a word": (["sigma=big"], "sigma must be a number"),
    "one copy, leave one out": (
        ["estimator=likelihood_ratio", "copies=1", "sampling=independent"],
        "raise copies, for example copies=32",
    ),
    "one pair, leave one out": ([*LIKELIHOOD_RATIO, "copies=2"], "at least 2 independent groups"),
    "odd copies, antithetic": (["sampling=antithetic", "copies=7"], "multiple of 2"),
    "no copies": (["copies=0"], "copies must be a whole number from 1"),
    "copies without end": (["copies=1000000000000"], "from 1 to 1,000,000"),
    "a schedule of copies without end": (
        ["callbacks=annealing", COPIES % "1e300"],
        "from 1 to 1,000,000",
    ),
    "half a copy at the end": (["callbacks=annealing", COPIES % 2.5], "whole number"),
    "sigma out of float32": (["callbacks=annealing", "callbacks.annealing.sigma.end=1e300"], "1e-12 to 1e+12"),
    "an endless lift": (["callbacks.class_collapse.revive=inf"], "revive must be a number above 0"),
    "an endless step of sigma": (
        [*LEARNING, "callbacks.learned_sigma.lr=inf"],
        "learned_sigma.lr must be a number above 0",
    ),
    "a step of a sigma that is not learned": (
        ["+callbacks.learned_sigma.lr=0.1"],
        "choose it as callbacks=[learned_sigma]",
    ),
    "no epochs": (["epochs=0"], "epochs must be a whole number from 1"),
    "batch size 0": (["batch_size=0"], "batch_size"),
    "negative seed": (["seed=-1"], "seed"),
    "clip 0": (["clip_norm=0"], "clip_norm must be a number above 0"),
    "chunk below a group": ([*LIKELIHOOD_RATIO, "chunk=1"], "one group"),
    "inadmissible density": (["noise=uniform"], "positive and absolutely continuous on the whole line"),
    "nu 0": (["noise=student_t", "noise.nu=0"], "nu must be a number from"),
    "backprop through a threshold": (["experiment=bp", "activation=threshold"], "its derivative is 0"),
    "backprop of 0-1 loss": (["experiment=bp", "loss=zero_one"], "needs a loss with a derivative"),
    "conditional score without cells": (
        [*LIKELIHOOD_RATIO, "activation=sigmoid", "estimator.score=conditional"],
        "piecewise-constant",
    ),
    "unknown score": ([*LIKELIHOOD_RATIO, "estimator.score=best"], "score must be one of"),
    "backprop of thresholds and 0-1 loss": (
        ["experiment=bp", "activation=threshold", "loss=zero_one"],
        "use loss=cross_entropy with activation=sigmoid, tanh or relu, or estimator=local_expectation",
    ),
    "straight through no threshold": (["experiment=straight_through", "activation=sigmoid"], "use estimator=backprop"),
    "forward gradient of 0-1 loss": (
        ["~experiment", "estimator=forward_gradient", "activation=sigmoid"],
        "use loss=cross_entropy, or estimator=local_expectation",
    ),
    "hybrid with nothing to differentiate": (
        ["estimator=hybrid", "copies=4"],
        "use estimator=local_expectation or likelihood_ratio, or loss=cross_entropy",
    ),
    "hidden width 0": (["network.hidden=[0]"], "network.hidden"),
    "validation of everything": (["data.validation=1.0"], "data.validation"),
    "learned scales without their gradients": (
        ["experiment=lrt", "callbacks=learned_sigma"],
        "use estimator=likelihood_ratio with copies=32",
    ),
    "learned scales per image": (
        [*LEARNING, "callbacks.learned_sigma.per=image"],
        "must be one of 'layer', 'neuron'",
    ),
    "learned and scheduled": ([*LEARNING[:-2], "callbacks=[annealing,learned_sigma]"], "would both move sigma"),
    "no step of a sigma": ([*LEARNING, "callbacks.learned_sigma.lr=0"], "learned_sigma.lr must be a number above 0"),
    "a schedule of what is not there": (
        ["experiment=bp", "callbacks=annealing", "callbacks.annealing.sigma=null", COPIES % 8],
        "copies, which Backprop does not have",
    ),
    "a schedule to 0": (["callbacks=annealing", "callbacks.annealing.sigma.end=0"], "annealing.sigma.end must be"),
    "a schedule to an odd number of copies": (
        ["sampling=antithetic", "copies=4", "callbacks=annealing", COPIES % 9],
        "multiple of 2",
    ),
    "missing data": (["data=mnist", "data.root=nowhere", "data.download=false"], "nowhere"),
    "half precision with a scaler": (["precision=16-mixed"], "trainer.precision must be one of"),
    "a device that is not there": (["device=tpu"], "trainer.accelerator=tpu"),
    "a device that there never was": (["device=tpuu"], "Lightning cannot start with trainer.accelerator=tpuu"),
    "all devices": (["devices=-1"], "devices must be how many devices to use, at least 1"),
    "no device": (["devices=0"], "devices must be how many devices to use, at least 1"),
    "a device twice": (["devices=[1,1]"], "devices must be how many devices to use, at least 1"),
    "a strategy that is none": (["strategy=dpp"], "trainer.strategy=dpp"),
    "an option of Lightning's that is fixed": (["+trainer.gradient_clip_val=1"], "use clip_norm=NUMBER"),
    "a typo of an option of Lightning's": (["+trainer.limit_train_batch=5"], "Did you mean limit_train_batches"),
    "no batch": (["+trainer.limit_train_batches=0"], "must be a whole number of at least 1, or a number above 0 to 1"),
    "a share that is no batch": (["+trainer.limit_train_batches=0.04"], "0.04 of 23 batches is less than one; give"),
    "an option of Lightning's without a plus": (
        ["trainer.benchmark=true"],
        "with a plus: +trainer.benchmark=",
    ),
    "resume of nothing": (["resume=nowhere"], "nowhere"),
    "a learning rate in words": (["optimizer.lr=fast"], "lr"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_words_and_leaves_nothing_behind(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rest = [] if options[0].startswith("resume") else ["run_dir=run", "progress=false"]
    outcome = run_cli(main, [*options, *rest], monkeypatch, capsys)
    assert outcome.code == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_taken_run_dir_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train(compose(FAST), tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    outcome = run_cli(main, ["run_dir=run", *FAST], monkeypatch, capsys)
    assert outcome.code == 2
    assert "resume=run" in outcome.err
    finished = run_cli(main, ["resume=run"], monkeypatch, capsys)
    assert finished.code == 2
    assert "nothing to resume" in finished.err
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("mine")
    assert run_cli(main, ["run_dir=notes", *FAST], monkeypatch, capsys).code == 2
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["diary.txt"]


def test_a_damaged_or_crafted_checkpoint_is_refused_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    monkeypatch.chdir(tmp_path)
    train(compose(FAST), tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    last = tmp_path / "run/checkpoints/last.ckpt"
    good = last.read_bytes()
    for damage in (good[: len(good) // 2], b"", b"no checkpoint at all"):
        last.write_bytes(damage)
        outcome = run_cli(main, ["resume=run"], monkeypatch, capsys)
        assert outcome.code == 2
        assert "is refused" in outcome.err
    torch.save({"state_dict": {}, "epoch": Payload()}, last)
    outcome = run_cli(main, ["resume=run"], monkeypatch, capsys)
    assert outcome.code == 2
    assert "Nothing in it was run" in outcome.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_sweep_trains_every_job_and_reports_the_ones_that_cannot_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--multirun", "run_dir=sweep", "experiment=bp_noise", "activation=sigmoid,threshold", "sigma=0.5,1"]
    outcome = run_cli(main, [*options, *FAST], monkeypatch, capsys)
    assert outcome.code == 2
    assert "2 job(s) of the sweep failed" in outcome.err
    names = {p.parent.name for p in tmp_path.rglob("result.json")}
    assert len(names) == 2
    assert {name for name in names if "activation-sigmoid" in name and "_copies-8_sigma-" in name} == names
    assert {"_sigma-0.5_" in name for name in names} == {True, False}
    assert "sweep" in outcome.err


def test_tensorboard_is_an_option(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(compose(["logger=tensorboard", *FAST]), tmp_path / "run")
    assert (tmp_path / "run/metrics.csv").exists()
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-mixed", torch.float32)],
)
def test_every_precision_trains_and_keeps_its_weights_type(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    train(compose([f"precision={precision}", *FAST]), tmp_path / "run")
    weights = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    assert {w.dtype for name, w in weights.items() if name.startswith("network.")} == {dtype}


def test_a_run_that_was_moved_resumes_and_remembers_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose([*FAST, "epochs=4"])
    train(config, tmp_path / "first")
    (tmp_path / "first/result.json").unlink()
    last = tmp_path / "first/checkpoints/last.ckpt"
    checkpoint = load_checkpoint(last)
    for name, state in checkpoint["callbacks"].items():
        if "val_accuracy" in name:  # no later epoch can beat this
            state["best_model_score"] = torch.tensor(2.0)
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(2.0))
    best = load_checkpoint(tmp_path / "first/checkpoints/best.ckpt")["epoch"]
    torch.save(checkpoint, last)
    (tmp_path / "first").rename(tmp_path / "moved")
    longer = (tmp_path / "moved/config.yaml").read_text().replace("epochs: 4", "epochs: 6")
    (tmp_path / "moved/config.yaml").write_text(longer)
    monkeypatch.chdir(tmp_path)
    outcome = run_cli(main, ["resume=moved"], monkeypatch, capsys)
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(tmp_path / "moved/checkpoints/last.ckpt")["epoch"] == 5
    assert load_checkpoint(tmp_path / "moved/checkpoints/best.ckpt")["epoch"] == best
    assert not (tmp_path / "first").exists()


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_would(tmp_path: Path) -> None:
    """Backprop has no noise, and each rank has half of every batch: the mean of their gradients is the whole one's."""
    options = ["experiment=bp", "optimizer=sgd", "optimizer.lr=1.0", "progress=false", "epochs=1", "data.validation=0"]
    train(compose(options), tmp_path / "one")
    script = (
        "import json, sys; from pathlib import Path; from glr_lightning.training.fit import train\n"
        "train(json.loads(sys.argv[1]), Path(sys.argv[2]))"
    )
    config = compose([*options, "device=cpu", "devices=2", "strategy=ddp_fork"])
    command = [sys.executable, "-c", script, json.dumps(config), str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    one, two = (load_checkpoint(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_ranks_draw_different_noise_and_end_with_the_same_weights(tmp_path: Path) -> None:
    config = compose(["device=cpu", "devices=2", "strategy=ddp_fork", *LEARNING, *FAST])
    script = f"""
import json, sys, torch
from pathlib import Path
import pytorch_lightning as pl
from glr_lightning.training import module as training
from glr_lightning.randomness import step_generator
from glr_lightning.training import fit
from glr_lightning.training.fit import train

class Witness(training.GLRModule):
    def on_train_end(self):
        weights = torch.cat([p.detach().flatten() for p in self.parameters()])  # log sigma too
        noise = torch.randn(3, generator=step_generator(0, 0, self.global_rank, self.device))
        Path(sys.argv[1] + f"/rank{{self.global_rank}}.json").write_text(json.dumps([weights.tolist(), noise.tolist()]))

import glr_lightning.training.fit as t
t.GLRModule = Witness
result = train(json.loads({json.dumps(json.dumps(config))}), Path(sys.argv[1]) / "run")
print(json.dumps(result))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (weights0, noise0), (weights1, noise1) = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert weights0 == weights1
    assert noise0 != noise1
    assert json.loads(done.stdout.splitlines()[-1])["forwards"] > 0


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_checkpoint_and_exits_with_130(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "glr_lightning.cli.train",
        "run_dir=run",
        "epochs=5000",
        "copies=8",
        "progress=false",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "run/metrics.csv"
        deadline = time.monotonic() + 60
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "glr-train resume=run" in err.replace("\n", "")
    assert "Traceback" not in err
    load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert not (tmp_path / "run/result.json").exists()


def test_a_configuration_that_names_foreign_code_is_refused_on_reload(tmp_path: Path) -> None:
    train(compose(FAST), tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    text = path.read_text()
    for target in (
        "os.mkdir",
        "glr_lightning.runs.trained_run.torch.hub.load",
        "glr_lightning.cli.train.main.__globals__",
    ):
        path.write_text(text.replace("glr_lightning.networks.mlp", target))
        with pytest.raises(ConfigurationError, match="_target_"):
            load_run(tmp_path / "run")
    path.write_text(text)
    assert load_run(tmp_path / "run").network is not None


def test_the_estimator_of_a_configuration_is_what_it_says() -> None:
    from glr_lightning.config import build

    config = compose(["experiment=paper/lrs", "data=mnist"])
    estimator = build(config["estimator"])
    assert (estimator.copies, estimator.sigma, estimator.score) == (10, 1.0, "auto")
    names = [type(part).__name__ for part in (estimator.noise, estimator.sampling, estimator.baseline)]
    assert names == ["Laplace", "Independent", "NoBaseline"]
    assert isinstance(build(config["loss"]), CrossEntropy)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+network.classes=3"], "network.classes cannot be set: it follows from the rest"),
        (["+logger.csv.save_dir=elsewhere"], "logger.csv.save_dir cannot be set: it follows from the rest"),
        (["loss._target_=torch.nn.ReLU"], "loss must be a Loss, which ReLU() is not"),
        (["loss._target_=glr_lightning.losses"], "'glr_lightning.losses' is no class or function"),
        (["+loss._partial_=true"], "loss must be a Loss, which functools.partial"),
        (["+loss._partial_=3"], "loss: _partial_ must be true or false, got 3"),
        (["data._target_=builtins.dict"], "data must be an ImageDataModule, which"),
        (["+logger.x=3"], "logger.x must be a Logger, which 3 is not"),
        (
            ["logger.csv.flush_logs_every_n_steps=0"],
            "logger.csv.flush_logs_every_n_steps must be a whole number from 1",
        ),
        (["activation._target_=torch.nn.MaxPool2d", "+activation.kernel_size=2"], "does not take images of shape"),
        (["preprocess._target_=torch.nn.AvgPool2d", "+preprocess.kernel_size=2"], "does not take images of shape"),
        (["+optimizer.differentiable=true"], "torch refuses the options of optimizer or scheduler"),
        (["+scheduler.last_epoch=3"], "torch refuses the options of optimizer or scheduler"),
        (
            [*MILESTONES, "+scheduler.milestones=abc"],
            "scheduler.milestones must be a list of which each is a whole number, got 'abc'",
        ),
        (["callbacks=annealing", "callbacks.annealing.sigma=null"], "changes neither sigma nor copies"),
        (["threads=99999"], "threads must be a whole number from 1 to 1,024"),
        (["+callbacks.x={_target_:mine.nope}"], "_target_ 'mine.nope' does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    overrides: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    outcome = run_cli(main, [*FAST, *overrides, f"run_dir={run_dir}"], monkeypatch, capsys)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err
    assert not run_dir.exists()


def test_the_network_is_tried_out_without_a_change(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    fit._require_logits(network, torch.rand(8, 1, 2, 2), 2)
    assert network[1].num_batches_tracked == 0
    assert network.training
    with refused(None, "[8, 3] logits", "got [8, 2]"):
        fit._require_logits(network, torch.rand(8, 1, 2, 2), 3)


def test_resume_takes_another_place_and_refuses_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train(compose([*FAST, "trainer.accelerator=cpu"]), tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    for given, words in (
        ("devices=2", "has devices=1, and another value would train another network; leave out devices=2"),
        ("precision=64-true", "has precision='32-true', and another"),
        ("+trainer.limit_train_batches=3", "has trainer.limit_train_batches=null, and another"),
        ("trainer=gpu", "leave out trainer=gpu"),
        ("sigma=1", "leave out sigma=1"),
        ("seed=7", "leave out seed=7"),
    ):
        outcome = run_cli(main, ["resume=run", given], monkeypatch, capsys)
        assert outcome.code == 2
        assert words in outcome.err
    same = ["devices=1", "strategy=auto", "device=cpu", "trainer.deterministic=true", "+trainer.benchmark=false"]
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(fit, "train", lambda config, *args, **options: taken.append(config))
    assert run_cli(main, ["resume=run", *same, "threads=2", "progress=false"], monkeypatch, capsys).code == 0
    (config,) = taken
    expected = {"devices": 1, "strategy": "auto", "accelerator": "cpu", "deterministic": True, "benchmark": False}
    assert {**config["trainer"], **expected} == config["trainer"]
    assert (config["threads"], config["progress"]) == (2, False)
