"""glr-diagnose: it finds what is there. Biases and variances are known in closed form; then the command."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.baselines import NoBaseline
from glr_lightning.cli.diagnose import main
from glr_lightning.config import TRUSTED, build, compose
from glr_lightning.diagnosis import figure as figure_module
from glr_lightning.diagnosis.diagnose import with_trained_sigma
from glr_lightning.diagnosis.figure import variance_against_time
from glr_lightning.diagnosis.finding import (
    BIASED,
    DECLARED,
    NO_REFERENCE,
    REFUSED,
    UNBIASED,
    UNCLEAR,
    Finding,
    findings_csv,
    read_findings,
)
from glr_lightning.diagnosis.measure import Contender, Measured, measure
from glr_lightning.diagnosis.overrides import estimator_node
from glr_lightning.diagnosis.statistics import (
    Moments,
    Reference,
    alignment,
    compare,
    critical_z,
    estimated_reference,
    layers_of,
    z_scores,
)
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.estimators import Backprop, Estimate, Estimator, LikelihoodRatio, Objective
from glr_lightning.estimators.bound import Bound
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.reporting.style import png
from glr_lightning.runs.trained_run import load_run
from glr_lightning.sampling import Antithetic, Independent
from glr_lightning.training.fit import train
from tests.checks.cli_runner import Outcome, run_cli
from tests.checks.estimator_cases import SIGMA, Margin, X, Y, reference, small_network
from tests.checks.zscores import assert_mean

GENERATOR = torch.Generator()
LR = LikelihoodRatio(sigma=SIGMA, copies=4)


@final
@dataclass(frozen=True)
class Scaled(Estimator):
    """An estimate times a factor: the bias of half an estimate, or of leave-one-out across antithetic pairs."""

    inner: Estimator = LR
    factor: float = 1.0
    declared: str = ""

    family = LR.family
    needs_derivatives = False

    @property
    def objective(self) -> Objective:
        return self.inner.objective

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        return self.inner.plan(network, loss)

    def bias(self, network: nn.Module) -> str:
        return self.declared

    def _require(self, bound: Bound) -> None:
        self.inner._require(bound)

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        self.inner._require_effects(bound, x)

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Any]:
        return self.inner._draws(bound, x, generator)

    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Any]) -> Estimate:
        estimate = self.inner._step(bound, x, y, noise)
        return replace(estimate, gradients={name: self.factor * g for name, g in estimate.gradients.items()})


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streamed(draws: Tensor, probes: Tensor) -> Moments:
    moments = Moments(probes)
    for draw in draws:
        moments.add(draw)
    return moments


# ---- numerics --------------------------------------------------------------------------------------------------------


def test_streamed_moments_equal_direct_ones() -> None:
    draws, probes = 3 + normal(50, 7), normal(2, 7, seed=1)
    moments = streamed(draws, probes)
    assert moments.n == 50
    torch.testing.assert_close(moments.mean, draws.mean(0))
    assert moments.variance == pytest.approx(float(draws.var(0).sum()))
    torch.testing.assert_close(moments.products, draws @ probes.T)
    torch.testing.assert_close(moments.lengths, draws.norm(dim=1))


def test_z_scores_are_standard_normal_only_where_the_means_agree() -> None:
    z = torch.stack([z_scores(2 * normal(20, 3, seed=s), normal(30, 3, seed=s + 1000)) for s in range(1000)]).flatten()
    assert_mean(z[:, None], 0.0)
    assert_mean(z[:, None] ** 2, 1.0)
    assert float(z_scores(1 + normal(100, 1), torch.zeros(1, 1, dtype=torch.float64)).min()) > 5
    same = torch.ones(20, 1, dtype=torch.float64)
    assert float(z_scores(same, same[:1])) == 0  # neither varies
    assert float(z_scores(same, 1.5 * same[:1])) < -30
    assert float(z_scores(same, same[:1] + 1e-6, rounding=1e-5)) == 0


def test_the_critical_value_is_sidaks() -> None:
    assert critical_z(1) == pytest.approx(2.5758, abs=1e-4)
    largest = normal(4000, 10).abs().max(1).values
    assert_mean((largest > critical_z(10)).double()[:, None], 0.01)


def test_an_estimated_reference_has_unbiased_lengths() -> None:
    """Of |mean|^2 alone the expectation would be 4 + 30 / 20."""
    gradient = torch.zeros(30, dtype=torch.float64)
    gradient[0] = 2.0
    lengths, halves = [], torch.zeros(1, 30, dtype=torch.float64)
    for seed in range(300):
        draws = gradient + normal(20, 30, seed=seed)
        found = Reference.estimated(streamed(draws[:10], halves[:0]), streamed(draws[10:], halves))
        torch.testing.assert_close(found.mean, draws.mean(0))
        lengths.append(float(streamed(draws[:10], halves).mean @ streamed(draws[10:], halves).mean))
        assert found.squared_length == pytest.approx(max(lengths[-1], 0.0))
    assert_mean(torch.tensor(lengths)[:, None], 4.0)


def test_alignment_is_not_diluted_by_noise_and_is_none_for_mere_noise() -> None:
    truth = Reference.exact(torch.ones(400, dtype=torch.float64), GENERATOR)
    tilted = torch.ones(400, dtype=torch.float64)
    tilted[:200] = 0.0  # 45 degrees
    noisy = streamed(tilted + 2 * normal(20, 400), truth.probes)
    assert alignment(noisy, truth) == pytest.approx(0.5**0.5, abs=0.05)
    assert float(noisy.mean @ truth.mean) / float(noisy.mean.norm() * truth.mean.norm()) < 0.65
    assert alignment(streamed(normal(20, 400), truth.probes), truth) is None


# ---- estimators with a known bias and variance -----------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "estimated"])
def test_an_unbiased_estimator_passes_and_planted_biases_are_found(exact: bool) -> None:
    network, loss = small_network(HardThreshold()), ZeroOne()
    layers = layers_of(network)
    gradient = reference(network, LR.noise, LR.injection, loss)
    if exact:
        expected = {
            layer: Reference.exact(torch.cat([gradient[n].flatten() for n in names]), GENERATOR)
            for layer, names in layers.items()
        }
    else:
        generator = torch.Generator().manual_seed(3)
        many = replace(LR, copies=256)
        expected = estimated_reference(
            lambda: many.estimate(network, loss, X, Y, generator=generator), layers, 60, GENERATOR
        )
    factors = {"right": 1.0, "half": 0.5, "pairs": 4 / 3}
    contenders = [Contender(name, 4, Scaled(factor=factor), expected) for name, factor in factors.items()]
    measured = measure(contenders, network, loss, X, Y, repetitions=1200, seed=0)
    bound = critical_z(3 * 2 * 9)
    for (name, factor), result in zip(factors.items(), measured, strict=True):
        assert result.forwards == 5 * len(X)
        assert result.milliseconds > 0
        for layer in layers:
            found = compare(result.moments[layer], expected[layer], 1e-12)
            assert found is not None
            assert (found.z > bound) is (name != "right"), (name, layer, found)
            assert abs(found.relative_bias - (factor - 1)) < 4 * found.relative_bias_error


def test_the_relative_variance_is_that_of_the_closed_form() -> None:
    """L = c + sigma a.z with a = (-1, 1): g = (L / sigma) z (x, 1)^T has mean a (x, 1)^T and, with
    E[(a.z)^2 |z|^2] = |a|^2 4, the relative variance (c^2 / sigma^2 + 3) / K."""
    network = nn.Sequential(nn.Linear(3, 2)).double()
    network[0].weight.data = torch.tensor([[0.5, -0.8, 0.3], [0.2, 0.4, -0.6]], dtype=torch.float64)
    network[0].bias.data = torch.tensor([0.1, -0.2], dtype=torch.float64)
    x, y, sigma, copies = X[:1], Y[:1], 0.7, 4
    logits = network(x).detach()[0]
    c = float(logits[1] - logits[0])
    ahead = torch.cat([x[0], torch.ones(1, dtype=torch.float64)])
    gradient = torch.cat(
        [torch.outer(torch.tensor([-1.0, 1.0], dtype=torch.float64), x[0]).flatten(), torch.tensor([-1.0, 1.0])]
    )
    plain = LikelihoodRatio(sigma=sigma, copies=copies, sampling=Independent(), baseline=NoBaseline(), score="plain")
    expected = {"0": Reference.exact(gradient, GENERATOR)}
    assert expected["0"].squared_length == pytest.approx(2 * float(ahead @ ahead))
    (result,) = measure(
        [Contender("plain", copies, plain, expected)], network, Margin(), x, y, repetitions=4000, seed=0
    )
    found = compare(result.moments["0"], expected["0"], 1e-12)
    assert found is not None
    assert found.relative_variance == pytest.approx((c**2 / sigma**2 + 3) / copies, rel=0.08)
    assert found.z < critical_z(9)
    assert 0 < found.cosine < 1


def test_estimates_that_are_all_zero_are_no_more_certain_than_the_reference() -> None:
    """So a noisy reference leaves it open whether they are biased."""
    gradient, noise = torch.tensor([2.0, 0.0]).double(), torch.tensor([[1.0], [-1.0]])
    exact = Reference.exact(gradient, GENERATOR)
    noisy = replace(exact, along=exact.along + noise)  # the mean of two draws: relative error 1 / 2
    nothing = Moments(noisy.probes)
    for _ in range(3):
        nothing.add(torch.zeros(2).double())
    found = compare(nothing, noisy, 0.0)
    assert found is not None
    assert (found.relative_bias, found.relative_variance) == (-1, 0)
    assert found.relative_bias_error == pytest.approx(0.5)


def test_the_error_of_a_reference_is_that_of_the_mean_of_all_draws() -> None:
    draws = torch.tensor([3.0, 0, 0, 0]) + 2 * normal(2000, 4)  # the covariance has the trace 16
    found = Reference.estimated(streamed(draws[:800], draws[:0]), streamed(draws[800:], normal(1, 4)))
    assert found.error == pytest.approx((16 / 2000) ** 0.5 / 3, rel=0.06)  # of 4,800 squares: 2 % the root's error


def test_the_time_of_an_estimate_is_the_median_in_milliseconds() -> None:
    assert Measured({}, [0.003, 0.001, 0.1]).milliseconds == pytest.approx(3)


def test_an_estimator_without_noise_is_compared_up_to_rounding() -> None:
    network, loss = small_network(nn.Tanh()), CrossEntropy()
    generator = torch.Generator()
    gradients = Backprop().estimate(network, loss, X, Y, generator=generator).gradients
    expected = {
        layer: Reference.exact(torch.cat([gradients[n].flatten() for n in names]), generator)
        for layer, names in layers_of(network).items()
    }
    for factor, z in ((1.0, 0.0), (0.99, 37.0)):
        contender = Contender("backprop", None, Scaled(Backprop(), factor), expected)
        (result,) = measure([contender], network, loss, X, Y, repetitions=20, seed=0)
        found = compare(result.moments["0"], expected["0"], 1e-12)
        assert found is not None
        assert (found.z, found.relative_bias) == (z, pytest.approx(factor - 1))
        assert found.relative_variance == 0
        assert found.cosine == pytest.approx(1.0)


# ---- estimators relative to a configuration --------------------------------------------------------------------------


def test_an_override_changes_what_it_names_and_nothing_else() -> None:
    options = ["estimator=likelihood_ratio", "sampling=antithetic", "copies=8", "sigma=0.3", "noise=laplace"]
    base = compose(["experiment=lrs", *options, "estimator.score=plain", "estimator.chunk=8"])
    same = estimator_node(base, ["estimator=likelihood_ratio"])
    assert same == base["estimator"]
    changed = estimator_node(base, ["sampling=independent", "sigma=[0.1,0.2]", "estimator.score=auto"])
    assert changed == same | {
        "sampling": {"_target_": "glr_lightning.sampling.Independent"},
        "sigma": [0.1, 0.2],
        "score": "auto",
    }
    other = build(estimator_node(base, ["estimator=noisy_backprop"]))
    assert (type(other).__name__, other.sigma, type(other.noise).__name__) == ("NoisyBackprop", 0.3, "Laplace")


@pytest.mark.parametrize(
    "override", ["data=mnist", "activation=sigmoid", "estimator", "estimator=none", "sampling=none"]
)
def test_overrides_that_are_not_the_estimators_are_refused(override: str) -> None:
    with pytest.raises(ConfigurationError):
        estimator_node(compose([]), [override])


def test_nothing_in_a_run_is_interpolated() -> None:
    base = compose([])
    base["estimator"]["noise"] = {"_target_": "glr_lightning.noise.StudentT", "nu": "${oc.env:HOME}"}
    node = estimator_node(base, ["estimator=likelihood_ratio"])
    assert node["noise"]["nu"] == "${oc.env:HOME}"
    for overrides in (["estimator=hybrid", "sigma=2"], ["sigma=2"]):
        assert estimator_node(base, overrides)["noise"]["nu"] == "${oc.env:HOME}"
    with pytest.raises(ConfigurationError, match="is refused"):
        build(node)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_findings_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = [
        Finding(
            "linear1", "a, b", 4, UNBIASED, z=1.5, critical=3.0, relative_variance=0.1, forwards=7, milliseconds=2.0
        ),
        Finding("", "c", None, REFUSED, note='it "cannot"'),
    ]
    (tmp_path / "diagnosis.csv").write_text(findings_csv(found))
    assert read_findings(tmp_path / "diagnosis.csv") == found
    (tmp_path / "diagnosis.csv").write_text(findings_csv(found).replace(",outcome,", ",verdict,", 1))  # as 0.4 wrote it
    assert read_findings(tmp_path / "diagnosis.csv") == found
    (tmp_path / "diagnosis.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CheckpointError, match="no table of a diagnosis"):
        read_findings(tmp_path / "diagnosis.csv")


def test_the_figure_holds_eight_estimators_and_those_without_variance(tmp_path: Path) -> None:
    found = [
        Finding(
            layer,
            f"estimator {e}",
            k,
            DECLARED if e == 2 else UNBIASED,
            relative_variance=e * e / k,
            milliseconds=k * e + 1.0,
        )
        for layer in ("linear1", "linear2")
        for e in range(8)
        for k in (4, 16, 64)
    ]
    (tmp_path / "figure.png").write_bytes(variance_against_time(found))
    image = imread(tmp_path / "figure.png")
    assert image.shape[1] > image.shape[0] > 300


@pytest.mark.parametrize("variances", [{"linear1": 0.0, "linear2": None}, {"linear1": 0.0, "linear2": 2.0}], ids=str)
def test_the_figure_says_where_nothing_varies(monkeypatch: pytest.MonkeyPatch, variances: dict[str, float]) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figure_module, "png", lambda figure: drawn.append(figure) or png(figure))
    found = [
        Finding(layer, "backprop", None, UNBIASED, relative_variance=variance, milliseconds=1.0)
        for layer, variance in variances.items()
    ]
    assert variance_against_time(found).startswith(b"\x89PNG")
    (figure,) = drawn
    for axes, variance in zip(figure.axes, variances.values(), strict=True):
        assert axes.get_yscale() == ("log" if variance else "linear")
        assert any(text.get_text() == "no variance to show" for text in axes.texts) == (not variance)
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == (["backprop", "equal variance × ms"] if any(variances.values()) else ["backprop (no variance)"])


def test_the_lines_of_the_figure_have_equal_variance_times_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figure_module, "png", lambda figure: drawn.append(figure) or png(figure))
    variance_against_time(
        [
            Finding("linear1", f"estimator {e}", 4, UNBIASED, relative_variance=10.0**e, milliseconds=1.0 + e)
            for e in range(4)
        ]
    )
    (axes,) = drawn[0].axes
    diagonals = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "--"]
    labels = [text for text in axes.texts if text.get_text().strip()]
    assert len(diagonals) >= len(labels) >= 3
    for ends in diagonals:
        assert ends.prod(axis=1) == pytest.approx(10 ** round(math.log10(ends[0].prod())))
    for label in labels:
        x, y = label.get_position()
        assert x * y == pytest.approx(float(label.get_text()))


# ---- the command -----------------------------------------------------------------------------------------------------

FAST = ["copies=[4,8]", "repetitions=20", "reference.copies=64", "reference.repetitions=20", "batch_size=32"]


@pytest.fixture
def diagnose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        return run_cli(main, [*arguments, "progress=false"], monkeypatch, capsys)

    return call


@pytest.mark.slow
def test_an_untrained_experiment_is_diagnosed(diagnose: Any, tmp_path: Path) -> None:
    outcome = diagnose("experiment=lrt", "network.hidden=[6]", *FAST)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "diagnosis"
    assert {p.name for p in folder.iterdir()} == {"diagnosis.csv", "diagnosis.md", "diagnosis.png", "environment.json"}
    found = read_findings(folder / "diagnosis.csv")
    measured = [f for f in found if f.outcome not in (REFUSED, NO_REFERENCE)]
    assert {(f.estimator, f.copies) for f in measured} >= {
        (e, k) for e in ("local_expectation", "published", "joint", "layerwise") for k in (4, 8)
    }
    assert {f.layer for f in measured} == {"linear1", "linear2"}
    assert all(f.outcome in (UNBIASED, UNCLEAR, DECLARED) for f in measured)
    assert {f.estimator for f in found if f.outcome == NO_REFERENCE} == {"forward_gradient"}  # here backprop has none
    for f in measured:
        assert f.relative_variance is not None
        assert f.milliseconds is not None
        assert f.variance_time == pytest.approx(f.relative_variance * f.milliseconds)
    joint = {f.copies: f for f in measured if (f.layer, f.estimator) == ("linear2", "joint")}
    assert (joint[4].forwards, joint[8].forwards) == (5 * 32, 9 * 32)
    assert any(f.outcome == REFUSED and f.estimator == "noisy_backprop" for f in found)
    for text in (outcome.out, (folder / "diagnosis.md").read_text()):
        assert "linear2:" in text
        assert "noisy_backprop refused: backpropagation cannot train through" in text
        assert "Reference of joint" in text
        assert text.count("local_expectation: its reference is of its own kind") == 1
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["threads"] == 1
    assert environment["command"].startswith("glr-diagnose experiment=lrt")

    def draws() -> list[Any]:
        with (folder / "diagnosis.csv").open() as file:
            return [
                {k: v for k, v in row.items() if k not in ("milliseconds", "variance_time")}
                for row in csv.DictReader(file)
            ]

    before = draws()
    assert diagnose("experiment=lrt", "network.hidden=[6]", *FAST).code == 0
    assert draws() == before  # but for the time the same numbers


@pytest.mark.slow
def test_a_trained_run_is_diagnosed_as_it_was_configured(diagnose: Any, tmp_path: Path) -> None:
    config = compose(["experiment=lrs", "network.hidden=[6]", "epochs=2", "copies=4", "sigma=0.4", "progress=false"])
    train(config, tmp_path / "run")
    entries = (
        "estimators=[backprop,{sharp:'estimator=noisy_backprop sigma=0.1'},noisy_backprop,"
        "{pinned:'estimator=likelihood_ratio injection=layerwise copies=8'},"
        "{odd:'estimator=likelihood_ratio sampling=antithetic estimator.copies=3'}]"
    )
    outcome = diagnose("run=run", entries, "checkpoint=last", "out=there/d", *FAST)
    assert outcome.code == 0, outcome.err
    found = read_findings(tmp_path / "there/d/diagnosis.csv")
    by = {(f.estimator, f.copies, f.layer): f for f in found}
    assert {key[:2] for key in by} == {
        ("backprop", None),
        ("sharp", 4),
        ("sharp", 8),
        ("noisy_backprop", 4),
        ("noisy_backprop", 8),
        ("pinned", 8),
        ("odd", 3),
    }
    exact = by["backprop", None, "linear1"]
    assert (exact.objective, exact.outcome, exact.z, exact.relative_variance) == ("noise_free", UNBIASED, 0.0, 0.0)
    assert by["odd", 3, ""].outcome == REFUSED
    assert by["pinned", 8, "linear1"].objective == "layerwise"
    assert not [f for f in found if f.outcome == BIASED]
    assert "Reference of joint, sigma=0.1" in outcome.out  # another sigma is another objective


def test_backpropagation_alone_needs_no_reference_of_the_smoothed_objective(diagnose: Any, tmp_path: Path) -> None:
    outcome = diagnose("experiment=bp", "network.hidden=[6]", "estimators=[backprop]", *FAST)
    assert outcome.code == 0, outcome.err
    assert "Reference of joint" not in outcome.out
    found = read_findings(tmp_path / "diagnosis/diagnosis.csv")
    assert [(f.outcome, f.relative_variance, f.alignment) for f in found] == [(UNBIASED, 0.0, None)] * 2
    assert imread(tmp_path / "diagnosis/diagnosis.png").size
    assert "known to no better than ± 30 %, the outcome is too noisy to tell" in " ".join(outcome.out.split())


def test_the_command_flags_leave_one_out_across_antithetic_pairs(
    diagnose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted factor K / (K - 1), of the plain score, is 4/3 at K = 4, and 1.004 in the reference."""
    monkeypatch.setattr(Antithetic, "group", Independent.group)
    ratio = "estimator=likelihood_ratio injection=layerwise sampling=antithetic estimator.score=plain"
    options = ["sigma=1.0", "batch_size=128", "network.hidden=[6]", "network.centre=0"]
    more = ["repetitions=300", "reference.copies=256", "copies=4"]
    outcome = diagnose("experiment=lrt", f"estimators=[{{layerwise:'{ratio}'}}]", *options, *more)
    assert outcome.code == 0, outcome.err
    for f in read_findings(tmp_path / "diagnosis/diagnosis.csv"):
        assert f.outcome == BIASED
        assert f.relative_bias == pytest.approx(1 / 3, abs=0.1)
    assert "BIASED: layerwise" in outcome.out


