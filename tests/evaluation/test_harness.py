"""The harness: what it measures, what it refuses, and the cheats that it must catch."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.evaluation.attempts import Attempt, attempts
from glr_lightning.evaluation.fingerprints import row_fingerprint
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.summary import wilson_interval
from glr_lightning.noise import Gaussian
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.threats import Attack, AttackFacts, Corruption, ImageRandom, Threat, attack, corruption, declare
from glr_lightning.threats.attacks.fgsm import fgsm
from glr_lightning.threats.attacks.input_gradient import input_gradient
from glr_lightning.threats.corruptions.gaussian_noise import gaussian_noise
from tests.checks.harness_cases import CLEAN, evaluate, images, linear, only, run, white_box
from tests.checks.refusals import refused


@pytest.fixture(autouse=True)
def same_networks_on_one_thread() -> Iterator[None]:
    """One thread: these tensors are so small that several would only wait for each other."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class HardThreshold(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        return (v > 0).to(v.dtype)


def cheat(change: Callable[[Tensor, float], Tensor], norm: str = "linf") -> dict[str, Threat]:
    @declare(AttackFacts(norms=(norm,)))
    def function(model: nn.Module, x: Tensor, y: Tensor, *, random: object, epsilon: float) -> Tensor:
        return change(x, epsilon)

    return {"cheat": attack(function, epsilon=0.1)}


class TestWilson:
    @pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 1), (3, 7), (9520, 10000), (1, 10**6)])
    def test_its_ends_lie_z_standard_errors_from_the_ratio(self, correct: int, n: int) -> None:
        """The interval's definition: |p - t| = z sqrt(t (1 - t) / n) at both ends t."""
        low, high = wilson_interval(correct, n)
        p = correct / n
        assert 0 <= low <= p <= high <= 1
        for end in (low, high):
            assert abs(p - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), abs=1e-9)

    def test_known_values(self) -> None:
        assert wilson_interval(0, 10) == (0.0, pytest.approx(1.96**2 / (10 + 1.96**2)))
        assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + 1.96**2)), 1.0)
        assert wilson_interval(5, 10) == pytest.approx((0.236590, 0.763410), abs=1e-5)
        assert wilson_interval(5, 10, z=0.0) == (0.5, 0.5)

    @pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 3), (4, 3)])
    def test_refuses(self, correct: int, n: int) -> None:
        with refused(None, "an interval needs"):
            wilson_interval(correct, n)


