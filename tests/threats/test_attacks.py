"""The attacks against closed forms, torch's own optimiser, foolbox and the published schedules."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.threats import ImageRandom
from glr_lightning.threats.attacks.ball import project, uniform_in_ball
from glr_lightning.threats.attacks.fgsm import fgsm
from glr_lightning.threats.attacks.input_gradient import margin
from glr_lightning.threats.attacks.lbfgs import lbfgs
from glr_lightning.threats.attacks.penalised_lbfgs import penalised_lbfgs
from glr_lightning.threats.attacks.pgd import pgd
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.attacks.random_noise import random_noise
from glr_lightning.threats.attacks.square import square
from tests.checks.attack_cases import (
    SHAPE,
    Attack,
    distances,
    inner_pictures,
    linear,
    pictures,
    random_of,
    threshold_net,
)
from tests.checks.refusals import refused


class TestLinearOptimum:
    """In a ball of exactly the distance to the boundary, an attack succeeds just beyond it and never before it."""

    N = 60

    def setup(self, classes: int, norm: str, targeted: bool) -> tuple[nn.Sequential, Tensor, Tensor, Any, Tensor]:
        model, x = linear(classes), inner_pictures(self.N)
        y = model(x).argmax(1)
        target = (y + 1) % classes if targeted else None
        return model, x, y, target, distances(model, x, y, norm, target)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("classes", [2, 5])
    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize("loss", ["cross_entropy", "margin", ["cross_entropy", "margin"]])
    def test_pgd(self, norm: str, loss: str | list[str], classes: int, targeted: bool) -> None:
        """With more than two classes an ascent may lead to one that is not the nearest; never beyond the optimum."""
        model, x, y, target, distance = self.setup(classes, norm, targeted)
        enough = 1.0 if classes == 2 else 0.6 if loss == "cross_entropy" else 0.9
        for epsilon in distance.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist():
            options = {"epsilon": epsilon, "norm": norm, "loss": loss, "steps": 40, "restarts": 2, "target": target}
            moved = pgd(model, x, y, random=random_of(self.N), **options)
            wrong = model(moved).argmax(1) != y
            assert wrong[distance < 0.99 * epsilon].double().mean() >= enough
            assert not wrong[distances(model, x, y, norm) > epsilon].any()

    def test_fgsm_of_two_classes(self) -> None:
        model, x, y, _, distance = self.setup(2, "linf", False)
        epsilon = float(distance.median())
        for target in (None, 1 - y):
            wrong = model(fgsm(model, x, y, random=None, epsilon=epsilon, target=target)).argmax(1) != y
            assert wrong[distance < 0.99 * epsilon].all()
            assert not wrong[distance > epsilon].any()

    @pytest.mark.parametrize(("norm", "ratio"), [("linf", 1.01), ("l2", 1.25)])
    @pytest.mark.parametrize("targeted", [False, True])
    def test_square(self, norm: str, ratio: float, targeted: bool) -> None:
        """Its last squares are single pixels, with which it climbs to the corner; for l2 windows of three."""
        model, x, y, target, distance = self.setup(2, norm, targeted)
        epsilon = float(distance.median())
        options = {"epsilon": epsilon, "norm": norm, "queries": 1500, "target": target}
        wrong = model(square(model, x, y, random=random_of(self.N), **options)).argmax(1) != y
        assert wrong[distance < epsilon / ratio].all()
        assert not wrong[distance > epsilon].any()

    @pytest.mark.parametrize("classes", [2, 5])
    @pytest.mark.parametrize("targeted", [False, True])
    def test_penalised_lbfgs(self, classes: int, targeted: bool) -> None:
        """The nearest point of the boundary, to 1 % with two classes. With more it may be another class's boundary."""
        model, x, y, target, distance = self.setup(classes, "l2", targeted)
        moved = penalised_lbfgs(model, x, y, random=None, target=target)
        prediction, found = model(moved).argmax(1), (moved - x).flatten(1).norm(dim=1)
        assert (prediction == target if targeted else prediction != y).all()
        assert (found > 0.999 * distance).all()
        if classes == 2 or not targeted:
            assert (found < (1.01 if classes == 2 else 1.25) * distance).all()

        epsilon = float(distance.median())
        bounded = penalised_lbfgs(model, x, y, random=None, target=target, epsilon=epsilon)
        assert torch.equal((bounded != x).flatten(1).any(1), found <= epsilon)

    def test_penalised_lbfgs_at_the_walls_of_the_box(self) -> None:
        """There the nearest point is clip(x + t w) at the t that meets the boundary, w being w_other - w_y."""
        model = linear(2)
        x = (pictures(self.N, SHAPE).double() * 1.6 - 0.3).clamp(0, 1)
        y = model(x).argmax(1)
        weight = (model[1].weight[1 - y] - model[1].weight[y]).detach().view_as(x)
        low, high = torch.zeros(self.N, 1, 1, 1).double(), torch.full((self.N, 1, 1, 1), 10.0).double()
        for _ in range(50):
            middle = (low + high) / 2
            short = margin(model((x + middle * weight).clamp(0, 1)), y).view_as(low) < 0
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        best = ((x + high * weight).clamp(0, 1) - x).flatten(1).norm(dim=1)
        moved = penalised_lbfgs(model, x, y, random=None)
        assert (model(moved).argmax(1) != y).all()
        ratio = (moved - x).flatten(1).norm(dim=1) / best
        assert ((ratio > 0.999) & (ratio < 1.05)).all()

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_random_noise_has_the_normal_distribution(self, norm: str) -> None:
        """w.delta is near N(0, (epsilon ||w||_2 s)^2), where s is d^-1/2 on the sphere of d dimensions and 1 at the
        corners of the cube. So one draw fools the share Phi(-margin / sd); by chance the test fails once in 10^5, and
        0.005 are for the sphere, which is no Gaussian."""
        n = 4000
        model = linear(2)
        x = inner_pictures(1).expand(n, -1, -1, -1).contiguous()
        y = model(x).argmax(1)
        gap = -float(margin(model(x), y)[0].detach())
        length = float((model[1].weight[0] - model[1].weight[1]).detach().norm())
        epsilon = gap / length * (1.0 if norm == "linf" else math.sqrt(math.prod(SHAPE)))
        moved = random_noise(model, x, y, random=random_of(n), epsilon=epsilon, norm=norm, draws=1)
        share = float((model(moved).argmax(1) != y).double().mean())
        expected = 0.5 * math.erfc(1 / math.sqrt(2))
        assert (
            abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n) + 0.005
        )  # the sphere is no Gaussian