REFUSED_INPUT = {
    "nothing to diagnose": ([], "what is to be diagnosed?"),
    "both": (["run=runs/x", "experiment=lrt"], "leave out experiment"),
    "a run and an option of training": (["run=runs/x", "sigma=2"], "leave out sigma"),
    "no such run": (["run=nowhere"], "matches nothing"),
    "too few repetitions": (["experiment=lrt", "repetitions=19"], "repetitions must be a whole number of at least 20"),
    "too few for the reference": (
        ["experiment=lrt", "reference.repetitions=3"],
        "reference.repetitions must be",
    ),
    "unknown estimator": (["experiment=lrt", "estimators=[magic]"], "magic"),
    "unknown option of an estimator": (["experiment=lrt", "estimators=['estimator.magic=1']"], "magic"),
    "an override of the network": (["experiment=lrt", "estimators=['activation=relu']"], "activation=relu"),
    "no estimators": (["experiment=lrt", "estimators=[]"], "estimators must be at least one"),
    "one label twice": (["experiment=lrt", "estimators=[backprop,backprop]"], "label of its own"),
    "no estimator at all": (["experiment=lrt", "estimators=[{a:1}]"], "got"),
    "copies 0": (["experiment=lrt", "copies=[0]"], "copies"),
    "a seed below 0": (["experiment=lrt", "seed=-1"], "seed must be a whole number from 0"),
    "a folder that cannot be": (["experiment=lrt", "out=/dev/null/x"], "out=/dev/null/x must be a folder"),
    "no copies": (["experiment=lrt", "copies=[]"], "copies must be"),
    "all refuse": (["experiment=lrt", "estimators=[backprop,noisy_backprop]"], "every estimator refuses"),
    "a scale that is no number": (["experiment=lrt", "sigma=nan"], "estimator.sigma must be a number from"),
    "one of the scales": (["experiment=lrt", "sigma=[1,true]"], "estimator.sigma must be a number from"),
    "unknown device": (["experiment=lrt", "device=abacus"], "device=abacus"),
    "a reference of another objective": (
        ["experiment=lrt", "reference.estimator.joint='estimator=likelihood_ratio injection=layerwise'"],
        "is no reference",
    ),
    "unknown objective": (["experiment=lrt", "+reference.estimator.mine=backprop"], "mine"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED_INPUT.values(), ids=REFUSED_INPUT)
def test_bad_input_is_refused_in_words(arguments: list[str], words: str, diagnose: Any, tmp_path: Path) -> None:
    outcome = diagnose(*(a for a in FAST if a.split("=")[0] not in {b.split("=")[0] for b in arguments}), *arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "diagnosis").exists()


def test_a_run_is_diagnosed_with_the_sigma_that_it_was_trained_with(tmp_path: Path) -> None:
    ratio = ["estimator=likelihood_ratio", "sampling=antithetic", "copies=4", "epochs=2", "progress=false"]
    for name, options, where in (
        ("learned", ["callbacks=learned_sigma", "callbacks.learned_sigma.lr=0.3"], "learned"),
        ("scheduled", ["callbacks=annealing", "callbacks.annealing.sigma.end=0.25"], "scheduled"),
    ):
        train(compose([*ratio, *options]), tmp_path / name)
        run = load_run(tmp_path / name)
        base = with_trained_sigma(run, TRUSTED)
        if where == "learned":
            learned = [float(run.checkpoint["state_dict"][f"log_sigma.{site}"].exp()) for site in range(2)]
            assert base["estimator"]["sigma"] == pytest.approx(learned)
            assert learned[0] != 0.5
        else:
            assert base["estimator"]["sigma"] == pytest.approx(0.5 * 0.25)


def test_the_time_of_an_estimate_is_the_median_of_what_the_clock_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    durations = iter([9.0, 0.002, 0.5, 0.004])  # the first estimate is not counted

    @final
    @dataclass(frozen=True)
    class Slow(Scaled):
        def _step(self, *given: Any) -> Estimate:
            now[0] += next(durations)
            return super()._step(*given)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    network = small_network(nn.Tanh())
    (measured,) = measure([Contender("slow", 4, Slow())], network, CrossEntropy(), X, Y, repetitions=3, seed=0)
    assert measured.seconds == pytest.approx([0.002, 0.5, 0.004])
    assert measured.milliseconds == pytest.approx(4.0)
