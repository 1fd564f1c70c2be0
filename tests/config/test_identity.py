"""The identity of a run, key by key; spellings that do not matter; options from a user's own folder."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from glr_lightning.cli import diagnose, evaluate, train
from glr_lightning.config import TrainConfig, build, compose, config_hash
from glr_lightning.errors import ConfigurationError
from tests.checks.cli_runner import run_cli

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
        ("callbacks", "class_collapse", True),
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
        groups = run_cli(main, ["--help"], monkeypatch, capsys).out.partition("== Configuration")[0]
        assert has in groups
        assert lacks not in groups
        assert "shared" not in groups
