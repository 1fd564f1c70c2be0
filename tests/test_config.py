"""Configurations: every option builds, hashes identify what is trained, crafted ones are refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from glr_lightning.config import CONF_DIR, build, compose, config_hash, load_yaml
from glr_lightning.errors import ConfigurationError
from glr_lightning.runs.environment import cpu_threads
from tests.checks.refusals import refused


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONF_DIR) / group).glob("*.yaml"))


@pytest.mark.parametrize("scheduler", options("scheduler"))
@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_optimizer_and_scheduler_takes_its_options_and_steps(optimizer: str, scheduler: str) -> None:
    # a _partial_ target hides a misspelt option until it is called
    config = compose([f"optimizer={optimizer}", f"scheduler={scheduler}", "epochs=4"])
    weight = nn.Parameter(torch.ones(3))
    made = build(config["optimizer"])([weight])
    schedule = build(config["scheduler"])(made)
    weight.grad = torch.ones(3)
    made.step()
    schedule.step()
    assert (weight < 1).all()


def test_schedules_are_the_published_ones() -> None:
    config = compose(["experiment=paper/lrtz"])
    made = build(config["optimizer"])([nn.Parameter(torch.ones(1))])
    schedule = build(config["scheduler"])(made)
    rates = []
    for _ in range(21):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        schedule.step()
    assert rates == pytest.approx([0.01] * 10 + [0.008] * 10 + [0.0064])


def test_an_experiment_beats_the_defaults_and_the_command_line_both() -> None:
    assert compose(["experiment=paper/lrtz"])["estimator"]["copies"] == 100
    assert compose(["experiment=paper/lrtz", "copies=4"])["estimator"]["copies"] == 4
    assert compose(["experiment=lrs", "activation=tanh"])["activation"]["_target_"] == "torch.nn.Tanh"
    assert compose(["~experiment"])["network"]["centre"] == 0.0


def test_a_data_set_brings_its_epochs_and_an_experiment_may_set_others() -> None:
    assert compose(["data=mnist"])["epochs"] == 20
    assert compose([])["epochs"] == 60
    assert compose(["data=mnist", "experiment=paper/lrt"])["epochs"] == 10


def test_the_hash_identifies_what_is_trained_and_not_where() -> None:
    base = config_hash(compose([]))
    for same in ("run_dir=elsewhere", "progress=false", "logger=tensorboard", "threads=2", "device=cpu"):
        assert config_hash(compose([same])) == base, same
    assert config_hash(compose(["data=mnist"])) == config_hash(compose(["data=mnist", "data.root=/there"]))
    for other in ("seed=1", "sigma=0.7", "copies=32", "optimizer.lr=0.1", "loss=cross_entropy", "data.crop=1"):
        assert config_hash(compose([other])) != base, other


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "glr_lightning.runs.trained_run.torch.load",  # reached through a trusted module, not defined in one
        "glr_lightning.config.hydra.utils.instantiate",
        "torch.load",
        "torch.nn.modules.module.torch.load",
        "glr_lightning.nothing.Here",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_target_that_this_package_and_torch_do_not_define_is_refused(target: str, nested: bool) -> None:
    node = {"_target_": target}
    if nested:
        node = {"_target_": "glr_lightning.networks.mlp", "hidden": [3], "activation": [{"deep": node}]}  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match="_target_"):
        build(node)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "hydra.utils.get_method", "path": "os.system"},
        {
            "_target_": "glr_lightning.evaluation.row.write_rows",
            "path": "x",
            "rows": [],
        },
        {"_target_": "glr_lightning.config.build", "node": {}, "trusted": None},
        {"_target_": "glr_lightning.data.download.fetch"},
        {"_target_": "glr_lightning.data.Digits", "root": "${oc.create:{_target_: builtins.open}}", "batch_size": 1},
        {"_target_": "glr_lightning.data.Digits", "batch_size": "${oc.env:HOME}"},
        {"_target_": "glr_lightning.losses.ZeroOne", "${oc.env:HOME}": 1},
        {"_target_": "torch.nn.Linear", "_args_": [3, 4]},
        {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "/", "name": "etc"},
    ],
    ids=lambda node: str(node["_target_"]),
)
def test_a_run_folder_cannot_reach_beyond_the_building_blocks(node: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="is refused"):
        build(node)


@pytest.mark.parametrize("overrides", [[], ["experiment=paper/lrt_lr1"], ["experiment=bp", "data=mnist"]])
def test_what_training_composes_may_be_reloaded(overrides: list[str]) -> None:
    config = compose(overrides)
    for section in ("data", "estimator", "loss", "optimizer", "scheduler"):
        assert build(config[section]) is not None
    assert build(config["network"], image_shape=(1, 8, 8), classes=10) is not None


def test_a_trusted_package_may_be_named() -> None:
    assert build({"_target_": "collections.OrderedDict"}, trusted=["collections."]) == {}


def test_what_a_target_refuses_is_said_in_its_own_words() -> None:
    with refused("nu", "0.5 to 300"):
        build({"_target_": "glr_lightning.noise.StudentT", "nu": -1})
    with refused("colour"):
        build({"_target_": "glr_lightning.noise.Gaussian", "colour": "pink"})


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    for name, text in (
        ("list.yaml", "- 1\n"),
        ("broken.yaml", "a: [1\n"),
        ("object.yaml", "!!python/object:os.system {}\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigurationError, match=name):
            load_yaml(tmp_path / name)
    with pytest.raises(ConfigurationError, match="there is no"):
        load_yaml(tmp_path / "missing.yaml")


def test_threads_are_set_for_the_block_alone() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