ATTACKS: dict[str, tuple[Attack, dict[str, Any]]] = {
    "pgd_linf": (pgd, {"epsilon": 0.1, "steps": 8, "restarts": 2, "loss": "margin"}),
    "pgd_l2": (pgd, {"epsilon": 0.6, "norm": "l2", "steps": 8, "restarts": 2}),
    "transfer_pgd": (pgd, {"epsilon": 0.1, "steps": 8, "early_stop": False}),
    "square_linf": (square, {"epsilon": 0.1, "queries": 60}),
    "square_l2": (square, {"epsilon": 0.6, "norm": "l2", "queries": 60}),
    "noise_linf": (random_noise, {"epsilon": 0.2, "draws": 20}),
    "noise_l2": (random_noise, {"epsilon": 1.0, "norm": "l2", "draws": 20}),
    "lbfgs": (lbfgs, {"iterations": 8}),
    "penalised_lbfgs": (penalised_lbfgs, {"epsilon": 0.6, "rounds": 4, "iterations": 5}),
}
CASES = [
    (name, source)
    for name, (function, _) in ATTACKS.items()
    for source in ("autograd", "straight_through", "likelihood_ratio")
    if source == "autograd" or function in (pgd, lbfgs, penalised_lbfgs)
]


def attacked_by(name: str, source: str, x: Tensor, y: Tensor, index: Tensor, **more: Any) -> tuple[Tensor, Query]:
    function, parameters = ATTACKS[name]
    random = ImageRandom(3, index)
    query = Query(threshold_net(), x, source=source, random=random)
    return function(query, x, y, random=random, **parameters, **more), query


