"""Hints that declare types and ranges: what each accepts, and that every way in refuses in the same words."""

import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Interval, Len, MinLen
from torch import nn

from glr_lightning.config import build
from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import (
    Checked,
    Count,
    NonEmpty,
    NonNegative,
    Positive,
    Scale,
    Seed,
    Share,
    Size,
    checked,
    checked_arguments,
)
from glr_lightning.validation.words import closest, describe
from tests.checks.refusals import refused

HUGE = 99999999999999999999
WRONG: tuple[Any, ...] = (
    True,
    "abc",
    "",
    -1,
    -1.5,
    math.nan,
    math.inf,
    -math.inf,
    [True],
    [],
    {},
    None,
    HUGE,
    [1, HUGE],
)


@dataclass(frozen=True)
class Example(Checked):
    count: Count = 1
    seed: Seed = 0
    scale: Scale | NonEmpty[Scale] = 1.0
    positive: Positive = 1.0
    non_negative: NonNegative = 0.0
    share: Share = 0.5
    below_one: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    word: Literal["plain", "auto"] = "auto"
    flag: bool = False
    optional: Count | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    module: nn.Module | None = None
    words: Sequence[str] = ()


ACCEPTED: list[tuple[str, Any, Any]] = [
    ("count", 10**6, 10**6),
    ("seed", 2**32 - 1, 2**32 - 1),
    ("scale", 2, 2.0),
    ("scale", [1, 0.5], (1.0, 0.5)),
    ("positive", 1e-300, 1e-300),
    ("non_negative", 0, 0.0),
    ("share", 1, 1.0),
    ("word", "plain", "plain"),
    ("flag", True, True),
    ("optional", None, None),
    ("pair", [1, 2], (1.0, 2.0)),
    ("words", ["a"], ["a"]),
]