class TestMeasurement:
    def test_clean_row(self) -> None:
        (x, y), model = images(), linear((1, 8, 8))
        row = only(evaluate(model, x, y, CLEAN, seed=0, run="here", batch_size=7))
        correct = int((model(x).argmax(1) == y).sum())
        assert (row.run, row.threat, row.kind, row.level) == ("here", "clean", "clean", None)
        assert (row.n, row.correct, row.accuracy) == (60, correct, correct / 60)
        assert (row.wilson_low, row.wilson_high) == wilson_interval(correct, 60)
        assert row.mean_l2 == row.max_l2 == row.mean_linf == row.max_linf == 0
        assert row.zero_gradient_fraction is None
        assert not row.out_of_budget
        assert not row.unreliable
        assert row.note == ""
        assert row.seconds > 0

    def test_a_linear_model_under_fgsm_has_a_closed_form(self) -> None:
        generator = torch.Generator().manual_seed(2)
        model = linear((1, 8, 8), classes=2)
        x = 0.3 + 0.4 * torch.rand(100, 1, 8, 8, generator=generator)
        y = model(x).argmax(1)
        y[::3] = 1 - y[::3]
        weight = model[1].weight.detach()
        scores = model(x).detach()
        margin = scores.gather(1, y[:, None]) - scores.gather(1, 1 - y[:, None])
        for epsilon in (0.001, 0.01, 0.05):
            row = only(evaluate(model, x, y, white_box(epsilon=epsilon), seed=0))
            assert row.correct == int((margin > epsilon * (weight[0] - weight[1]).abs().sum()).sum())
            assert row.mean_linf == pytest.approx(epsilon, rel=1e-4)
            assert row.max_l2 == pytest.approx(epsilon * 8, rel=1e-4)
            assert row.zero_gradient_fraction == 0
            assert not row.unreliable
            assert not row.out_of_budget

    def test_one_row_per_level_and_words_before_each(self) -> None:
        x, y = images()
        threats = {**CLEAN, "fgsm": attack(fgsm, epsilon=[0.1, 0.2], gradient_source="autograd")}
        rows = list(evaluate(linear((1, 8, 8)), x, y, threats, seed=0))
        assert [(row.threat, row.level_name, row.level) for row in rows] == [
            ("clean", "", None),
            ("fgsm", "epsilon", 0.1),
            ("fgsm", "epsilon", 0.2),
        ]
        assert [each.words for each in attempts(threats)] == [
            "clean",
            "fgsm epsilon 0.1 (autograd)",
            "fgsm epsilon 0.2 (autograd)",
        ]

    def test_the_examples_are_the_first_images_as_the_threat_left_them(self) -> None:
        (x, y), model = images(), linear((1, 8, 8))
        (attempt,) = attempts(white_box(epsilon=0.2))
        evidence = run(attempt, Inputs(model, x, y, 0, batch_size=5)).per_image
        moved = fgsm(model, x[:8], y[:8], random=None, epsilon=0.2)
        assert (evidence.examples == (255 * moved).round().numpy()).all()
        assert evidence.predictions.tolist() == model(moved).argmax(1).tolist()
        assert evidence.labels.tolist() == y[:8].tolist()

    def test_reading_rows_leaves_the_callers_grad_mode_alone(self) -> None:
        x, y = images()
        for _ in evaluate(linear((1, 8, 8)), x, y, {**CLEAN, **white_box()}, seed=0):
            assert torch.is_grad_enabled()

    def test_transfer_takes_the_surrogates_gradient(self) -> None:
        x, y = images()
        model, surrogate = linear((1, 8, 8), seed=0), linear((1, 8, 8), seed=9)
        transfer = {"fgsm": attack(fgsm, epsilon=0.1, gradient_source="transfer")}
        row = only(evaluate(model, x, y, transfer, seed=0, surrogate=surrogate))
        moved = fgsm(surrogate, x, y, random=None, epsilon=0.1)
        assert row.correct == int((model(moved).argmax(1) == y).sum())
        assert row.note == "transfer attack from a surrogate: no white-box claim"
        assert not row.unreliable

    def test_float64_models_and_models_without_parameters(self) -> None:
        x, y = images(shape=(1, 2, 2))
        single = only(evaluate(linear((1, 2, 2)), x, y, CLEAN, seed=0))
        double = only(evaluate(linear((1, 2, 2)).double(), x, y, CLEAN, seed=0))
        assert single.correct == double.correct
        assert only(evaluate(nn.Flatten().eval(), x, y, CLEAN, seed=0)).n == 60

    def test_a_target_is_any_other_class_with_equal_chance(self) -> None:
        """3,000 draws of three classes: a count beyond 5 standard errors of 1,000 has a chance of 6e-7 a class."""
        x, y = images(3000, (1, 2, 2))
        handed: list[Tensor] = []

        @declare(AttackFacts())
        def function(model: nn.Module, x: Tensor, y: Tensor, *, random: object, target: Tensor | None = None) -> Tensor:
            assert target is not None
            handed.append(target)
            return x

        row = only(evaluate(linear((1, 2, 2)), x, y, {"a": attack(function, targeted=True)}, seed=0))
        target = torch.cat(handed)  # of three batches
        counts = torch.bincount((target - y) % 4, minlength=4).tolist()
        assert counts[0] == 0
        assert max(abs(count - 1000) for count in counts[1:]) < 5 * math.sqrt(3000 / 3 * 2 / 3)
        assert target.max() < 4
        assert row.target_reached is not None