class TestEveryAttack:
    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize(("name", "source"), CASES)
    def test_an_image_has_its_own_result_and_budget(self, name: str, source: str, targeted: bool) -> None:
        """In any company, twice the same; and what the others do, being dropped early say, changes nothing."""
        x = pictures(24)
        y = threshold_net()(x).argmax(1)
        y[::4] = (y[::4] + 1) % 5
        target = (y + 2) % 5 if targeted else None
        index = torch.arange(24) + 100
        moved, query = attacked_by(name, source, x, y, index, target=target)
        again, _ = attacked_by(name, source, x, y, index, target=target)
        assert torch.equal(moved, again)
        some = torch.tensor([17, 2, 8, 3])
        objective = None if target is None else target[some]
        part, counted = attacked_by(name, source, x[some], y[some], index[some], target=objective)
        torch.testing.assert_close(part, moved[some], rtol=0, atol=1e-6)
        assert torch.equal(counted.count.queries, query.count.queries[some])

        _, parameters = ATTACKS[name]
        change = (moved - x).flatten(1)
        assert moved.min() >= 0
        assert moved.max() <= 1
        if "epsilon" in parameters:
            size = change.norm(dim=1) if name.endswith("l2") or name == "penalised_lbfgs" else change.abs().amax(1)
            assert (size <= parameters["epsilon"] + 1e-6).all()

    @pytest.mark.parametrize(
        "name", ["pgd_linf", "pgd_l2", "square_linf", "square_l2", "noise_linf", "noise_l2", "penalised_lbfgs"]
    )
    def test_an_image_that_is_wrong_already_costs_one_query(self, name: str) -> None:
        x = pictures(24)
        y = threshold_net()(x).argmax(1)
        y[::4] = (y[::4] + 1) % 5
        moved, query = attacked_by(name, "straight_through", x, y, torch.arange(24))
        assert torch.equal(moved[::4], x[::4])
        assert (query.count.queries[::4] == 1).all()
        assert (query.count.queries[1::4] > 1).all()

    @pytest.mark.parametrize(
        ("function", "parameters", "source", "queries"),
        [
            (pgd, {"steps": 7, "restarts": 3}, "autograd", 1 + 3 * (1 + 2 * 7)),
            (pgd, {"steps": 7, "random_start": False}, "straight_through", 1 + 2 * 7),
            (pgd, {"steps": 7}, "likelihood_ratio", 2 + 7 * (1 + 64)),
            (pgd, {"steps": 7, "early_stop": False}, "autograd", 7),
            (square, {"queries": 123}, "autograd", 123),
            (square, {"queries": 123, "norm": "l2"}, "autograd", 123),
            (square, {"queries": 2}, "autograd", 2),
            (random_noise, {"draws": 30}, "autograd", 31),
        ],
    )
    def test_queries_of_an_image_that_holds_out(
        self, function: Attack, parameters: dict[str, Any], source: str, queries: int
    ) -> None:
        x = pictures(5)
        model = threshold_net()
        query = Query(model, x, source=source)
        function(query, x, model(x).argmax(1), random=random_of(5), epsilon=1e-6, **parameters)
        assert query.count.queries.tolist() == [queries] * 5

    @pytest.mark.parametrize(
        ("function", "parameters", "option", "advice"),
        [
            (pgd, {"epsilon": 0.0}, "epsilon", ""),
            (pgd, {"norm": "l1"}, "norm", "one of"),
            (pgd, {"steps": 0}, "steps", ""),
            (pgd, {"step_size": -1.0}, "step_size", ""),
            (pgd, {"restarts": 0}, "restarts", ""),
            (pgd, {"restarts": 2, "early_stop": False}, None, "set both, or restarts=1"),
            (pgd, {"restarts": 2, "random_start": False}, None, "set both, or restarts=1"),
            (pgd, {"loss": "hinge"}, "loss", "one of 'cross_entropy', 'margin'"),
            (square, {"queries": 1}, "queries", "a whole number from 2"),
            (square, {"p_init": 0.0}, "p_init", "a number above 0 to 1"),
            (square, {"horizon": 0}, "horizon", ""),
            (square, {"norm": "l0"}, "norm", "one of"),
            (random_noise, {"draws": 0}, "draws", ""),
            (random_noise, {"epsilon": math.inf}, "epsilon", ""),
            (penalised_lbfgs, {"epsilon": -1.0}, "epsilon", ""),
            (penalised_lbfgs, {"rounds": 0}, "rounds", ""),
            (penalised_lbfgs, {"iterations": 0}, "iterations", ""),
            (lbfgs, {"iterations": 101, "epsilon": None}, "iterations", "a whole number from 1 to 100"),
            (lbfgs, {"learning_rate": 0.0, "epsilon": None}, "learning_rate", ""),
        ],
    )
    def test_refuses(self, function: Attack, parameters: dict[str, Any], option: str | None, advice: str) -> None:
        x = pictures(2)
        arguments = {"epsilon": 0.1, **parameters}
        if arguments["epsilon"] is None:
            del arguments["epsilon"]
        with refused(option, advice):
            function(threshold_net(), x, torch.zeros(2, dtype=torch.int64), random=random_of(2), **arguments)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_projection_leaves_alone_what_is_inside(norm: str) -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    inside, outside = x + 0.01, x + 0.5
    torch.testing.assert_close(project(inside, x, 0.1, norm), inside)
    torch.testing.assert_close(project(outside, x, 0.1, norm), x + (0.1 if norm == "linf" else 0.05))


