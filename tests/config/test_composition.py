"""Composition: what experiments train, short forms, and settings that an estimator does not have."""

import itertools
import json
import re
from pathlib import Path

import pytest

from glr_lightning.cli import diagnose, evaluate, report, train
from glr_lightning.config import (
    CONF_DIR,
    SHORT_FORMS,
    Groups,
    build,
    compose,
    config_hash,
    load_yaml,
    long_form,
    short_name,
    short_overrides,
)
from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.named_threats import named_threats
from glr_lightning.runs.upgrade import upgrade
from glr_lightning.training.trainer import FIXED, checked_options
from tests.checks.cli_runner import run_cli
from tests.checks.groups import options
from tests.checks.refusals import refused

OLD = json.loads((Path(__file__).parents[1] / "runs/v0_4_experiments.json").read_text(encoding="utf-8"))
"""What version 0.4 composed for its experiments: lrtz whole, of the others the sections that differ from it."""
KEPT = [name for name in OLD if not name.startswith("conv/")]
"""Experiments that train as they did in 0.4; the convolutional ones have been tuned anew."""
SCORE_UNREAD = {f"paper/{folder}{name}" for folder in ("", "tiny/") for name in ("lrs", "lrsz")}
"""Experiments with smooth units, where `plain`, which 0.4 named, is what `auto` means."""
VALUES = {"sigma": "0.7", "copies": "6", "chunk": "8", "noise": "laplace", "sampling": "independent"}
VALUES |= {"baseline": "clean", "injection": "joint"}


@pytest.mark.parametrize("name", KEPT)
def test_every_experiment_trains_what_version_0_4_trained(name: str) -> None:
    chosen = [f"experiment={name}"]
    if name.startswith("surrogate/"):  # a group of its own now
        chosen = ["~experiment", f"+surrogate={name.partition('/')[2]}"]
    expected = upgrade(OLD["lrtz"] | OLD[name])
    if name in SCORE_UNREAD:
        expected["estimator"] = {**expected["estimator"], "score": "auto"}
    if expected["estimator"]["_target_"].endswith(".LocalExpectation"):
        expected["estimator"] = {**expected["estimator"], "choice": "uniform"}  # 0.4 had no other
    if expected["estimator"]["_target_"].endswith(".Tiered"):
        expected["estimator"] = {**expected["estimator"], "windows": None}  # likewise
    new = ("run_dir", "trusted", "compile")
    composed = {key: value for key, value in compose(chosen).items() if key not in new}
    assert set(composed) == set(expected)
    for section, value in expected.items():
        assert composed[section] == value, section


def test_every_experiment_of_version_0_4_is_still_there() -> None:
    names = set(Groups.present().options("experiment")) | {f"surrogate/{name}" for name in options("surrogate")}
    assert set(OLD) <= names


def test_a_method_and_a_setting_are_combined_without_an_experiment() -> None:
    config = compose(["method=lrtz", "setting=wide"])
    assert config["network"]["hidden"] == [500]
    assert config["loss"]["_target_"].endswith("ZeroOne")
    assert compose(["method=lrtz", "setting=mlp", "run_dir=x"]) == compose(["experiment=lrtz", "run_dir=x"])
    with refused(None, "leave out method"):
        compose(["experiment=bp", "method=lrt"])


def test_every_method_goes_with_a_setting_and_every_setting_with_a_method() -> None:
    found = Groups.present()
    for method in found.options("method"):
        assert compose([f"method={method}", "setting=wide"])["network"]["hidden"] == [500]
    for setting in found.options("setting"):
        assert compose(["method=bp", f"setting={setting}"])["estimator"]["_target_"].endswith("Backprop")


