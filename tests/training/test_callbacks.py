"""Callbacks of a training: chosen by name, joined by foreign ones, resumed bit for bit, usable in any Trainer."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from glr_lightning import randomness
from glr_lightning.activations import HardThreshold
from glr_lightning.cli.train import main
from glr_lightning.config import compose
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.losses import ZeroOne
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.runs.trained_run import load_checkpoint
from glr_lightning.training import module as training_module
from glr_lightning.training.callbacks import ClassCollapse, DivergenceCheck, EpochMetrics, LayerRates, LearnedSigma
from glr_lightning.training.fit import train
from glr_lightning.training.module import GLRModule
from tests.checks.cli_runner import run_cli
from tests.checks.estimator_cases import X, Y, small_network
from tests.checks.groups import options
from tests.checks.interruption import assert_same_training, train_in_two_parts
from tests.checks.refusals import refused

FAST = ["estimator=likelihood_ratio", "copies=8", "progress=false", "data.validation=0.1", "epochs=3"]
NEEDED = {"layer_rates": ["callbacks.layer_rates.factors=[0.1,1]"]}
FOREIGN = """
import pytorch_lightning as pl

class Count(pl.Callback):
    def __init__(self, by):
        self.by, self.steps = by, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert outputs["loss"].dim() == 0
        self.steps += self.by

    def state_dict(self):
        return {"steps": self.steps}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a user with a module of their own, where their command runs."""
    (tmp_path / "mine.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("name", options("callbacks"))
def test_a_run_with_a_callback_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = compose([*FAST, f"callbacks={name}", *NEEDED.get(name, [])])
    whole = train(config, tmp_path / "whole")
    parts = train_in_two_parts(config, tmp_path / "parts", stop_at=17)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    assert whole | {"train_seconds": 0} == parts | {"train_seconds": 0}


def test_all_callbacks_that_can_go_together_do(tmp_path: Path) -> None:
    names = [name for name in options("callbacks") if name != "learned_sigma"]
    extra = [option for name in names for option in NEEDED.get(name, [])]
    train(compose([*FAST, f"callbacks=[{','.join(names)}]", *extra]), tmp_path / "run")
    columns = read_metrics(tmp_path / "run/metrics.csv")[2].keys()
    assert {"sigma", "lifts", "dead_classes", "snr_linear1", "baseline_explained", "lr", "forwards"} <= columns


def test_a_callback_that_is_not_chosen_is_not_there(tmp_path: Path) -> None:
    train(compose([*FAST, "callbacks=[]"]), tmp_path / "run")
    columns = read_metrics(tmp_path / "run/metrics.csv")[0].keys()
    assert "dead_classes" in columns
    assert not {"sigma", "lifts", "snr_linear1", "baseline_explained"} & columns
    assert "dead_classes" in load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")


def test_lightnings_own_callbacks_are_added_on_the_command_line(tmp_path: Path) -> None:
    monitor = "+callbacks.rates={_target_:pytorch_lightning.callbacks.LearningRateMonitor,logging_interval:epoch}"
    train(compose([*FAST, monitor]), tmp_path / "run")
    assert "lr-Adam" in (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
    plain = train(compose(FAST), tmp_path / "plain")
    assert read_metrics(tmp_path / "run/metrics.csv")[2]["train_loss"] == pytest.approx(
        read_metrics(tmp_path / "plain/metrics.csv")[2]["train_loss"], abs=0
    )
    assert plain["epochs"] == 3


def test_a_users_callback_is_chosen_by_its_file_or_named_on_the_command_line(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "conf/callbacks").mkdir(parents=True)
    (package / "conf/callbacks/count.yaml").write_text("count: {_target_: mine.Count, by: 2}\n")
    named = [f"--config-dir={package / 'conf'}", "callbacks=[count,class_collapse]", "callbacks.count.by=3"]
    for arguments, steps in (  # 3 epochs of 21 steps
        (named, 189),
        (["+callbacks.mine={_target_:mine.Count,by:2}"], 126),
    ):
        outcome = run_cli(main, [*arguments, *FAST, f"run_dir=run{steps}"], monkeypatch, capsys)
        assert outcome.code == 0, outcome.err
        state = load_checkpoint(package / f"run{steps}/checkpoints/last.ckpt")["callbacks"]["Count"]
        assert state == {"steps": steps}


def test_a_run_with_a_users_callback_resumes_if_its_package_is_trusted(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose([*FAST, "+callbacks.mine={_target_:mine.Count,by:1}"])
    train(config, package / "run")
    (package / "run/result.json").unlink()
    with refused(None, "add its package with trusted=[PACKAGE]"):
        train(config, package / "run", resume=True)
    outcome = run_cli(main, ["resume=run", "trusted=[mine]", "progress=false"], monkeypatch, capsys)
    assert outcome.code == 0, outcome.err
    assert (package / "run/result.json").exists()


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("{_target_:torch.nn.ReLU}", "callbacks.mine is no Lightning callback"),
        ("{_target_:mine.Counter}", "does not exist"),
        ("{by:2}", "callbacks=[mine]"),
    ],
)
def test_what_is_no_callback_is_refused(node: str, words: str, package: Path) -> None:
    with refused("callbacks.mine", words):
        train(compose([*FAST, f"+callbacks.mine={node}"]), package / "run")
    assert not (package / "run").exists()


def test_an_option_that_a_users_callback_does_not_have_is_refused(package: Path) -> None:
    with refused("callbacks.mine.often", "Count has by"):
        train(compose([*FAST, "+callbacks.mine={_target_:mine.Count,by:2,often:3}"]), package / "run")
    assert not (package / "run").exists()


def test_a_callback_of_another_package_that_fails_is_named(tmp_path: Path) -> None:
    stopping = "+callbacks.stop={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:nope}"
    with refused("callbacks.stop", "RuntimeError: ", "nope", "or leave it out: ~callbacks.stop"):
        train(compose([*FAST, stopping]), tmp_path / "run")


# ---- in a Trainer of one's own --------------------------------------------------------------------------------------


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X.float(), Y), batch_size=2)


def test_a_module_trains_in_any_trainer() -> None:
    network = small_network(HardThreshold()).float()
    before = network[0].weight.detach().clone()
    module = GLRModule(network, LikelihoodRatio(copies=4), ZeroOne(), torch.optim.Adam, seed=1)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, batches(), batches())
    assert trainer.global_step == 4
    assert not torch.equal(network[0].weight, before)


def test_all_steps_share_a_generator_that_is_seeded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, int]] = []

    def recorded(*arguments: Any) -> torch.Generator:
        generator = randomness.seeded(*arguments)
        used.append((id(generator), generator.initial_seed()))
        return generator

    monkeypatch.setattr(training_module, "seeded", recorded)
    module = GLRModule(small_network(HardThreshold()).float(), LikelihoodRatio(copies=4), ZeroOne(), torch.optim.Adam)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, batches(), batches())
    generators, seeds = zip(*used, strict=True)
    assert len(set(generators)) == 1
    assert seeds == tuple(
        randomness.step_generator(0, step, 0, torch.device("cpu")).initial_seed() for step in range(len(used))
    )


def test_the_callbacks_work_in_any_trainer_and_leave_the_module_as_it_was(tmp_path: Path) -> None:
    estimator = LikelihoodRatio(copies=4)
    module = GLRModule(small_network(HardThreshold()).float(), estimator, ZeroOne(), torch.optim.Adam)
    names = list(module.trained)
    chosen = [LearnedSigma(lr=0.1), LayerRates([0, 1]), ClassCollapse(0.5), DivergenceCheck(), EpochMetrics()]
    first = module.network[0].weight.detach().clone()  # type: ignore[index,operator]
    for _ in range(2):  # to fit again is to begin again, with the scales that were learned
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[*chosen]
        )
        trainer.fit(module, batches(), batches())
        assert {"train_loss", "val_loss", "val_accuracy"} <= trainer.callback_metrics.keys()
        assert module.estimator == estimator
        assert list(module.trained) == names
        assert module.optimizer_options == {}
    assert torch.equal(module.network[0].weight, first)  # type: ignore[index]
    assert all(float(scale) != 1.0 for scale in chosen[0].scales)  # type: ignore[attr-defined]
    assert {"log_sigma.0", "log_sigma.1"} < module.state_dict().keys()


def test_callbacks_refuse_another_module() -> None:
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[LayerRates([1.0])])
    with refused(None, "a GLRModule, got BoringModel"):
        LayerRates([1.0]).setup(trainer, type("BoringModel", (pl.LightningModule,), {})(), "fit")


def test_a_checkpoint_alone_is_refused_with_what_to_call() -> None:
    with refused(None, "glr_lightning.load_run('runs/a')"):
        GLRModule.load_from_checkpoint("runs/a/checkpoints/best.ckpt")
    with refused(None, "glr_lightning.load_run('FOLDER')"):
        GLRModule.load_from_checkpoint(Path("best.ckpt"))


def test_training_takes_overrides_and_a_folder_as_text(tmp_path: Path) -> None:
    result = train([*FAST, "epochs=1"], run_dir=str(tmp_path / "run"))
    assert (tmp_path / "run/result.json").exists()
    assert result["epochs"] == 1
    with refused("config", "for example config=['experiment=lrtz']"):
        train("experiment=lrtz")
