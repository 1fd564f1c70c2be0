"""Every option that training composes, given values of wrong kinds: accepted as what it declares, or refused by name.

The options are not typed here but read from the composed configurations, so that a new one is tested as it is added.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.loggers import tensorboard
from pytorch_lightning.trainer.connectors import callback_connector
from torch import Tensor

from glr_lightning.config import Groups, compose, long_form, short_name
from glr_lightning.data.base import ImageDataModule
from glr_lightning.diagnosis.candidates import entries_of
from glr_lightning.errors import ConfigurationError
from glr_lightning.runs.environment import torch_device
from glr_lightning.runs.trained_run import load_run
from glr_lightning.training import fit
from glr_lightning.training.trainer import checked_options
from tests.checks.groups import options
from tests.checks.refusals import refused

WRONG = (True, "abc", "", -1, 1.5, math.nan, math.inf, [1, 2], {}, 99999999999999999999)
INDEPENDENT = (("data", "optimizer", "scheduler", "logger"), ("network", "preprocess", "noise", "sampling"))
"""Groups whose options can be chosen together, one of each in a configuration."""
NETWORKS = list(itertools.product(["threshold", "sigmoid"], ["zero_one", "cross_entropy"]))
"""Activation and loss: with one pair or another every estimator can train."""
GIVEN = {"layer_rates": ["callbacks.layer_rates.factors=[1,1]"]}
"""Options that have to be given."""
INADMISSIBLE = "uniform"
"""A density that is there to be refused."""
WIDER = {"version"}
"""Options that are text in the packaged configuration and may be something else."""
COPIED = {"activation", "preprocess"}
"""Nodes that are read through the network, which has a copy."""


class AcceptedError(Exception):
    """Raised where the training would begin."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that training checks, without files and without training."""

    def accept(*args: Any, **kwargs: Any) -> None:
        raise AcceptedError

    def nothing(*args: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(pl.Trainer, "fit", accept)
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", True)  # its options, where it is not installed
    monkeypatch.setattr(callback_connector, "_load_external_callbacks", lambda group: [])  # half of a Trainer's time
    for name in ("create_run_folder", "start_metrics"):
        monkeypatch.setattr(fit, name, nothing)
    for kind, name in itertools.product(kinds_of(ImageDataModule), ("prepare_data", "setup")):
        monkeypatch.setattr(kind, name, nothing)
    monkeypatch.setattr(ImageDataModule, "val_dataloader", lambda self: [None])
    monkeypatch.setattr(ImageDataModule, "split", blank)


def blank(data: ImageDataModule, which: str, count: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, *data.image_shape), torch.zeros(count, dtype=torch.int64)


def kinds_of(root: type) -> Iterator[type]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds_of(kind)


def configurations() -> Iterator[dict[str, Any]]:
    """Configurations that can train, which between them have every option of every group."""
    for groups in INDEPENDENT:
        named = [[f"{group}={option}" for option in options(group) if option != INADMISSIBLE] for group in groups]
        for number in range(max(map(len, named))):
            yield trainable([names[number % len(names)] for names in named])
    for option in options("estimator"):
        yield trainable([f"estimator={option}"])
    for option in options("callbacks"):
        yield trainable([f"callbacks=[{option}]", "estimator=likelihood_ratio", *GIVEN.get(option, [])])


def trainable(overrides: Sequence[str]) -> dict[str, Any]:
    refusals = []
    for activation, loss in NETWORKS:
        config = compose(["~experiment", f"activation={activation}", f"loss={loss}", *overrides])
        refusal = refusal_of(config)
        if refusal is None:
            return config
        refusals.append(str(refusal))
    raise AssertionError(f"{overrides}: {refusals}")


def refusal_of(config: dict[str, Any]) -> ConfigurationError | None:
    try:
        fit.train(config, Path("unused"))
    except AcceptedError:
        return None
    except ConfigurationError as error:
        return error
    raise AssertionError("trained")


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """The path and value of all that is no mapping, and the target that gets it."""
    target = str(node.get("_target_")) if isinstance(node, dict) else ""
    for key, child in node.items():
        if isinstance(child, dict) and child:
            yield from leaves(child, (*path, key))
        elif not key.startswith("_"):
            yield (*path, key), child, target


def changed(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(config)
    node = result
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return result


def may_be(value: Any, packaged: Any) -> bool:
    """Whether a value may be accepted in the place of the packaged one."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, int) and abs(value) >= 2**63:
        return False
    if isinstance(value, list):  # one number for each layer
        return not isinstance(packaged, str)
    if isinstance(packaged, bool):
        return isinstance(value, bool)
    if isinstance(packaged, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return not isinstance(packaged, str) or isinstance(value, str)


REFUSED = [
    "optimizer.fused=abc",
    "optimizer.lr=true",
    "optimizer.lr=nan",
    "optimizer.weight_decay=-1",
    "scheduler.T_max=nan",
    "scheduler.T_max=0",
    "network.bias=[1,2]",
    "network.hidden=[0]",
    "network.hidden=abc",
    "logger.csv.name=3",
    "data.batch_size=0",
    "batch_size=true",
    "seed=-1",
    "seed=1.5",
    "epochs=0",
    "data.validation=1.5",
    "data.resize=0",
    "clip_norm=inf",
    "devices=-1",
    "optimizer.lr=99999999999999999999",
    "seed=99999999999999999999",
    "network.init=99999999999999999999",
    "estimator.sigma=99999999999999999999",
]


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_value_is_refused_with_its_option(override: str) -> None:
    with refused(long_form(override).partition("=")[0]):
        fit.train([override])


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("data.flip", "true or false"),
        ("data.root", "a path"),
        ("network.hidden", "a list"),
        ("network.centre", "a number"),
        ("epochs", "a whole number"),
    ],
)
def test_an_integer_beyond_64_bits_is_refused_as_what_is_wanted(option: str, kind: str) -> None:
    with refused(option, f"{option} must be {kind}", "more than 64 bits"):
        fit.train([f"{option}=99999999999999999999"])


@pytest.mark.parametrize(
    ("refuse", "option"),
    [
        (lambda: fit.train(["experiment=bp", "+estimator.sigma=2"]), "estimator.sigma"),
        (lambda: fit.train(["network=mlp", "network._target_=torch.nothing"]), "network"),
        (lambda: fit.train(["+trainer.devicez=1"]), "trainer.devicez"),
        (lambda: checked_options([]), "trainer"),
        (lambda: load_run("run", checkpoint="first"), "checkpoint"),
        (lambda: torch_device("nowhere"), "device"),
        (lambda: entries_of([]), "estimators"),
        (lambda: entries_of([3]), "estimators"),
    ],
)
def test_what_no_hint_can_refuse_is_refused_with_its_option_too(refuse: Callable[[], object], option: str) -> None:
    with refused(option):
        refuse()


@pytest.mark.parametrize("value", ["[3]", "[null]", "[[x]]"])
def test_a_list_of_what_can_be_no_name_is_refused_for_every_group(value: str) -> None:
    groups = sorted({short_name(group) for group in all_groups()})
    assert len(groups) > 15
    for group in groups:
        with refused(group, "choose from"):
            compose([f"{group}={value}"])


def all_groups(parent: str = "") -> Iterator[str]:
    """The groups of conf/, those below others included, that have options."""
    present = Groups.present()
    for name in present.groups(parent):
        group = f"{parent}/{name}".lstrip("/")
        if not parent or present.is_choice(group):
            yield group
            yield from all_groups(group)


def test_every_option_is_accepted_as_what_it_declares_or_refused_by_name() -> None:
    faults, seen = [], set()
    for config in configurations():
        for path, packaged, target in leaves(config):
            if (path, target) in seen or path[0] in COPIED:
                continue
            seen.add((path, target))
            for value in WRONG:
                option = f"{'.'.join(path)}={value!r} (packaged: {packaged!r})"
                try:
                    refusal = refusal_of(changed(config, path, value))
                except Exception as error:
                    faults.append(f"{option}: {type(error).__name__}: {error}")
                    continue
                if refusal is None and not may_be(value, packaged) and path[-1] not in WIDER:
                    faults.append(f"{option} is accepted")
                elif refusal is not None and ("\n" in str(refusal) or path[-1] not in str(refusal)):
                    faults.append(f"{option} is not named: {refusal}")
    assert not faults, "\n".join(faults)
    assert len(seen) > 60
