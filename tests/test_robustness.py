"""The harness: what it measures, what it refuses, and the cheats that it must catch."""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.noise import Gaussian
from glr_lightning.noisy import NoiseAveraged
from glr_lightning.robustness import Examination, evaluate
from glr_lightning.rows import FIELDS, Row, read_rows, write_rows
from glr_lightning.threats import ImageRandom, Threat, attack, corruption
from glr_lightning.threats.clean import clean
from glr_lightning.threats.fgsm import fgsm
from glr_lightning.threats.gaussian_noise import gaussian_noise
from glr_lightning.threats.gradient import input_gradient
from glr_lightning.trials import Trial, trials
from glr_lightning.verdict import wilson_interval

CONF = Path(__file__).parents[1] / "conf"
CLEAN = {"clean": Threat(clean, "clean")}


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


def linear(shape: tuple[int, int, int], classes: int = 4, seed: int = 0) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network.eval()


def images(n: int = 60, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def white_box(function: Callable[..., Tensor] = fgsm, epsilon: float = 0.1, **parameters: Any) -> dict[str, Threat]:
    return {"attack": attack(function, epsilon, "linf", "autograd", ["autograd"], **parameters)}


def cheat(change: Callable[[Tensor, float], Tensor], norm: str = "linf") -> dict[str, Threat]:
    def function(model: nn.Module, x: Tensor, y: Tensor, *, random: object, epsilon: float) -> Tensor:
        return change(x, epsilon)

    return {"cheat": attack(function, 0.1, norm, "none", ["none"])}


def only(rows: Any) -> Row:
    (row,) = rows
    return row


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
        with pytest.raises(ConfigurationError, match="an interval needs"):
            wilson_interval(correct, n)


class TestMeasurement:
    def test_clean_row(self) -> None:
        (x, y), model = images(), linear((1, 8, 8))
        row = only(evaluate(model, x, y, CLEAN, seed=0, run="here", batch_size=7))
        correct = int((model(x).argmax(1) == y).sum())
        assert tuple(row) == FIELDS
        assert (row["run"], row["threat"], row["kind"], row["level"]) == ("here", "clean", "clean", None)
        assert (row["n"], row["correct"], row["accuracy"]) == (60, correct, correct / 60)
        assert (row["wilson_low"], row["wilson_high"]) == wilson_interval(correct, 60)
        assert row["mean_l2"] == row["max_l2"] == row["mean_linf"] == row["max_linf"] == 0
        assert row["zero_gradient_fraction"] is None
        assert not row["out_of_budget"]
        assert not row["unreliable"]
        assert row["note"] == ""
        assert row["seconds"] > 0

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
            assert row["correct"] == int((margin > epsilon * (weight[0] - weight[1]).abs().sum()).sum())
            assert row["mean_linf"] == pytest.approx(epsilon, rel=1e-4)
            assert row["max_l2"] == pytest.approx(epsilon * 8, rel=1e-4)
            assert row["zero_gradient_fraction"] == 0
            assert not row["unreliable"]
            assert not row["out_of_budget"]

    def test_one_row_per_level_and_words_before_each(self) -> None:
        (x, y), said = images(), []
        threats = {**CLEAN, "fgsm": attack(fgsm, [0.1, 0.2], "linf", "autograd", ["autograd"])}
        rows = list(evaluate(linear((1, 8, 8)), x, y, threats, seed=0, progress=said.append))
        assert [(row["threat"], row["level_name"], row["level"]) for row in rows] == [
            ("clean", "", None),
            ("fgsm", "epsilon", 0.1),
            ("fgsm", "epsilon", 0.2),
        ]
        assert said == ["clean", "fgsm epsilon 0.1 (autograd)", "fgsm epsilon 0.2 (autograd)"]

    def test_reading_rows_leaves_the_callers_grad_mode_alone(self) -> None:
        x, y = images()
        for _ in evaluate(linear((1, 8, 8)), x, y, {**CLEAN, **white_box()}, seed=0):
            assert torch.is_grad_enabled()

    def test_transfer_takes_the_surrogates_gradient(self) -> None:
        x, y = images()
        model, surrogate = linear((1, 8, 8), seed=0), linear((1, 8, 8), seed=9)
        transfer = {"fgsm": attack(fgsm, 0.1, "linf", "transfer", ["transfer"])}
        row = only(evaluate(model, x, y, transfer, seed=0, surrogate=surrogate))
        moved = fgsm(surrogate, x, y, random=None, epsilon=0.1)
        assert row["correct"] == int((model(moved).argmax(1) == y).sum())
        assert row["note"] == "transfer attack from a surrogate: no white-box claim"
        assert not row["unreliable"]

    def test_float64_models_and_models_without_parameters(self) -> None:
        x, y = images(shape=(1, 2, 2))
        single = only(evaluate(linear((1, 2, 2)), x, y, CLEAN, seed=0))
        double = only(evaluate(linear((1, 2, 2)).double(), x, y, CLEAN, seed=0))
        assert single["correct"] == double["correct"]
        assert only(evaluate(nn.Flatten().eval(), x, y, CLEAN, seed=0))["n"] == 60


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
        assert row["out_of_budget"]
        assert words in row["note"]
        assert torch.equal(x, before)

    def test_one_image_in_a_thousand_is_enough(self) -> None:
        x, y = images(1000)

        def change(x: Tensor, epsilon: float) -> Tensor:
            x[0, 0, 0, 0] = (x[0, 0, 0, 0] + 0.5) % 1
            return x

        row = only(evaluate(linear((1, 8, 8)), x, y, cheat(change), seed=0))
        assert row["out_of_budget"]
        assert row["note"].startswith("1 of 1000 images break the rules")

    def test_the_budget_is_of_the_declared_norm(self) -> None:
        x, y = images()
        x = x * 0.5

        def change(x: Tensor, epsilon: float) -> Tensor:
            return x + 0.99 * epsilon  # within the linf ball, eight times too far in l2

        assert not only(evaluate(linear((1, 8, 8)), x, y, cheat(change, "linf"), seed=0))["out_of_budget"]
        assert only(evaluate(linear((1, 8, 8)), x, y, cheat(change, "l2"), seed=0))["out_of_budget"]

    def test_labels_cannot_be_rewritten(self) -> None:
        x, y = images()

        def function(model: nn.Module, x: Tensor, y: Tensor, *, random: object) -> Tensor:
            y.copy_(model(x).argmax(1))
            return x

        honest = only(evaluate(linear((1, 8, 8)), x, y, CLEAN, seed=0))
        assert (
            only(evaluate(linear((1, 8, 8)), x, y, {"a": Threat(function, "attack")}, seed=0))["correct"]
            == (honest["correct"])
        )

    def test_another_shape_is_an_error(self) -> None:
        x, y = images()
        with pytest.raises(ConfigurationError, match="of the shape it was given"):
            list(evaluate(linear((1, 8, 8)), x, y, cheat(lambda x, eps: x[:3]), seed=0))


class TestMaskedGradients:
    def test_a_threshold_net_is_not_robust_but_unattacked(self) -> None:
        (x, y), hidden = images(), linear((1, 8, 8), classes=16)
        model = nn.Sequential(hidden, HardThreshold(), nn.Linear(16, 4)).eval()
        rows = list(evaluate(model, x, y, {**CLEAN, **white_box()}, seed=0, batch_size=9))
        assert rows[1]["accuracy"] == rows[0]["accuracy"]
        assert rows[1]["zero_gradient_fraction"] == 1.0
        assert rows[1]["unreliable"]
        assert (
            rows[1]["note"] == "100 % of the input gradients are exactly zero: this row says nothing about robustness"
        )

    def test_frozen_threshold_net_has_no_graph_at_all(self) -> None:
        (x, y), model = (
            images(),
            nn.Sequential(linear((1, 8, 8)), HardThreshold()).eval().requires_grad_(False),
        )
        row = only(evaluate(model, x, y, white_box(), seed=0))
        assert row["zero_gradient_fraction"] == 1.0
        assert row["unreliable"]

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
        assert row["zero_gradient_fraction"] == pytest.approx(masked)
        assert row["unreliable"] is unreliable
        assert (f"{100 * masked:.0f} % of the input gradients" in row["note"]) is unreliable

    def test_a_masked_surrogate_spoils_a_transfer_attack(self) -> None:
        x, y = images()
        surrogate = nn.Sequential(linear((1, 8, 8)), HardThreshold(), nn.Linear(4, 4)).eval()
        transfer = {"fgsm": attack(fgsm, 0.1, "linf", "transfer", ["transfer"])}
        row = only(evaluate(linear((1, 8, 8)), x, y, transfer, seed=0, surrogate=surrogate))
        assert row["unreliable"]
        assert "no white-box claim; 100 % of" in row["note"]

    def test_an_attack_that_asks_for_no_gradient_does_not_pass_for_one(self) -> None:
        x, y = images()

        def idle(model: nn.Module, x: Tensor, y: Tensor, *, random: object, epsilon: float) -> Tensor:
            model(x)
            return x

        row = only(evaluate(linear((1, 8, 8)), x, y, white_box(idle), seed=0))
        assert row["zero_gradient_fraction"] is None
        assert row["unreliable"]
        assert "asked for no input gradient" in row["note"]

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
            assert row["zero_gradient_fraction"] == share

    def test_the_watch_is_taken_down(self) -> None:
        (x, y), model = images(), linear((1, 8, 8))

        def broken(model: nn.Module, x: Tensor, y: Tensor, *, random: object, epsilon: float) -> Tensor:
            raise RuntimeError("broken")

        list(evaluate(model, x, y, white_box(), seed=0))
        with pytest.raises(RuntimeError, match="broken"):
            list(evaluate(model, x, y, white_box(broken), seed=0))
        assert not model._forward_pre_hooks


def yaml_files() -> tuple[list[str], list[str]]:
    """Threats, and presets, which are lists of threats. A certificate, which changes no image, and a set of images,
    which needs a file, have tests of their own."""
    own = {"certify", "adversarial_set"}
    files = sorted(path for path in (CONF / "threat").glob("*.yaml") if path.stem not in own)
    presets = [path.stem for path in files if "\ndefaults:" in "\n" + path.read_text()]
    return [path.stem for path in files if path.stem not in presets], presets


THREATS, PRESETS = yaml_files()
OPTIONAL = {"hopskipjump": "foolbox"}  # what has to be installed for it
BATCH_DEPENDENT = {"hopskipjump"}  # by their documentation: foolbox draws its random numbers for a batch


class TestEveryYAML:
    """Whatever lies in conf/threat works on every kind of image, reproducibly, within its rules."""

    @staticmethod
    def threats(name: str, folder: Path) -> dict[str, Threat]:
        search = f"hydra: {{searchpath: ['file://{CONF}']}}"
        (folder / "main.yaml").write_text(f"defaults: [_self_, {{threat: {name}}}]\n{search}\n")
        with initialize_config_dir(str(folder), version_base="1.3"):
            return {str(key): instantiate(node) for key, node in compose("main").threat.items()}

    @pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 64, 64)])
    @pytest.mark.parametrize("name", THREATS)
    def test_runs(self, name: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
        pytest.importorskip(OPTIONAL.get(name, "torch"))
        threats = self.threats(name, tmp_path)
        assert threats
        x, y = images(6, shape)
        y[::2] = linear(shape)(x[::2]).argmax(1)  # an attack may leave an image alone that is classified wrongly
        surrogates = sorted({name for threat in threats.values() for name in threat.surrogates or ["some"]})
        settings = {"seed": 3, "surrogate": {name: linear(shape, seed=1) for name in surrogates}}
        whole = list(evaluate(linear(shape), x, y, threats, **settings))
        batch = 6 if name in BATCH_DEPENDENT else 4
        parts = list(evaluate(linear(shape), x, y, threats, batch_size=batch, **settings))
        assert len(whole) == len(trials(threats, surrogates))
        for left, right in zip(whole, parts, strict=True):
            assert not left["out_of_budget"], left["note"]
            assert (left["max_linf"] == 0) == (left["kind"] == "clean")
            for field in set(FIELDS) - {"seconds"}:
                expected = right[field]
                assert left[field] == (pytest.approx(expected, rel=1e-5) if type(expected) is float else expected)

    @pytest.mark.parametrize("name", sorted(set(THREATS) - BATCH_DEPENDENT))
    def test_images_depend_on_seed_and_index_alone(self, name: str, tmp_path: Path) -> None:
        (x, y), model, chosen = images(12), linear((1, 8, 8)), torch.tensor([9, 4, 4])
        for threat in self.threats(name, tmp_path).values():
            for _, parameters in threat.levels:
                whole = threat.function(model, x, y, random=ImageRandom(3, torch.arange(12)), **parameters)
                some = threat.function(model, x[chosen], y[chosen], random=ImageRandom(3, chosen), **parameters)
                torch.testing.assert_close(whole[chosen], some, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_are_made_of_them(self, name: str, tmp_path: Path) -> None:
        """And where a preset changes the epsilons, those in one norm are the same."""
        threats = self.threats(name, tmp_path)
        assert set(threats) <= set(THREATS)
        for norm in ("linf", "l2"):
            assert len({tuple(e for e, _ in each.levels) for each in threats.values() if each.norm == norm}) <= 1

    def test_corruptions_grow_with_severity(self, tmp_path: Path) -> None:
        """On smooth pictures. Glass blur's steps are not ordered in size: only its ends are compared.

        Elastic transform's levels move the pixels less and less, but tear them apart ever more; test_corruptions
        looks at that.
        """
        grid = torch.linspace(0, 6, 28)
        x = 0.5 + 0.4 * torch.sin(grid[:, None] + torch.arange(20)[:, None, None]) * torch.cos(2 * grid)
        rows = list(
            evaluate(
                linear((1, 28, 28)),
                x[:, None],
                torch.zeros(20, dtype=torch.int64),
                self.threats("corruptions_all", tmp_path),
                seed=0,
            )
        )
        for name in {row["threat"] for row in rows} - {"elastic_transform"}:
            sizes = [row["mean_l2"] for row in rows if row["threat"] == name]
            assert sizes[-1] > sizes[0]
            assert sizes == sorted(sizes) or name == "glass_blur"


class TestRefusals:
    """Every refusal comes at the call, before any row is computed."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"x": torch.rand(60, 8, 8)}, "float tensor"),
            ({"x": torch.zeros(60, 1, 8, 8, dtype=torch.uint8)}, "float tensor"),
            ({"x": torch.rand(0, 1, 8, 8), "y": torch.zeros(0, dtype=torch.int64)}, "n >= 1"),
            ({"x": torch.rand(60, 1, 8, 8) * 255}, r"within \[0, 1\]"),
            ({"x": torch.full((60, 1, 8, 8), torch.nan)}, r"within \[0, 1\]"),
            ({"y": torch.zeros(59, dtype=torch.int64)}, "y must be int64"),
            ({"y": torch.zeros(60)}, "y must be int64"),
            ({"index": torch.arange(3)}, "index must be int64"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"threats": {}}, "no threats"),
            ({"threats": {"f": attack(fgsm, 0.1, "linf", "transfer", ["transfer"])}}, "f needs a surrogate"),
            ({"model": linear((1, 8, 8)).train()}, "model must be in eval mode"),
            ({"surrogate": linear((1, 8, 8)).train()}, "surrogate must be in eval mode"),
            ({"surrogate": linear((1, 8, 8)).double()}, "surrogate must be where the model is"),
            ({"model": linear((1, 8, 8)).half()}, "too coarse"),
        ],
    )
    def test_bad_input(self, change: dict[str, Any], words: str) -> None:
        x, y = images()
        good: dict[str, Any] = {"model": linear((1, 8, 8)), "x": x, "y": y, "threats": CLEAN, "seed": 0}
        with pytest.raises(ConfigurationError, match=words):
            evaluate(**{**good, **change})


class TestTable:
    @pytest.fixture
    def rows(self) -> list[Row]:
        x, y = images()
        rows = list(evaluate(linear((1, 8, 8)), x, y, {**CLEAN, **white_box()}, seed=0, run="a,b"))
        rows.append({**copy.copy(rows[0]), "note": 'two\nlines, "quoted"', "mean_l2": math.inf, "unreliable": True})
        return rows

    def test_round_trip(self, rows: list[Row], tmp_path: Path) -> None:
        path = tmp_path / "new" / "results.csv"
        write_rows(path, rows)
        assert read_rows(path) == rows
        assert path.read_text().splitlines()[0] == ",".join(FIELDS)
        write_rows(path, [])
        assert read_rows(path) == []
        assert [p.name for p in path.parent.iterdir()] == ["results.csv"]

    def test_a_failed_write_leaves_the_old_table(
        self, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "results.csv"
        write_rows(path, rows)
        old = path.read_bytes()

        class Bad:
            def __str__(self) -> str:
                raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            write_rows(path, [rows[0], {**rows[0], "note": Bad()}])
        with pytest.raises(ConfigurationError, match="must have the fields"):
            write_rows(path, [{"run": "a"}])
        assert path.read_bytes() == old
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda text: "", "its header is"),
            (lambda text: text.replace("accuracy", "acc", 1), "its header is"),
            (
                lambda text: text.replace(",False,False,", ",False,no,", 1),
                "line 2: (masked|randomized|targeted) cannot be 'no'",
            ),
            (lambda text: text.replace(",60,", ",sixty,", 1), "line 2: n cannot be 'sixty'"),
            (lambda text: text.splitlines()[0] + "\na,b,c\n", "36 cells expected, got 3"),
            (lambda text: text[: text.rindex('"')], "cannot be read"),
        ],
    )
    def test_malformed(self, rows: list[Row], tmp_path: Path, spoil: Callable[[str], str], words: str) -> None:
        path = tmp_path / "results.csv"
        write_rows(path, rows)
        path.write_text(spoil(path.read_text()))
        with pytest.raises(CheckpointError, match=words):
            read_rows(path)

    def test_missing_or_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_rows(tmp_path / "nowhere.csv")
        (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_rows(tmp_path / "binary.csv")


def test_levels_that_presets_share_and_threats_of_another_name_have_rows_of_their_own() -> None:
    presets = {"one": [{"std": 0.1}, {"std": 0.2}], "two": [{"std": 0.1}, {"std": 0.3}]}
    found = [trials({name: corruption(gaussian_noise, preset, presets, [1, 2])}) for name, preset in NAMED]
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    examination = Examination(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    prints = [examination.fingerprint(trial) for group in found for trial in group]
    assert len(set(prints)) == len(prints)


NAMED = [("noise", "one"), ("noise", "two"), ("more", "one")]


def test_the_judges_noise_belongs_to_the_image() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    model = NoiseAveraged(network, Gaussian(), (1.0,), 1).eval()
    x, y, index = torch.rand(1, 1, 2, 2).repeat(60, 1, 1, 1), torch.zeros(60, dtype=torch.int64), torch.arange(60) + 7
    examination = Examination(model, x, y, 5, index=index, batch_size=9)
    correct = examination.judge(Trial("clean", CLEAN["clean"], None, {})).evidence.correct
    assert 0 < correct.sum() < 60
    assert correct.tolist() == (model(x, ImageRandom(5, index)).argmax(1) == 0).tolist()


def test_a_thousandth_beyond_epsilon_is_out_of_budget() -> None:
    def beyond(model: Any, x: Tensor, y: Tensor, *, random: Any, epsilon: float, share: float) -> Tensor:
        return x + epsilon * share

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    examination = Examination(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    for share, out in ((1.0, False), (1.001, True)):
        threat = attack(beyond, [0.1], "linf", "none", ["none"], share=share)
        assert examination.judge(trials({"beyond": threat})[0]).row["out_of_budget"] is out


def test_how_gradients_are_computed_is_part_of_the_fingerprint() -> None:
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    examination = Examination(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    options: list[dict[str, Any]] = [{}, {"smoothing": 0.5}, {"copies": 8}, {"eot": 2}]
    found = [attack(fgsm, [0.1], "linf", "autograd", ["autograd"], gradient=each) for each in options]
    assert len({examination.fingerprint(trials({"fgsm": threat})[0]) for threat in found}) == len(options)


def test_parameters_bound_to_a_function_are_part_of_the_fingerprint() -> None:
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    examination = Examination(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x, y, 0)
    bound = [functools.partial(gaussian_noise, std=std) for std in (0.1, 0.2)]
    prints = [examination.fingerprint(Trial("t", Threat(f, "corruption"), None, {})) for f in bound]
    assert prints[0] != prints[1]