class TestCheats:
    """A threat that breaks the rules must show in its row."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda x, eps: (x + 1.01 * eps).clamp(0, 1), "beyond epsilon"),
            (lambda x, eps: x.add_(eps * 2).clamp_(0, 1), "beyond epsilon"),  # in place
            (lambda x, eps: x - eps, "outside [0, 1]"),
            (lambda x, eps: x * torch.nan, "not finite"),
            (lambda x, eps: x / 0, "not finite"),
        ],
    )
    def test_is_caught(self, change: Callable[[Tensor, float], Tensor], words: str) -> None:
        x, y = images()
        before = x.clone()
        row = only(evaluate(linear((1, 8, 8)), x, y, cheat(change), seed=0, batch_size=13))
        assert row.out_of_budget
        assert words in row.note
        assert torch.equal(x, before)

    def test_one_image_in_a_thousand_is_enough(self) -> None:
        x, y = images(1000)

        def change(x: Tensor, epsilon: float) -> Tensor:
            x[0, 0, 0, 0] = (x[0, 0, 0, 0] + 0.5) % 1
            return x

        row = only(evaluate(linear((1, 8, 8)), x, y, cheat(change), seed=0))
        assert row.out_of_budget
        assert row.note.startswith("1 of 1000 images break the rules")

    def test_the_budget_is_of_the_declared_norm(self) -> None:
        x, y = images()
        x = x * 0.5

        def change(x: Tensor, epsilon: float) -> Tensor:
            return x + 0.99 * epsilon  # within the linf ball, eight times too far in l2

        assert not only(evaluate(linear((1, 8, 8)), x, y, cheat(change, "linf"), seed=0)).out_of_budget
        assert only(evaluate(linear((1, 8, 8)), x, y, cheat(change, "l2"), seed=0)).out_of_budget

    def test_labels_cannot_be_rewritten(self) -> None:
        x, y = images()

        def function(model: nn.Module, x: Tensor, y: Tensor, *, random: object) -> Tensor:
            y.copy_(model(x).argmax(1))
            return x

        honest = only(evaluate(linear((1, 8, 8)), x, y, CLEAN, seed=0))
        assert only(evaluate(linear((1, 8, 8)), x, y, {"a": Attack(function=function)}, seed=0)).correct == (
            honest.correct
        )

    def test_another_shape_is_an_error(self) -> None:
        x, y = images()
        with refused(None, "a threat must return images of the shape it was given"):
            list(evaluate(linear((1, 8, 8)), x, y, cheat(lambda x, eps: x[:3]), seed=0))


class TestMaskedGradients:
    def test_a_threshold_net_is_not_robust_but_unattacked(self) -> None:
        (x, y), hidden = images(), linear((1, 8, 8), classes=16)
        model = nn.Sequential(hidden, HardThreshold(), nn.Linear(16, 4)).eval()
        rows = list(evaluate(model, x, y, {**CLEAN, **white_box()}, seed=0, batch_size=9))
        assert rows[1].accuracy == rows[0].accuracy
        assert rows[1].zero_gradient_fraction == 1.0
        assert rows[1].unreliable
        assert rows[1].note == "100 % of the input gradients are exactly zero: this row says nothing about robustness"

    def test_frozen_threshold_net_has_no_graph_at_all(self) -> None:
        (x, y), model = (
            images(),
            nn.Sequential(linear((1, 8, 8)), HardThreshold()).eval().requires_grad_(False),
        )
        row = only(evaluate(model, x, y, white_box(), seed=0))
        assert row.zero_gradient_fraction == 1.0
        assert row.unreliable

    @pytest.mark.parametrize(("masked", "unreliable"), [(0.05, False), (0.06, True), (0.94, True)])
    def test_the_share_is_counted_per_image(self, masked: float, unreliable: bool) -> None:
        class Partly(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * (x.flatten(1)[:, :1] > 0.5).to(x.dtype)[:, :, None, None]

        x, y = images(100)
        x[:, 0, 0, 0] = (torch.arange(100) >= round(100 * masked)).float()
        row = only(
            evaluate(nn.Sequential(Partly(), linear((1, 8, 8))).eval(), x, y, white_box(), seed=0, batch_size=30)
        )
        assert row.zero_gradient_fraction == pytest.approx(masked)
        assert row.unreliable is unreliable
        assert (f"{100 * masked:.0f} % of the input gradients" in row.note) is unreliable

    def test_a_masked_surrogate_spoils_a_transfer_attack(self) -> None:
        x, y = images()
        saturated = nn.Hardtanh(-1e-9, 1e-9)
        surrogate = nn.Sequential(linear((1, 8, 8)), saturated, nn.Linear(4, 4)).eval()
        transfer = {"fgsm": attack(fgsm, epsilon=0.1, gradient_source="transfer")}
        row = only(evaluate(linear((1, 8, 8)), x, y, transfer, seed=0, surrogate=surrogate))
        assert row.unreliable
        assert "no white-box claim; 100 % of" in row.note

    def test_a_surrogate_that_jumps_and_can_be_given_no_slope_is_refused_by_name(self) -> None:
        x, y = images()
        surrogate = nn.Sequential(linear((1, 8, 8)), HardThreshold(), nn.Linear(4, 4)).eval()
        transfer = {"fgsm": attack(fgsm, epsilon=0.1, gradient_source="transfer")}
        with refused(None, "'1' (HardThreshold, found to be", "derive it from"):
            only(evaluate(linear((1, 8, 8)), x, y, transfer, seed=0, surrogate=surrogate))

    def test_an_attack_that_asks_for_no_gradient_does_not_pass_for_one(self) -> None:
        x, y = images()

        def idle(model: nn.Module, x: Tensor, y: Tensor, *, random: object, epsilon: float) -> Tensor:
            model(x)
            return x

        row = only(evaluate(linear((1, 8, 8)), x, y, white_box(idle), seed=0))
        assert row.zero_gradient_fraction is None
        assert row.unreliable
        assert "asked for no input gradient" in row.note

    def test_the_first_gradient_counts_and_copies_count_once(self) -> None:
        """Several steps on several copies: of the first step, an image counts if all its copies have no gradient."""

        def several(model: nn.Module, x: Tensor, y: Tensor, *, random: object, epsilon: float, shift: float) -> Tensor:
            for _ in range(2):
                rows = torch.cat([x, x, x + shift])
                gradient = input_gradient(model, rows, y.repeat(3)).view(3, *x.shape).sum(0)
                x = (x + epsilon / 2 * gradient.sign() + epsilon / 8).clamp(0, 1)  # leaves 0 after the first step
            return x

        x, y = images()
        x[::2] = 0.0  # at 0 a ReLU passes nothing back
        x[:, 0, 0, 0] = 0.0  # and one pixel without a gradient is not an image without one
        model = nn.Sequential(nn.ReLU(), linear((1, 8, 8))).eval()
        for shift, share in ((0.0, 0.5), (0.01, 0.0)):
            row = only(evaluate(model, x, y, white_box(several, epsilon=0.2, shift=shift), seed=0, batch_size=11))
            assert row.zero_gradient_fraction == share

    def test_the_watch_is_taken_down(self) -> None:
        (x, y), model = images(), linear((1, 8, 8))

        def broken(model: nn.Module, x: Tensor, y: Tensor, *, random: object, epsilon: float) -> Tensor:
            raise RuntimeError("broken")

        list(evaluate(model, x, y, white_box(), seed=0))
        with pytest.raises(RuntimeError, match="broken"):
            list(evaluate(model, x, y, white_box(broken), seed=0))
        assert not model._forward_pre_hooks


class TestRefusals:
    """Every refusal comes at the call, before any row is computed."""

    @pytest.mark.parametrize(
        ("change", "option", "words"),
        [
            ({"x": torch.rand(60, 8, 8)}, "images", "a float tensor [n >= 1"),
            ({"x": torch.zeros(60, 1, 8, 8, dtype=torch.uint8)}, "images", "a float tensor"),
            ({"x": torch.rand(0, 1, 8, 8), "y": torch.zeros(0, dtype=torch.int64)}, "images", "[n >= 1"),
            ({"x": torch.rand(60, 1, 8, 8) * 255}, "images", "scale the pixels"),
            ({"x": torch.full((60, 1, 8, 8), torch.nan)}, "images", "within [0, 1]"),
            ({"y": torch.zeros(59, dtype=torch.int64)}, "labels", "int64 [60]"),
            ({"y": torch.zeros(60)}, "labels", "int64 [60]"),
            ({"index": torch.arange(3)}, "index", "int64 [60]"),
            ({"batch_size": 0}, "batch_size", "at least 1"),
            ({"threats": {}}, "threat", "give at least one"),
            (
                {"threats": {"f": attack(fgsm, epsilon=0.1, gradient_source="transfer")}},
                None,
                "gradient_source=autograd",
            ),
            ({"model": linear((1, 8, 8)).train()}, None, "the network must be in eval mode"),
            ({"surrogate": linear((1, 8, 8)).train()}, None, "call its eval() first"),
            ({"surrogate": linear((1, 8, 8)).double()}, None, "Move it with its to(...)"),
            ({"model": linear((1, 8, 8)).half()}, None, "use its float()"),
        ],
    )
    def test_bad_input(self, change: dict[str, Any], option: str | None, words: str) -> None:
        x, y = images()
        good: dict[str, Any] = {"model": linear((1, 8, 8)), "x": x, "y": y, "threats": CLEAN, "seed": 0}
        with refused(option, words):
            evaluate(**{**good, **change})


def test_levels_of_two_presets_or_of_two_names_have_rows_of_their_own() -> None:
    presets = {"one": [{"std": 0.1}, {"std": 0.2}], "two": [{"std": 0.1}, {"std": 0.3}]}
    found = [attempts({name: corruption(gaussian_noise, preset, presets, [1, 2])}) for name, preset in NAMED]
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    inputs = Inputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    prints = [row_fingerprint(inputs, attempt, None) for group in found for attempt in group]
    assert len(set(prints)) == len(prints)


NAMED = [("noise", "one"), ("noise", "two"), ("more", "one")]


def test_the_judges_noise_belongs_to_the_image() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    model = NoiseAveraged(network, Gaussian(), (1.0,), 1).eval()
    x, y, index = torch.rand(1, 1, 2, 2).repeat(60, 1, 1, 1), torch.zeros(60, dtype=torch.int64), torch.arange(60) + 7
    inputs = Inputs(model, x, y, 5, index=index, batch_size=9)
    correct = run(Attempt("clean", CLEAN["clean"], None, {}), inputs).per_image.correct
    assert 0 < correct.sum() < 60
    assert correct.tolist() == (model(x, ImageRandom(5, index)).argmax(1) == 0).tolist()


def test_a_thousandth_beyond_epsilon_is_out_of_budget() -> None:
    @declare(AttackFacts(norms=("linf",)))
    def beyond(model: Any, x: Tensor, y: Tensor, *, random: Any, epsilon: float, share: float) -> Tensor:
        return x + epsilon * share

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    inputs = Inputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    for share, out in ((1.0, False), (1.001, True)):
        threat = attack(beyond, epsilon=[0.1], share=share)
        assert run(attempts({"beyond": threat})[0], inputs).row.out_of_budget is out


def test_how_gradients_are_computed_is_part_of_the_fingerprint() -> None:
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    inputs = Inputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    options: list[dict[str, Any]] = [{}, {"smoothing": 0.5}, {"copies": 8}, {"eot": 2}]
    found = [attack(fgsm, epsilon=[0.1], gradient_source="autograd", gradient=each) for each in options]
    assert len({row_fingerprint(inputs, attempts({"fgsm": threat})[0], None) for threat in found}) == len(options)


def test_parameters_bound_to_a_function_are_part_of_the_fingerprint() -> None:
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    inputs = Inputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    bound = [functools.partial(gaussian_noise, std=std) for std in (0.1, 0.2)]
    prints = [row_fingerprint(inputs, Attempt("t", Corruption(function=f), None, {}), None) for f in bound]
    assert prints[0] != prints[1]
