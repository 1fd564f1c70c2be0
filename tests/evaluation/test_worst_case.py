"""Rows compared with each other: the worst case over attacks by hand, and masked gradients that black boxes show up."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glr_lightning.evaluation.attempts import attempts
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.summary import wilson_interval
from glr_lightning.evaluation.worst_case import WORST_CASE, cross_check
from glr_lightning.reporting.columns import table_cells
from glr_lightning.threats import AttackFacts, Clean, Threat, attack, declare
from glr_lightning.threats.attacks.fgsm import fgsm
from glr_lightning.threats.attacks.query import Query
from tests.checks.harness_cases import run

SHAPE = (1, 4, 4)


class Saturated(nn.Module):
    """Masks its gradients without one being exactly zero: those of a pattern that has nothing to do with the scores."""

    def __init__(self, network: nn.Module, pattern: Tensor) -> None:
        super().__init__()
        self.network, self.pattern = network, pattern

    def forward(self, x: Tensor) -> Tensor:
        value, slope = self.network(x).detach(), (x * self.pattern).flatten(1).sum(1, keepdim=True)
        return value + (slope - slope.detach()) * torch.tensor([1.0, -1.0])


def linear() -> nn.Sequential:
    """Grey images lie on its boundary, so that both classes come up."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    network[1].weight.data -= network[1].weight.data.mean(dim=1, keepdim=True)
    return network.eval()


def images(model: nn.Module, n: int = 200) -> tuple[Tensor, Tensor]:
    x = 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


@declare(AttackFacts(norms=("linf",)))
def corners(model: Any, x: Tensor, y: Tensor, *, random: Any, epsilon: float) -> Tensor:
    """A black box: 64 random corners of the ball."""
    query, best = Query.of(model, x), x.clone()
    for draw in range(64):
        moved = x + epsilon * (random.uniform(x.shape[1:], draw) - 0.5).sign()
        wrong = query(moved).argmax(1) != y
        best[wrong] = moved[wrong]
    return best


def judged(
    model: nn.Module, threats: dict[str, Threat], surrogates: dict[str, nn.Module] | None = None
) -> tuple[list[Row], dict[str, Any]]:
    named = surrogates or {}
    inputs = Inputs(model, *images(model))
    found = [run(each, inputs, named.get(each.surrogate)) for each in attempts(threats, list(named))]
    rows = [each.row for each in found]
    return cross_check(rows, {each.row.fingerprint: each.per_image.correct for each in found}), {
        each.row.threat: each.per_image.correct for each in found
    }


def white(epsilon: Any = (0.02, 0.05)) -> Threat:
    return attack(fgsm, epsilon=list(epsilon), gradient_source="autograd")


def black(epsilon: Any = (0.02, 0.05)) -> Threat:
    return attack(corners, epsilon=list(epsilon))


def test_the_worst_case_is_by_image_over_attacks_and_smaller_epsilons() -> None:
    hits = {
        "c": np.array([1, 1, 1, 1, 1, 0], bool),
        "a1": np.array([1, 1, 0, 1, 1, 1], bool),
        "a2": np.array([1, 0, 1, 1, 1, 1], bool),
        "b2": np.array([0, 1, 1, 1, 1, 1], bool),
    }
    row = judged(linear(), {"clean": Clean(), "fgsm": white()})[0]
    attacks = {"a1": (1, 0.1, "linf"), "a2": (1, 0.2, "linf"), "b2": (1, 0.2, "linf")}
    rows = [replace(row[0], fingerprint="c")]
    rows += [replace(row[1], fingerprint=k, threat=k, level=e, norm=norm) for k, (_, e, norm) in attacks.items()]
    checked = cross_check(rows, hits)
    worst = [row for row in checked if row.kind == WORST_CASE]
    assert [(row.level, row.correct, row.n) for row in worst] == [(0.2, 2, 6)]  # of 0.1 there is but one
    (row,) = worst
    assert (row.wilson_low, row.wilson_high) == wilson_interval(2, 6)
    assert "a1 (autograd), a2 (autograd), b2 (autograd)" in row.note
    assert not row.unreliable
    assert cross_check(checked, hits) == checked  # so a table may be checked again after each row
    rows[3] = replace(rows[3], norm="l2")
    assert [r.correct for r in cross_check(rows, hits) if r.kind == WORST_CASE] == [3]
    rows[3] = replace(rows[3], norm="linf", images="others")
    assert [r.correct for r in cross_check(rows, hits) if r.kind == WORST_CASE] == [3]