@pytest.mark.parametrize(("name", "given", "kept"), ACCEPTED)
def test_what_a_hint_accepts_is_kept_in_the_type_it_declares(name: str, given: Any, kept: Any) -> None:
    value = getattr(Example(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)


REFUSED: list[tuple[str, Any]] = [
    (name, value) for name in ("count", "seed", "scale", "positive", "share") for value in WRONG
]
REFUSED += [
    ("count", 0),
    ("count", 10**6 + 1),
    ("count", 1.0),
    ("seed", 2**32),
    ("scale", 0.0),
    ("scale", 1e13),
    ("scale", [1.0, 0.0]),
    ("positive", 0),
    ("non_negative", -1e-9),
    ("share", 1.01),
    ("below_one", 1.0),
    ("word", "plane"),
    ("flag", 1),
    ("flag", "true"),
    ("optional", 0),
    ("pair", [1.0]),
    ("pair", "ab"),
    ("module", "relu"),
    ("module", nn.ReLU),
    ("words", "abc"),
    ("words", [1]),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_a_hint_does_not_accept_is_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Example(**{name: value})
    assert refusal.value.option == name
    assert str(refusal.value).startswith(f"{name} must be ")
    assert "\n" not in str(refusal.value)


def test_a_refusal_says_what_is_allowed_what_was_given_and_an_example() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Example(scale=[])  # type: ignore[arg-type]
    assert str(refusal.value) == (
        "scale must be a number from 1e-12 to 1e+12, or a non-empty list of them, got []; for example scale=1.0."
    )
    with pytest.raises(ConfigurationError) as refusal:
        Example(optional=0)
    assert str(refusal.value) == "optional must be a whole number from 1 to 1,000,000, or null, got 0."


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Example(word="x\n" * 1000)  # type: ignore[arg-type]
    assert len(str(refusal.value)) < 200


def test_replacing_a_field_checks_it_too() -> None:
    with refused("count"):
        replace(Example(), count=0)


@checked
def area(width: Count, height: Count = 1, *, scale: Scale = 1.0, **others: int) -> float:
    """A function with parameters of all kinds."""
    return width * height * scale


def test_calls_of_a_checked_function_are_checked() -> None:
    assert area(2, 3, scale=2) == 12.0
    wrong: list[dict[str, Any]] = [{"width": 0}, {"width": 1, "height": True}, {"width": 1, "scale": math.nan}]
    for arguments in wrong:
        with pytest.raises(ConfigurationError):
            area(**arguments)


def test_arguments_are_named_with_their_path() -> None:
    with refused("shape.width", "shape.width must be"):
        checked_arguments(area, {"width": 0}, "shape")


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    with refused("example.cuont", "Did you mean count?"):
        checked_arguments(Example, {"cuont": 1}, "example")


def test_a_missing_option_is_named() -> None:
    with refused("shape.width", "must be given"):
        checked_arguments(area, {}, "shape", complete=True)
    assert checked_arguments(area, {}, "shape") == {}


def silent(a: Any, b: Callable[[int], int], c, d=0.5, e=True, **others) -> None:  # type: ignore[no-untyped-def]
    """A function whose hints say nothing that can be checked."""


def test_what_a_hint_does_not_say_is_skipped_and_a_default_tells_its_type() -> None:
    wild = {"a": {"x": 1}, "b": math.sqrt, "c": object(), "f": "any"}
    assert checked_arguments(silent, wild) == wild
    for name, value in (("d", "abc"), ("d", True), ("e", 1), ("a", HUGE), ("f", HUGE)):
        with pytest.raises(ConfigurationError) as refusal:
            checked_arguments(silent, {name: value})
        assert refusal.value.option == name


TORCH: list[tuple[str, Mapping[str, Any], str]] = [
    ("torch.optim.Adam", {"fused": "abc"}, "fused"),
    ("torch.optim.Adam", {"lr": True}, "lr"),
    ("torch.optim.Adam", {"lr": math.nan}, "lr"),
    ("torch.optim.Adam", {"lr": HUGE}, "lr"),
    ("torch.optim.Adam", {"weight_decay": -1}, "weight_decay"),
    ("torch.optim.Adam", {"betas": [0.9]}, "betas"),
    ("torch.optim.SGD", {"momentum": "abc"}, "momentum"),
    ("torch.optim.SGD", {"momemtum": 0.9}, "momemtum"),
    ("torch.optim.lr_scheduler.CosineAnnealingLR", {"T_max": math.nan}, "T_max"),
    ("torch.optim.lr_scheduler.CosineAnnealingLR", {"T_max": 0}, "T_max"),
    ("torch.optim.lr_scheduler.StepLR", {"step_size": 0}, "step_size"),
]


@pytest.mark.parametrize(("target", "options", "refused"), TORCH)
def test_options_of_torch_are_checked_before_anything_is_called(
    target: str, options: Mapping[str, Any], refused: str
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        build({"_target_": target, "_partial_": True, **options}, where="group")
    assert refusal.value.option == f"group.{refused}"
    assert f"group.{refused}" in str(refusal.value) or repr(refused) in str(refusal.value)


def test_a_nested_argument_is_named_with_its_whole_path() -> None:
    node = {
        "_target_": "glr_lightning.networks.mlp",
        "hidden": [3],
        "activation": {"_target_": "torch.nn.Threshold", "threshold": "abc", "value": 0},
    }
    with pytest.raises(ConfigurationError) as refusal:
        build(node, where="network", image_shape=(1, 2, 2), classes=2)
    assert refusal.value.option == "network.activation.threshold"


def test_what_a_constructor_itself_refuses_is_one_line() -> None:
    node = {"_target_": "torch.nn.Linear", "in_features": -5, "out_features": 2}
    with pytest.raises(ConfigurationError) as refusal:
        build(node, where="layer")
    assert refusal.value.option == "layer"
    assert "\n" not in str(refusal.value)


def test_a_partial_keeps_its_arguments() -> None:
    made = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1})([nn.Parameter(torch.zeros(1))])
    assert made.param_groups[0]["lr"] == 1.0


def test_declaring_hints_does_not_import_pydantic() -> None:
    """It takes as long to import as the rest of a small command."""
    code = "import sys, glr_lightning.validation; print('pydantic' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


class Base:
    def __init__(self, *, size: Size, seed: Seed = 0) -> None:
        self.size, self.seed = size, seed


class Middle(Base):
    """Has no constructor of its own."""


class Wide(Middle):
    def __init__(self, *, grey: bool = False, **options: Any) -> None:
        super().__init__(size=3, **options)
        self.grey = grey


def test_options_passed_on_are_checked_against_the_bases_hints() -> None:
    assert checked_arguments(Wide, {"grey": True, "seed": 1}, "data", complete=True) == {"grey": True, "seed": 1}
    with pytest.raises(ConfigurationError) as caught:
        checked_arguments(Wide, {"seed": -1}, "data")
    assert caught.value.option == "data.seed"


def test_words_for_hints_that_are_put_together() -> None:
    wordings: dict[str, Any] = {
        "a number above 0, or a list of them and nulls, or null": Positive | Sequence[Positive | None] | None,
        "a Tensor, or null": torch.Tensor | None,
        "a number": float | torch.Tensor,
        "text that is not empty": Annotated[str, MinLen(1)],
        "a list of 2, of which each is a whole number": Annotated[Sequence[int], Len(2, 2)],
        "a number of at most 3": Annotated[float, Interval(le=3)],
        "": Callable[[int], int] | None,
    }
    for words, hint in wordings.items():
        assert describe(hint) == words


def test_longer_names_are_suggested_before_similar_ones() -> None:
    names = ["fgsm", "pdg", "pgd_linf", "pgd_l2"]
    assert closest("pgd", names) == " Did you mean pgd_linf or pgd_l2?"
    assert closest("pgd_l3", names) == " Did you mean pgd_l2 or pgd_linf?"
    assert closest("square", names) == ""