# ---- short forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sigma=0.5,1", "estimator.sigma=0.5,1"),
        ("copies=[4,2]", "estimator.copies=[4,2]"),
        ("+chunk=8", "+estimator.chunk=8"),
        ("++chunk=8", "++estimator.chunk=8"),
        ("noise=laplace,gaussian", "estimator/noise=laplace,gaussian"),
        ("noise.nu=3", "estimator.noise.nu=3"),
        ("~baseline", "~estimator/baseline"),
        ("~copies", "~estimator.copies"),
        ("sampling=sobol", "estimator/sampling=sobol"),
        ("estimator.sigma=1", "estimator.sigma=1"),
        ("sigmas=1", "sigmas=1"),
        ("run_dir=sigma=1", "run_dir=sigma=1"),
        ("noise", "noise"),
        ("--multirun", "--multirun"),
        ("optimizer.lr=1", "optimizer.lr=1"),
    ],
)
def test_a_short_form_stands_for_the_estimators_own(typed: str, meant: str) -> None:
    assert long_form(typed) == meant
    assert long_form(meant) == meant
    assert long_form(typed, own=list(SHORT_FORMS)) == typed


def test_names_are_shortened_for_the_screen_and_for_the_folders_of_a_sweep() -> None:
    assert short_name("estimator.sigma") == "sigma"
    assert short_name("estimator.noise.nu") == "noise.nu"
    assert short_name("estimator/noise") == "noise"
    assert short_name("estimator.score") == "estimator.score"
    assert short_overrides("estimator.sigma-0.5_estimator/noise-laplace_seed-0") == "sigma-0.5_noise-laplace_seed-0"


def test_short_and_long_forms_compose_to_the_same() -> None:
    short = compose(["sigma=0.7", "copies=6", "noise=student_t", "noise.nu=3", "run_dir=x"])
    long = ["estimator.sigma=0.7", "estimator.copies=6", "estimator/noise=student_t", "estimator.noise.nu=3"]
    assert compose([*long, "run_dir=x"]) == short
    assert (short["estimator"]["sigma"], short["estimator"]["noise"]["nu"]) == (0.7, 3)
    assert not {key for key in short if key in SHORT_FORMS}


# ---- settings that an estimator does not have -----------------------------------------------------------------------


def lacking() -> list[tuple[str, str]]:
    found = Groups.present()
    return [
        (name, setting)
        for name, setting in itertools.product(options("estimator"), VALUES)
        if setting not in found.settings("estimator", name)
    ]


@pytest.mark.parametrize(("name", "setting"), lacking())
def test_a_setting_that_the_estimator_does_not_have_is_refused_by_name(name: str, setting: str) -> None:
    having = Groups.present().having("estimator", setting)
    for override in (f"{setting}={VALUES[setting]}", f"+estimator.{setting}={VALUES[setting]}"):
        with pytest.raises(ConfigurationError) as caught:
            compose(["~experiment", f"estimator={name}", override])
        message = str(caught.value)
        assert f"estimator={name} has no {setting}; leave it out" in message
        assert f"These have it: {', '.join(having)}." in message
        assert "\n" not in message


@pytest.mark.parametrize("given", [["experiment=lrt"], ["method=lrs", "setting=wide"], ["method=lrt", "loss=zero_one"]])
@pytest.mark.parametrize("estimator", ["backprop", "straight_through", "evolution_strategies"])
def test_the_advice_against_a_method_works_for_either_intent(given: list[str], estimator: str) -> None:
    choice = f"estimator={estimator}"
    with pytest.raises(ConfigurationError, match="has no sampling, which method=") as caught:
        compose([*given, choice])
    message = str(caught.value)
    assert f"leave out {choice}." in message
    compose(given)  # as the method says
    advised = re.search(r"give in place of experiment and method (.*? estimator=\w+)", message)
    assert advised is not None
    config = compose(advised[1].split())  # with the estimator
    assert config["estimator"]["_target_"] == compose(["~experiment", choice])["estimator"]["_target_"]
    assert ("setting=wide" in message) == ("setting=wide" in given)
    assert ("loss=zero_one" in message) == ("loss=zero_one" in given)
    methods = Groups.present().choosing("method", "estimator", estimator)
    assert (f"or choose a method that has it: {', '.join(methods)}." in message) == bool(methods)
    assert all(compose([f"method={each}"])["estimator"] for each in methods)