def test_gradients_that_mislead_are_shown_up_by_a_black_box() -> None:
    honest = linear()
    weight = honest[1].weight.detach()
    pattern = (weight[1] - weight[0]).reshape(SHAPE)  # the wrong way
    masked = Saturated(honest, pattern).eval()
    for model, caught in ((honest, False), (masked, True)):
        rows, hits = judged(model, {"clean": Clean(), "fgsm": white([0.1]), "corners": black([0.1])})
        gradient, other, worst = rows[1:]
        assert gradient.zero_gradient_fraction == 0
        assert (gradient.black_box_stronger, gradient.unreliable, gradient.masked) == (caught, caught, False)
        assert ("a black-box attack, corners, succeeds on" in gradient.note) is caught
        assert not other.unreliable
        assert worst.correct == int((hits["fgsm"] & hits["corners"]).sum())
        assert not worst.unreliable  # the black box is in it


def test_the_black_box_that_breaks_most_is_named_with_its_surrogate() -> None:
    honest = linear()
    model = Saturated(honest, (honest[1].weight[1] - honest[1].weight[0]).detach().reshape(SHAPE)).eval()
    twin = attack(fgsm, epsilon=[0.1], gradient_source="transfer")
    for order in (["corners", "twin"], ["twin", "corners"]):
        threats = {"white": white([0.1])} | {name: {"corners": black([0.1]), "twin": twin}[name] for name in order}
        rows, hits = judged(model, threats, surrogates={"relu": linear()})
        assert hits["twin"].sum() < hits["corners"].sum()
        broken = int((hits["white"] & ~hits["twin"]).sum())
        note = f"a black-box attack, twin (transfer relu), succeeds on {broken} images where autograd gradients fail"
        assert rows[0].note == note


def test_a_worst_case_over_masked_and_transferred_attacks_alone_says_so() -> None:
    class Flat(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).detach() + 0 * x.sum()

    threats = {"white": white([0.1]), "transfer": attack(fgsm, epsilon=[0.1], gradient_source="transfer")}
    rows, _ = judged(Flat(linear()).eval(), threats, surrogates={"twin": linear()})
    assert [row.masked for row in rows[:2]] == [True, False]
    assert rows[0].black_box_stronger  # the twin's images work
    assert rows[2].kind == WORST_CASE
    assert rows[2].unreliable
    assert "says nothing about robustness" in rows[2].note


def test_a_few_images_more_are_no_proof() -> None:
    rows, _ = judged(linear(), {"fgsm": white([0.1])})
    rows += [replace(rows[0], fingerprint="black", gradient_source="none", threat="square")]
    survives = np.ones(200, bool)
    for broken, caught in ((9, False), (10, True)):
        hits = {rows[0].fingerprint: survives, "black": np.arange(200) >= broken}
        assert cross_check(rows, hits)[0].black_box_stronger is caught


def test_what_the_gradients_alone_break_counts_against_the_black_box() -> None:
    """b = 20 and c = 10: 10 < 3 sqrt(30), although 20 > 3 sqrt(30)."""
    rows, _ = judged(linear(), {"fgsm": white([0.1])})
    rows += [replace(rows[0], fingerprint="black", gradient_source="none", threat="square")]
    place = np.arange(200)
    for c, caught in ((0, True), (10, False)):
        hits = {rows[0].fingerprint: place < 200 - c, "black": place >= 20}
        assert cross_check(rows, hits)[0].black_box_stronger is caught


def test_attacks_with_one_source_of_gradients_stand_together() -> None:
    rows, _ = judged(linear(), {"fgsm": white([0.1])})
    rows += [replace(rows[0], fingerprint="pgd", threat="pgd")]
    rows += [replace(rows[0], fingerprint="black", gradient_source="none", threat="square")]
    broken = np.arange(200) >= 20
    hits = {rows[0].fingerprint: np.ones(200, bool), "pgd": broken, "black": broken}
    assert not any(row.black_box_stronger for row in cross_check(rows, hits))


def test_flags_made_anew_keep_what_a_row_knows_of_itself() -> None:
    rows, hits = judged(linear(), {"fgsm": white([0.1])})
    rows[0] = replace(
        rows[0], masked=True, unreliable=True, black_box_stronger=True, note="mine; a black-box attack, x"
    )
    (row,) = cross_check(rows, hits)
    assert (row.masked, row.unreliable, row.black_box_stronger, row.note) == (True, True, False, "mine")


