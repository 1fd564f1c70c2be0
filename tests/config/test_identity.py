"""The identity of a run, key by key; spellings that do not matter; options from a user's own folder."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from glr_lightning.cli import diagnose, evaluate, report, train
from glr_lightning.config import CONF_DIR, TrainConfig, build, compose, config_hash
from glr_lightning.config.comments import settings
from glr_lightning.config.identity import PLACE_OF
from glr_lightning.config.root import Node
from glr_lightning.errors import ConfigurationError
from glr_lightning.networks import mlp
from glr_lightning.training.fit import train as fit
from glr_lightning.training.trainer import FIXED
from glr_lightning.validation import parameters
from tests.checks.cli_runner import run_cli
from tests.checks.groups import folder as group_folder
from tests.checks.groups import options

COUNTS = {"seed", "epochs", "clip_norm", "data", "network", "loss", "estimator", "optimizer", "scheduler"}
COUNTS |= {"callbacks", "trainer"}
BASE = compose(["experiment=lrtz"])


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(TrainConfig)])
def test_each_key_counts_if_it_changes_the_network(key: str) -> None:
    changed: Any = {**BASE[key], "more": 7} if isinstance(BASE[key], dict) else 7
    assert (config_hash({**BASE, key: changed}) != config_hash(BASE)) == (key in COUNTS)


@pytest.mark.parametrize(
    ("section", "name", "counts"),
    [
        ("trainer", "devices", True),
        ("trainer", "precision", True),
        ("trainer", "limit_train_batches", True),
        ("trainer", "accelerator", False),
        ("trainer", "strategy", False),
        ("data", "root", False),
        ("data", "download", False),
        ("data", "cache", False),
        ("data", "crop", True),
        ("callbacks", "another", True),
    ],
)
def test_a_place_does_not_count(section: str, name: str, counts: bool) -> None:
    changed = {**BASE, section: {**BASE[section], name: "another"}}
    assert (config_hash(changed) != config_hash(BASE)) == counts


@pytest.mark.parametrize("validation", [0, 0.1])
def test_a_split_counts_where_images_are_held_out(validation: float) -> None:
    one, two = (compose([f"data.validation={validation}", f"data.split_seed={seed}"]) for seed in (0, 1))
    assert (config_hash(one) != config_hash(two)) == bool(validation)


def test_a_callback_that_only_watches_is_known_by_its_class() -> None:
    quality = compose(["callbacks=[gradient_quality]"])["callbacks"]["gradient_quality"]
    for name in ("gradient_quality", "mine"):
        for node, counts in ((quality, False), ({"_target_": "mine.Pruning"}, True)):
            changed = {**BASE, "callbacks": {**BASE["callbacks"], name: node}}
            assert (config_hash(changed) != config_hash(BASE)) == counts


def test_one_batch_and_all_batches_are_two_trainings() -> None:
    one, whole = (config_hash(compose([f"+trainer.limit_train_batches={value}"])) for value in ("1", "1.0"))
    assert one != whole == config_hash(compose([]))
    averaged = "pytorch_lightning.callbacks.StochasticWeightAveraging"
    after_one, never = (
        config_hash({**BASE, "callbacks": {"average": {"_target_": averaged, "swa_epoch_start": value}}})
        for value in (1, 1.0)
    )
    assert after_one != never


def test_spelling_does_not_count() -> None:
    for one, other in (
        (["sigma=1"], ["estimator.sigma=1.0"]),
        (["sigma=[1,2]"], ["sigma=[1.0,2.0]"]),
        (["experiment=lrtz"], ["method=lrtz", "setting=mlp"]),
        (["devices=2"], ["devices=[0,3]"]),
    ):
        assert config_hash(compose(one)) == config_hash(compose(other)) != ""
    as_tuple = {**BASE, "network": {**BASE["network"], "hidden": (50,)}}
    assert config_hash(as_tuple) == config_hash(BASE)


RATIO = ["~experiment", "estimator=likelihood_ratio", "injection=layerwise"]
EIGHT = ["~experiment", "estimator=likelihood_ratio", "copies=8"]
FORWARD = ["~experiment", "estimator=forward_gradient", "copies=8"]
ANNEALED = ["callbacks=[annealing]", "+callbacks.annealing.copies._target_=glr_lightning.schedules.Geometric"]
ANNEALED += ["+callbacks.annealing.copies.end=2"]
NO_LAYER = ["~experiment", "estimator=likelihood_ratio", "network.hidden=[]"]
NO_CALLBACKS = ["callbacks=[]"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["sigma=1"], ["sigma=[1,1.0]"]),
        ([*RATIO, "copies=8"], [*RATIO, "copies=[8,8]"]),
        ([*EIGHT, "chunk=4"], [*EIGHT, "chunk=5"]),
        ([*EIGHT, "chunk=4"], [*EIGHT, "chunk=7"]),
        ([*EIGHT, "chunk=4", "callbacks=[learned_sigma]"], [*EIGHT, "chunk=6", "callbacks=[learned_sigma]"]),
        ([*EIGHT, "chunk=4", "sampling=independent"], [*EIGHT, "chunk=5", "sampling=independent"]),
        ([*RATIO, "copies=8", "chunk=4"], [*RATIO, "copies=[8,8]", "chunk=6"]),
        ([*FORWARD, "chunk=4"], [*FORWARD, "chunk=7"]),
        (["network.bias=false"], ["network.bias=[false,false]"]),
        (["network.spread=2"], ["network.spread=[2.0]"]),
        (NO_LAYER, [*NO_LAYER, "activation=tanh"]),
        (NO_LAYER, [*NO_LAYER, "network.centre=0.5"]),
        (NO_LAYER, [*NO_LAYER, "network.spread=[]"]),
        ([], ["~sampling"]),
        ([], ["+optimizer.eps=1e-8", "+optimizer.betas=[0.9,0.999]"]),
        ([], ["optimizer.fused=false"]),
        ([], ["clip_norm=null", "+trainer.num_nodes=1", "+trainer.sync_batchnorm=true"]),
        (["devices=4"], ["devices=2", "+trainer.num_nodes=2"]),
        ([*NO_CALLBACKS, "clip_norm=1"], [*NO_CALLBACKS, "clip_norm=1.0"]),
        (NO_CALLBACKS, ["callbacks=[class_collapse]", "callbacks.class_collapse.revive=null"]),
        (NO_CALLBACKS, ["callbacks=[layer_rates]", "callbacks.layer_rates.factors=[1,1.0]"]),
        (NO_CALLBACKS, ["callbacks=[annealing]", "callbacks.annealing.sigma.end=1"]),
        (NO_CALLBACKS, ["callbacks=[gradient_quality]"]),
        (["callbacks=[class_collapse,annealing]"], ["callbacks=[annealing,class_collapse]"]),
    ],
    ids=lambda value: " ".join(value) or "-",
)
def test_trainings_that_compute_the_same_have_one_hash(one: list[str], other: list[str]) -> None:
    assert config_hash(compose(one)) == config_hash(compose(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["sigma=1"], ["sigma=[1,2]"]),
        (EIGHT, [*EIGHT, "chunk=8"]),
        ([*EIGHT, "chunk=4"], [*EIGHT, "chunk=8"]),
        ([*EIGHT, *ANNEALED, "chunk=4"], [*EIGHT, *ANNEALED, "chunk=6"]),
        ([*RATIO, "copies=[8,16]", "chunk=4"], [*RATIO, "copies=[8,16]", "chunk=6"]),
        ([*FORWARD, "chunk=3"], [*FORWARD, "chunk=4"]),
        (["network.hidden=[5]"], ["network.hidden=[5,5]"]),
        (["network.bias=true"], ["network.bias=[true,false]"]),
        ([], ["activation=tanh"]),
        ([], ["network.centre=0"]),
        ([], ["+optimizer.eps=1e-7"]),
        ([], ["precision=64-true"]),
        (["devices=2"], ["devices=2", "+trainer.sync_batchnorm=true"]),
        (["devices=2"], ["+trainer.num_nodes=3"]),
        (NO_CALLBACKS, ["callbacks=[class_collapse]"]),
        (NO_CALLBACKS, ["callbacks=[layer_rates]", "callbacks.layer_rates.factors=[1,0.5]"]),
        (NO_CALLBACKS, ["callbacks=[annealing]"]),
        (NO_CALLBACKS, ["callbacks=[learned_sigma]", "estimator=likelihood_ratio"]),
    ],
    ids=lambda value: " ".join(value) or "-",
)
def test_trainings_that_compute_something_else_have_two(one: list[str], other: list[str]) -> None:
    assert config_hash(compose(one)) != config_hash(compose(other))


COUNTED_OF_TRAINER = {"devices", "num_nodes", "precision", "limit_train_batches", "sync_batchnorm", "plugins"}


def test_every_option_of_the_trainer_counts_or_is_a_matter_of_place() -> None:
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", *FIXED}
    assert known == COUNTED_OF_TRAINER | PLACE_OF["trainer"]
    assert not COUNTED_OF_TRAINER & PLACE_OF["trainer"]
    for name in known:
        several = {**BASE, "trainer": {**BASE["trainer"], "devices": 2}}
        changed = {**several, "trainer": {**several["trainer"], name: 0.25}}
        assert (config_hash(changed) != config_hash(several)) == (name in COUNTED_OF_TRAINER), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        ["callbacks=[class_collapse]", "callbacks.class_collapse.revive=null"],
        ["callbacks=[layer_rates]", "callbacks.layer_rates.factors=[1,1]"],
        ["callbacks=[annealing]", "callbacks.annealing.sigma.end=1"],
        ["callbacks=[gradient_quality]"],
        ["callbacks=[]", "sigma=[0.5,0.5]"],
    ],
    ids=" ".join,
)
def test_one_hash_is_one_network_bit_for_bit(chosen: list[str], tmp_path: Path) -> None:
    fast = ["trainer=fast", "epochs=2", "progress=false", "sigma=0.5"]
    configs = {"one": compose([*fast, "callbacks=[]"]), "other": compose([*fast, *chosen])}
    assert configs["one"] != configs["other"]
    assert len({config_hash(config) for config in configs.values()}) == 1
    states = []
    for name, config in configs.items():
        fit(config, tmp_path / name)
        states.append(torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    one, other = states
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


UNREAD: dict[tuple[Callable[..., Any], str], tuple[dict[str, Any], tuple[Any, Any]]] = {
    (mlp, "activation"): ({"hidden": []}, (nn.Tanh(), nn.ReLU())),
    (mlp, "centre"): ({"hidden": []}, (0.0, 0.5)),
    (mlp, "spread"): ({"hidden": []}, (None, [])),
}


def test_an_option_that_declares_when_it_is_read_is_not_read_otherwise() -> None:
    functions = [getattr(__import__("glr_lightning.networks", fromlist=[name]), name) for name in options("network")]
    declared = {(each, name) for each in functions for name, p in parameters(each).items() if p.read_if}
    assert declared == UNREAD.keys()
    for (network, name), (others, values) in UNREAD.items():
        built = []
        for value in values:
            torch.manual_seed(0)
            given = {"activation": nn.Tanh(), **others, name: value}
            built.append(network(image_shape=(1, 2, 2), classes=3, **given))
        assert repr(built[0]) == repr(built[1])
        assert all(torch.equal(a, b) for a, b in zip(*(each.parameters() for each in built), strict=True))


def test_targets_of_the_configuration_have_identities_of_their_own() -> None:
    targets: dict[str, str] = {}
    for path in group_folder("").rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, target = line.strip().partition(": ")
            if key == "_target_":
                targets[target] = config_hash({"network": {"_target_": target}})
    assert len(targets) > 40
    assert len(set(targets.values())) == len(targets)


def test_options_of_a_class_that_is_not_trusted_count_as_they_are_spelled() -> None:
    def of(**options: Any) -> str:
        return config_hash({**BASE, "network": {"_target_": "no_such_package.net", **options}})

    assert len({of(), of(sigma=1), of(sigma=[1, 1]), of(sigma=1.0)}) == 4
    assert config_hash({**BASE, "network": {"_target_": "glr_lightning.networks.of_another_version"}})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a density of its own, and a folder of options for it."""
    (tmp_path / "own_density.py").write_text(
        "from glr_lightning.noise import Gaussian\nclass Bell(Gaussian):\n    pass\n", encoding="utf-8"
    )
    (tmp_path / "options/estimator/noise").mkdir(parents=True)
    (tmp_path / "options/estimator/noise/bell.yaml").write_text("_target_: own_density.Bell\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "options"


def test_an_option_of_the_users_own_is_found_listed_and_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = compose(["noise=bell"], [folder])["estimator"]["noise"]
    assert node == {"_target_": "own_density.Bell"}
    assert type(build(node, trusted=None)).__name__ == "Bell"
    with pytest.raises(ConfigurationError, match="is refused"):
        build(node)
    assert type(build(node, trusted=["own_density."])).__name__ == "Bell"
    for where in (["--config-dir", str(folder)], [f"hydra.searchpath=[file://{folder}]"]):
        outcome = run_cli(train.main, [*where, "noise=bel", "progress=false"], monkeypatch, capsys)
        assert "there is no noise=bel. Did you mean bell" in outcome.err
        assert "bell" in run_cli(train.main, [*where, "--help"], monkeypatch, capsys).out
    fast = ["noise=bell", "epochs=1", "run_dir=run", "progress=false"]
    assert run_cli(train.main, ["--config-dir", str(folder), *fast], monkeypatch, capsys).code == 0
    tested = ["run=run", "threat=clean", "noisy_passes=2", "limit=20", "progress=false"]
    assert "own_density" in run_cli(evaluate.main, tested, monkeypatch, capsys).err
    assert run_cli(evaluate.main, [*tested, "trusted=[own_density]"], monkeypatch, capsys).code == 0


def test_help_lists_the_groups_that_a_command_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, has, lacks in (
        (train.main, "estimator/noise: gaussian", "threat: "),
        (diagnose.main, "estimator/noise: gaussian", "threat: "),
        (evaluate.main, "threat: ", "optimizer: "),
    ):
        groups = run_cli(main, ["--help"], monkeypatch, capsys).out.partition("== Options")[0]
        assert has in groups
        assert lacks not in groups
        assert "shared" not in groups


def test_help_gives_each_root_option_with_its_value_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {"train": train.main, "evaluate": evaluate.main, "report": report.main, "diagnose": diagnose.main}
    declared = [field.name for field in dataclasses.fields(TrainConfig) if field.type != Node]
    for command, main in commands.items():
        names = ("train", "diagnose") if command == "diagnose" else (command,)
        texts = [(Path(CONF_DIR) / f"{name}.yaml").read_text(encoding="utf-8") for name in names]
        found = [setting for text in texts for setting in settings(text)]
        assert command in ("evaluate", "report") or set(declared) <= {setting.path for setting in found}
        help_text = run_cli(main, ["--help"], monkeypatch, capsys).out.partition("== Options")[2]
        words = " ".join(help_text.split())
        assert max(map(len, help_text.splitlines())) <= 120
        for setting in found:
            assert setting.comment, f"{setting.path} of glr-{command} has no meaning"
            shown = " ".join(f"{setting.path}={setting.default} {setting.comment}".split())
            assert shown in words, f"glr-{command} --help"
            assert "…" not in setting.default