REFUSED = {
    "a scale": (["experiment=bp", "sigma=9"], "estimator=backprop has no sigma; leave it out"),
    "a group": (["experiment=bp", "injection=layerwise"], "has no injection; leave it out"),
    "a part of a group": (["experiment=bp", "noise.nu=3"], "has no noise"),
    "what a method sets": (
        ["experiment=lrt", "estimator=backprop"],
        "has no sampling, which method=lrt sets. To train as",
    ),
    "values that an experiment sets": (
        ["experiment=conv/lrt", "estimator=backprop"],
        "has no copies, sigma, which the experiment or the method sets; leave that out with ~copies ~sigma",
    ),
    "one that no estimator has": (
        ["estimator.sigmas=9"],
        "no option 'sigmas' in estimator. Did you mean sigma",
    ),
    "one that is added": (["+estimator.sigmas=9"], "estimator=local_expectation has no sigmas; leave it out"),
    "a typo of a short form": (["sigm=9"], "there is no option 'sigm'. Did you mean sigma"),
    "an option of 0.4": (["revive=0.5"], "use callbacks=[class_collapse] callbacks.class_collapse.revive=VALUE now"),
    "a group of 0.4": (["sigma_schedule=geometric"], "use callbacks=[annealing] callbacks.annealing.sigma.end=VALUE"),
    "a typo of an option that is a group too": (["schedule=step"], "Did you mean scheduler?"),
    "a group of another command": (["threat=paper"], "this command does not take threat=OPTION. --help"),
    "a class that cannot be imported": (
        ["+callbacks.a={_target_: mine.Count}"],
        "_target_ 'mine.Count' does not exist",
    ),
    "a typo of a group": (["nois=laplace"], "Did you mean noise"),
    "an option of a short group": (["noise=laplce"], "there is no noise=laplce. Did you mean laplace?"),
    "what is not there": (["~data.root"], "~data.root: there is no data.root to leave out here; drop ~data.root."),
    "a group that is not chosen": (["~experiment", "~callbacks"], "there is no callbacks to leave out here"),
    "a typo of what is left out": (["~callback"], "Did you mean callbacks"),
    "in a sweep": (["--multirun", "experiment=lrs,bp", "sigma=0.5,1"], "estimator=backprop has no sigma; leave it out"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_one_line_and_leaves_nothing_behind(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_cli(train.main, [*arguments, "run_dir=run", "progress=false"], monkeypatch, capsys)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", ["experiment=lrs,bp", "sigma=0.5,1"]),  # Hydra refuses it
        ("train", ["experiment=conv/lrt,lrt", "sigma=-1,-2"]),  # each job does
        ("evaluate", ["run=nowhere", "seed=1,2"]),
    ],
)
def test_a_sweep_that_is_refused_leaves_nothing(
    command: str,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    place = ["run_dir=sweep"] if command == "train" else []
    outcome = run_cli(MAINS[command], ["--multirun", *overrides, *place], monkeypatch, capsys)
    assert outcome.code == 2
    assert not list(tmp_path.iterdir())


def test_what_an_experiment_sets_can_be_left_out() -> None:
    left_out = compose(["experiment=conv/lrt", "estimator=backprop", "activation=relu", "~sigma", "~copies"])
    assert left_out["estimator"] == {"_target_": "glr_lightning.estimators.Backprop"}


MAINS = {"train": train.main, "evaluate": evaluate.main, "report": report.main, "diagnose": diagnose.main}


def cannot_be_left_out() -> list[tuple[str, str]]:
    found = []
    for command in MAINS:
        names = ("train", "diagnose") if command == "diagnose" else (command,)
        keys = {key for name in names for key in load_yaml(Path(CONF_DIR) / f"{name}.yaml")}
        found += [(command, key) for key in sorted(keys - {"defaults", "hydra", "callbacks"})]
    sections = {"evaluate": ("data.root", "surrogate.dir", "surrogate.epochs"), "diagnose": ("reference.copies",)}
    found += [(command, key) for command, keys in sections.items() for key in keys]
    groups = ("data", "network", "activation", "loss", "preprocess", "estimator", "optimizer", "scheduler", "trainer")
    return found + [(command, key) for command in ("train", "diagnose") for key in (*groups, "logger")]


@pytest.mark.parametrize(("command", "option"), cannot_be_left_out())
def test_an_option_that_a_command_reads_cannot_be_left_out(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ([f"~{option}"], ["--multirun", f"~{option}=3", "seed=1,2"]):
        outcome = run_cli(MAINS[command], arguments, monkeypatch, capsys)
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: ~{option}: {option} cannot be left out; give {option}")
        assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_need_not_be_chosen_can_be_left_out() -> None:
    assert compose(["~callbacks"])["callbacks"] == {}
    assert compose(["~experiment", "~method", "~setting"])["network"]["centre"] == 0
    assert "lr" not in compose(["~optimizer.lr"])["optimizer"]
    assert not compose(["callbacks=[class_collapse]", "~callbacks.class_collapse"])["callbacks"]
    assert "copies" not in compose(["~copies"])["estimator"]  # of the estimator; glr-diagnose has its own
    with refused("seed", "~seed: seed cannot be left out; give seed=VALUE"):
        compose(["~seed"])


@pytest.mark.parametrize("command", MAINS)
@pytest.mark.parametrize("argument", ["epochs", "+epochs", "run", "experiment"])
def test_an_override_without_a_value_is_refused_at_once(
    command: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ([argument], ["seed=1", argument], ["--multirun", argument]):
        outcome = run_cli(MAINS[command], arguments, monkeypatch, capsys)
        assert outcome.code == 2
        assert outcome.err == f"error: {argument} has no value; write OPTION=VALUE. --help lists the options.\n"
    assert not list(tmp_path.iterdir())


def test_a_value_that_cannot_be_read_is_refused_without_a_link() -> None:
    with refused(None, "network.hidden=[3 cannot be read", "write OPTION=VALUE"):
        compose(["network.hidden=[3"])


# ---- Lightning's options --------------------------------------------------------------------------------------------


def test_the_options_of_lightning_are_a_section_with_short_forms_and_presets() -> None:
    config = compose(["device=cpu", "devices=2", "strategy=ddp_spawn", "precision=64-true"])
    chosen = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn", "precision": "64-true"}
    assert config["trainer"] == chosen | {"deterministic": False}
    assert compose(["trainer=fast", "+trainer.num_nodes=1"])["trainer"]["limit_train_batches"] == 5
    for name in options("trainer"):
        assert checked_options(compose([f"trainer={name}"])["trainer"])
    for name, reason in FIXED.items():
        with refused(f"trainer.{name}", reason):
            checked_options(compose([f"+trainer.{name}=1"])["trainer"])


def test_a_trainer_without_devices_has_the_one_that_its_hash_counts() -> None:
    config = compose([])
    assert checked_options({}) == checked_options({"devices": 1}) == {"devices": 1}
    assert config_hash({**config, "trainer": {}}) == config_hash({**config, "trainer": {"devices": 1}})
    assert checked_options({"devices": 2})["devices"] == 2


@pytest.mark.parametrize("override", ["noise=[gaussian,laplace]", "data=[digits,mnist]"])
def test_several_options_of_a_group_that_takes_one_are_refused(override: str) -> None:
    with refused(
        override.partition("=")[0], "choose one of them", f"--multirun {override.replace('[', '').rstrip(']')}"
    ):
        compose([override])


@pytest.mark.parametrize("override", ["noise=null", "experiment=null", "callbacks=3", "data=true"])
def test_a_value_that_can_name_no_option_of_a_group_is_refused(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_cli(train.main, [override, "run_dir=run"], monkeypatch, capsys)
    assert outcome.code == 2
    assert f"error: {override} names no option of the group; leave it out, or choose from " in outcome.err
    assert "Traceback" not in outcome.err
    with refused(override.partition("=")[0], "choose from"):
        compose([override])


NO_NAMES = [
    ("train", "callbacks=[99999999999999999999]"),
    ("train", "logger=[csv,3]"),
    ("train", "~noise=[3]"),
    ("train", "callbacks=[annealing],[nan]"),  # in a sweep
    ("evaluate", "threat=[clean,{a:1}]"),
    ("diagnose", "sampling=['']"),
]


@pytest.mark.parametrize(("command", "override"), NO_NAMES)
def test_a_list_with_an_element_that_is_no_name_is_refused(
    command: str, override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=lrt"] if command == "diagnose" else ["run=run"] if command == "evaluate" else []
    outcome = run_cli(MAINS[command], [*arguments, override, "--multirun"], monkeypatch, capsys)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith(f"error: {override.lstrip('~').partition('=')[0]}")
    assert "names no option of the group; " in outcome.err
    assert "choose from " in outcome.err


@pytest.mark.parametrize(
    ("threats", "words"),
    [
        (["pgd_linf.epsilon=nan"], "these are options of a threat that is not chosen; name the threat too"),
        (["clean", "pgd_linf.epsilon=nan"], "since pgd_linf is not chosen; name it too: threat=[clean,pgd_linf]"),
        (["clean", "pgd_lin.epsilon=1"], "there is no threat 'pgd_lin'. Did you mean pgd_linf"),
    ],
)
def test_options_of_a_threat_that_is_not_chosen_are_refused(threats: list[str], words: str) -> None:
    with refused(None, words):
        named_threats(threats)


def test_an_option_without_a_name_is_refused() -> None:
    with refused(None, "=3 names no option; write OPTION=VALUE"):
        compose(["=3"])


def test_a_users_file_that_is_no_yaml_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/bad.yaml").write_text("a: [1,\nb: }")
    outcome = run_cli(train.main, [f"--config-dir={tmp_path}", "callbacks=bad"], monkeypatch, capsys)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "callbacks/bad.yaml" in outcome.err
    with pytest.raises(ConfigurationError, match=r"callbacks/bad\.yaml"):
        compose(["callbacks=bad"], [tmp_path])


@pytest.mark.parametrize("given", ["[3]", "[null]", "{a: 1}", "3"])
def test_a_users_file_that_chooses_what_is_no_name_is_named(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/bad.yaml").write_text(f"# @package _global_\ndefaults:\n  - override /callbacks: {given}\n")
    outcome = run_cli(train.main, [f"--config-dir={tmp_path}", "experiment=bad"], monkeypatch, capsys)
    assert outcome.code == 2
    assert outcome.err.startswith("error: experiment/bad.yaml: Unsupported item value in defaults")
    with refused(None, "experiment/bad.yaml"):
        compose(["experiment=bad"], [tmp_path])


def test_a_nested_option_of_another_choice_is_refused_by_name() -> None:
    foreign = {"noise": "nu", "sampling": "randomisations", "baseline": "decay", "injection": "layers"}
    for name, setting in itertools.product(options("estimator"), foreign):
        if setting in Groups.present().settings("estimator", name):
            config = compose(["~experiment", f"estimator={name}", f"+{setting}.{foreign[setting]}=3"])
            with pytest.raises(ConfigurationError) as caught:
                build(config["estimator"], where="estimator")
            assert caught.value.option == f"estimator.{setting}.{foreign[setting]}"