def test_starts_are_uniform_in_the_l2_ball() -> None:
    """r^N is uniform on (0, 1), N = 6; n = 4,000, at 5 standard errors."""
    x = torch.full((4000, 1, 2, 3), 0.5)
    moved = uniform_in_ball(x, 0.1, "l2", random_of(4000), stream=0)
    share = ((moved - x).flatten(1).norm(dim=1) / 0.1) ** 6
    assert float(share.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 4000))
    assert float(share.max()) <= 1 + 1e-4


class TestPGD:
    def test_keeps_the_first_that_fools_and_else_the_highest(self) -> None:
        """One step of an infinite slope apart: with more steps an image that is fooled stays what it was."""
        model, x = threshold_net(), pictures(40)
        y = model(x).argmax(1)
        size = {"epsilon": 0.15, "step_size": 0.02, "random_start": False, "loss": "margin"}
        runs = []
        for steps in range(1, 6):
            query = Query(model, x, source="straight_through")
            runs.append(pgd(query, x, y, random=random_of(40), steps=steps, **size))
        for shorter, longer in itertools.pairwise(runs):
            fooled = model(shorter).argmax(1) != y
            assert torch.equal(shorter[fooled], longer[fooled])
            assert (margin(model(longer), y) >= margin(model(shorter), y) - 1e-4).all()
        assert 0 < (model(runs[-1]).argmax(1) != y).sum() < 40

    def test_the_default_step_reaches_every_point_of_the_ball_from_every_other(self) -> None:
        x, y = torch.full((20, 1, 2, 2), 0.5), torch.zeros(20, dtype=torch.int64)
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
        found = pgd(network, x, y, random=random_of(20), epsilon=0.1, steps=10, early_stop=False)
        torch.testing.assert_close((found - x).abs(), torch.full_like(x, 0.1))

    def test_a_lucky_draw_of_a_random_network_stops_nothing(self) -> None:
        x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
        network[1].bias.data = torch.tensor([-9.0, 9.0])  # wrong at once
        for randomized in (False, True):
            query = Query(network, x, randomized=randomized)
            found = pgd(query, x, y, random=ImageRandom(0, torch.arange(2)), epsilon=0.1, steps=3)
            assert torch.equal(found, x) is not randomized

    def test_transfer_is_the_last_iterate(self) -> None:
        model, x = linear(3), inner_pictures(20)
        y = model(x).argmax(1)
        moved = pgd(model, x, y, random=None, epsilon=0.1, steps=30, random_start=False, early_stop=False)
        assert ((moved - x).flatten(1).abs().amax(1) > 0.099).all()  # though fooled long before