def test_a_black_box_of_a_larger_epsilon_shows_nobody_up() -> None:
    rows, _ = judged(linear(), {"fgsm": white([0.1])})
    rows += [replace(rows[0], fingerprint="black", gradient_source="none", threat="square", level=0.2)]
    hits = {rows[0].fingerprint: np.ones(200, bool), "black": np.zeros(200, bool)}
    assert not cross_check(rows, hits)[0].black_box_stronger


@pytest.mark.parametrize("targeted", [False, True])
def test_a_targeted_attack_is_not_held_against_untargeted_ones(targeted: bool) -> None:
    rows, _ = judged(linear(), {"fgsm": white([0.1])})
    rows[0] = replace(rows[0], targeted=targeted)
    rows += [replace(rows[0], fingerprint="black", gradient_source="none", threat="square", targeted=False)]
    hits = {rows[0].fingerprint: np.ones(200, bool), "black": np.zeros(200, bool)}
    assert cross_check(rows, hits)[0].black_box_stronger is not targeted


def test_checkpoints_of_the_same_weights_have_one_worst_case() -> None:
    rows, hits = four_rows("fgsm", "square", "pgd", "corners")
    rows[2:] = [replace(row, checkpoint="last") for row in rows[2:]]
    assert [row.correct for row in cross_check(rows, hits) if row.kind == WORST_CASE] == [196]
    assert len(table_cells(cross_check(rows, hits))) == 5


def test_random_points_are_no_search() -> None:
    rows, hits = four_rows("fgsm", "points")
    rows = [replace(rows[0], masked=True), replace(rows[1], searches=False)]
    worst = cross_check(rows, hits)[-1]
    assert (worst.kind, worst.masked, worst.unreliable) == (WORST_CASE, True, True)
    rows[0] = replace(rows[0], masked=False)
    assert not cross_check(rows, hits)[-1].unreliable


def test_only_the_images_that_broke_the_rules_count_for_nothing() -> None:
    """Half the images go too far, and every one that moves is misclassified."""
    model = linear()
    direction = (model[1].weight[1] - model[1].weight[0]).detach().reshape(SHAPE).sign()

    @declare(AttackFacts(norms=("linf",)))
    def cheat(model: Any, x: Tensor, y: Tensor, *, random: Any, epsilon: float) -> Tensor:
        size = torch.where(random.index % 2 == 0, 0.25, epsilon)[:, None, None, None]
        return x + size * direction * torch.where(y == 0, 1.0, -1.0)[:, None, None, None]

    rows, hits = judged(model, {"cheat": attack(cheat, epsilon=0.2), "corners": black([0.05])})
    assert rows[0].out_of_budget
    assert hits["cheat"].tolist() == [True, False] * 100
    assert rows[0].correct == 100
    assert rows[2].kind == WORST_CASE
    assert rows[2].correct == int((hits["cheat"] & hits["corners"]).sum())


def test_gradients_that_point_the_wrong_way_are_shown_up_by_doing_nothing() -> None:
    honest = linear()
    weight = honest[1].weight.detach()
    masked = Saturated(honest, (weight[1] - weight[0]).reshape(SHAPE)).eval()
    x, y = images(honest)
    y[::4] = 1 - y[::4]  # which such gradients put right
    inputs = Inputs(masked, x, y, 0)
    found = [run(attempt, inputs) for attempt in attempts({"clean": Clean(), "fgsm": white([0.1])})]
    hits = {each.row.fingerprint: each.per_image.correct for each in found}
    _, gradient = cross_check([each.row for each in found], hits)
    assert gradient.correct == 200
    assert gradient.black_box_stronger
    assert "leaving the images as they are, succeeds on 50 images" in gradient.note


def test_gradients_that_nothing_checks_say_so() -> None:
    for threats, unchecked in (
        ({"fgsm": white([0.1])}, True),
        ({"fgsm": white([0.1]), "corners": black([0.1])}, False),
    ):
        row = judged(linear(), threats)[0][0]
        assert ("no black-box attack at this budget" in row.note) is unchecked
        assert not row.unreliable


def four_rows(*names: str) -> tuple[list[Row], dict[str, Any]]:
    """Attacks that break the image of their place."""
    row = judged(linear(), {"corners": black([0.1])})[0][0]
    hits = {name: np.arange(200) != place for place, name in enumerate(names)}
    return [replace(row, threat=name, fingerprint=name) for name in names], hits
