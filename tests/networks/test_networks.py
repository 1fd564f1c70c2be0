"""The networks of conf/network: shapes, layers, refusals; trained, reloaded, attacked, certified and diagnosed."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glr_lightning.activations import HardThreshold
from glr_lightning.cli import diagnose, evaluate
from glr_lightning.config import build, compose
from glr_lightning.diagnosis.finding import NO_REFERENCE, REFUSED, UNBIASED, UNCLEAR, read_findings
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import LikelihoodRatio, LocalExpectation, Tiered
from glr_lightning.evaluation.certification import certify, largest_shift
from glr_lightning.evaluation.row import read_rows
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy
from glr_lightning.networks import Recurrence, Residual, Sine, Standardise, convnet, mlp, resnet5, rnn, vgg8
from glr_lightning.networks.blocks import groups_of
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import has_weights
from glr_lightning.runs.trained_run import load_run
from glr_lightning.training.callbacks.learned_sigma import log_scales
from glr_lightning.training.fit import train
from tests.checks.cli_runner import run_cli
from tests.checks.convolutional_cases import normalised
from tests.checks.copies_per_layer import check_copies_per_layer
from tests.checks.estimator_cases import estimate
from tests.checks.groups import options
from tests.checks.refusals import refused

SMALL: dict[str, list[str]] = {
    "mlp": ["network.hidden=[6]"],
    "convnet": ["network.channels=[3,4]", "network.kernel=3"],
    "vgg8": ["network.channels=[2,3,4]", "network.hidden=6"],
    "resnet5": ["network.channels=[3,4]"],
    "rnn": ["network.hidden=6"],
}
LAYERS = {"mlp": 2, "convnet": 3, "vgg8": 8, "resnet5": 5, "rnn": 2}
FAST = ["epochs=1", "batch_size=500", "copies=4", "progress=false", "loss=cross_entropy"]
CONVOLUTIONAL = [name for name in options("network") if name not in ("mlp", "rnn")]
MAKE: dict[str, Any] = {"convnet": convnet, "vgg8": vgg8, "resnet5": resnet5, "mlp": mlp, "rnn": rnn}
OPTIONS: dict[str, Any] = {
    "convnet": {"channels": [3, 4], "kernel": 3, "stride": 2, "hidden": []},
    "vgg8": {"channels": [2, 3, 4], "hidden": 6},
    "resnet5": {"channels": [3, 4], "stride": 2},
    "mlp": {"hidden": [6]},
    "rnn": {"rows": 1, "hidden": 6},
}


def network(name: str, shape: tuple[int, int, int] = (1, 8, 8), **other: Any) -> nn.Sequential:
    return MAKE[name](**{"image_shape": shape, "classes": 5, "activation": nn.Tanh(), **OPTIONS[name], **other})


def site_shapes(built: nn.Sequential, shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    return [tuple(v.shape[1:]) for v in Graph.of(built).clean(torch.rand(2, *shape)).preactivations]


# ---- what they are --------------------------------------------------------------------------------------------------


def test_every_network_of_the_configuration_is_here() -> None:
    assert set(options("network")) == set(SMALL) == set(LAYERS) == set(MAKE)


@pytest.mark.parametrize("name", options("network"))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 9)], ids=str)
def test_a_network_has_its_layers_in_order_and_maps_images_to_logits(name: str, shape: tuple[int, int, int]) -> None:
    built = network(name, shape)
    assert built(torch.rand(2, *shape)).shape == (2, 5)
    layers = [module for module in built.modules() if has_weights(module)]
    assert len(layers) == LAYERS[name]
    numbers = [int("".join(filter(str.isdigit, key.rsplit(".", 1)[-1]))) for key in Graph.of(built).layers]
    assert numbers == list(range(1, LAYERS[name] + 1))
    assert [type(layer) for layer in layers] == [nn.Conv2d] * sum(isinstance(m, nn.Conv2d) for m in layers) + [
        nn.Linear
    ] * sum(isinstance(m, nn.Linear) for m in layers)


def test_sizes_are_those_of_strides_and_poolings() -> None:
    shape = (3, 17, 9)
    assert site_shapes(network("convnet", shape), shape) == [(3, 9, 5), (4, 5, 3), (5,)]
    stages = [(2, 17, 9), (2, 17, 9), (3, 8, 4), (3, 8, 4), (4, 4, 2), (4, 4, 2), (6,), (5,)]
    assert site_shapes(network("vgg8", shape), shape) == stages
    assert site_shapes(network("resnet5", shape), shape) == [(3, 9, 5)] * 3 + [(4, 5, 3), (5,)]
    assert site_shapes(network("resnet5", shape, stride=1), shape) == [(3, 17, 9)] * 3 + [(4, 17, 9), (5,)]
    assert site_shapes(network("convnet", shape, kernel=4), shape)[0] == (3, 9, 5)  # an even kernel
    assert site_shapes(network("vgg8", channels=[2, 3]), (1, 8, 8))[-1] == (5,)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_normalisation_is_between_a_convolution_and_its_activation_or_sum(name: str, norm: str) -> None:
    built = network(name, norm=norm)
    modules = [node.module for node in Graph.of(built).nodes]
    for position, module in enumerate(modules):
        if isinstance(module, nn.Conv2d):
            after = modules[position + 1]
            assert isinstance(after, nn.GroupNorm)
            assert after.num_groups == (groups_of(module.out_channels) if norm == "group" else 1)
        elif isinstance(module, nn.Linear):
            assert not any(isinstance(m, nn.GroupNorm) for m in modules[position + 1 : position + 2])
    assert built(torch.rand(2, 1, 8, 8)).shape == (2, 5)


def test_groups_have_at_most_8_channels_and_all_the_same() -> None:
    for channels in (1, 2, 8, 9, 11, 12, 16, 32, 128):
        groups = groups_of(channels)
        assert channels % groups == 0
        assert channels // groups <= 8
    assert [groups_of(n) for n in (8, 12, 16, 32, 128)] == [1, 2, 2, 4, 16]


def test_the_block_of_resnet5_adds_its_input() -> None:
    built = network("resnet5")
    (block,) = [module for module in built if isinstance(module, Residual)]
    for parameter in block.body[-1].parameters():
        parameter.data.zero_()
    h = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(h), h)


@pytest.mark.parametrize("name", options("network"))
def test_centre_preprocess_and_init_are_options_of_all(name: str) -> None:
    plain, centred = network(name), network(name, centre=0.5, preprocess=Standardise(0.5, 0.25), init="paper")
    assert next(iter(centred)).std == 0.25
    shifts = Graph.of(centred).nodes
    assert len(shifts) == len(Graph.of(plain).nodes) + 1 + sum(
        isinstance(node.module, nn.Tanh) for node in Graph.of(plain).nodes
    )
    weights = torch.cat(
        [layer.weight.flatten() * (layer.weight[0].numel() + 1) ** 0.5 for layer in weighted(centred)]
    ).detach()
    assert float(weights.std()) == pytest.approx(2.0, rel=0.25)
    assert not isinstance(next(iter(network(name, preprocess=nn.Identity()))), nn.Identity)


def weighted(built: nn.Sequential) -> list[Any]:
    return [module for module in built.modules() if has_weights(module)]


def test_activations_and_preprocessings_are_copies() -> None:
    activation, preprocess = HardThreshold(), Standardise(0.5, 0.25)
    built = network("resnet5", activation=activation, preprocess=preprocess)
    assert all(module is not activation and module is not preprocess for module in built.modules())


def test_standardise_and_sine_are_what_they_say() -> None:
    x = torch.rand(5)
    assert torch.equal(Standardise(0.5, 0.25)(x), (x - 0.5) / 0.25)
    assert torch.equal(Sine()(x), x.sin())


REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("convnet", {"channels": []}),
    ("convnet", {"channels": [3, 0]}),
    ("convnet", {"channels": "34"}),
    ("convnet", {"channels": 16}),
    ("convnet", {"channels": [True]}),
    ("convnet", {"hidden": [0]}),
    ("convnet", {"hidden": None}),
    ("convnet", {"kernel": 0}),
    ("convnet", {"kernel": [3]}),
    ("convnet", {"stride": 1.5}),
    ("convnet", {"norm": "batch"}),
    ("convnet", {"centre": math.nan}),
    ("convnet", {"init": "zeros"}),
    ("vgg8", {"hidden": [6]}),
    ("vgg8", {"channels": []}),
    ("resnet5", {"channels": [3]}),
    ("resnet5", {"channels": [3, 4, 5]}),
    ("resnet5", {"stride": True}),
    ("rnn", {"rows": 0}),
    ("rnn", {"rows": [4]}),
    ("rnn", {"rows": 3}),
    ("rnn", {"hidden": [6]}),
    ("rnn", {"readout": "mean"}),
    ("rnn", {"memory": -1.0}),
    ("rnn", {"recurrent": math.inf}),
    ("rnn", {"spread": 0}),
    ("mlp", {"hidden": [0]}),
    ("mlp", {"hidden": "abc"}),
    ("mlp", {"bias": [1, 2]}),
    ("mlp", {"bias": [True]}),
    ("mlp", {"spread": [1.0, 2.0]}),
    ("mlp", {"spread": 0}),
    ("mlp", {"spread": [-1.0]}),
]


@pytest.mark.parametrize(("name", "other"), REFUSALS, ids=str)
def test_options_out_of_range_are_refused(name: str, other: dict[str, Any]) -> None:
    with refused(next(iter(other))):
        network(name, **other)


def test_images_too_small_for_the_layers_are_refused_with_what_to_do() -> None:
    with refused(None, "1 x 1 are too small for the pooling of stage 4", "use fewer layers"):
        network("vgg8", channels=[2] * 5)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.0), (0.5, -1.0), (math.nan, 1.0), (0.5, math.inf), ("a", 1), (0, True)]
)
def test_a_standardisation_needs_a_mean_and_a_positive_std(mean: Any, std: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Standardise(mean, std)
    assert refusal.value.option in {"mean", "std"}


# ---- the configuration ----------------------------------------------------------------------------------------------


def injection_of(*overrides: str, config_dirs: Sequence[Path] = ()) -> str:
    return str(compose(overrides, config_dirs)["estimator"]["injection"]["_target_"]).rsplit(".", 1)[-1]


def test_a_network_leaves_the_injection_to_the_estimator() -> None:
    ratio = ["network=convnet", "estimator=likelihood_ratio"]
    assert injection_of(*ratio) == "Joint"
    assert injection_of(*ratio, "injection=layerwise") == "Layerwise"
    assert injection_of("injection=layerwise", *ratio) == "Layerwise"
    assert injection_of("method=layerwise_lrs", "setting=conv") == "Layerwise"


def test_an_experiment_can_choose_the_network_and_the_injection(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    defaults = "defaults:\n  - override /network: convnet\n  - override /estimator/injection: layerwise\n  - _self_\n"
    text = f"# @package _global_\n{defaults}network: {{kernel: 3}}\n"
    (tmp_path / "experiment/one.yaml").write_text(text)
    assert injection_of("experiment=one", config_dirs=[tmp_path]) == "Layerwise"
    assert injection_of("experiment=one", "injection=joint", config_dirs=[tmp_path]) == "Joint"
    assert compose(["experiment=one"], [tmp_path])["network"]["kernel"] == 3


@pytest.mark.parametrize("preprocess", options("preprocess"))
@pytest.mark.parametrize("name", options("network"))
def test_every_preprocess_reaches_every_network(name: str, preprocess: str) -> None:
    composed = compose([f"network={name}", f"preprocess={preprocess}", *SMALL[name]])
    first = next(iter(build(composed["network"], image_shape=(1, 8, 8), classes=10)))
    kind = {"none": (nn.Flatten, nn.Conv2d, Recurrence), "sine": (Sine,), "standardise": (Standardise,)}[preprocess]
    assert isinstance(first, kind)


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["tiered", "likelihood_ratio"])
@pytest.mark.parametrize("name", options("network"))
def test_every_network_trains_an_epoch_on_digits_and_reloads(name: str, estimator: str, tmp_path: Path) -> None:
    """8 x 8 pixels: of vgg8's three poolings one place is left."""
    overrides = [f"network={name}", f"estimator={estimator}", "preprocess=standardise", *SMALL[name], *FAST]
    result = train(compose(overrides), tmp_path / "run")
    assert 0 <= result["test_accuracy"] <= 1
    run = load_run(tmp_path / "run")
    assert isinstance(next(iter(run.network)), Standardise)
    x, y = run.data.split("test")
    assert float((run.network(x).argmax(1) == y).double().mean()) == pytest.approx(result["test_accuracy"], abs=1e-6)


def test_tiered_learns_digits_with_a_residual_block_and_normalisations(tmp_path: Path) -> None:
    overrides = ["network=resnet5", "estimator=tiered", "network.norm=group", "sigma=0.3", "optimizer.lr=1e-2"]
    result = train(compose([*overrides, *SMALL["resnet5"], *FAST, "epochs=3", "batch_size=32"]), tmp_path / "run")
    assert result["test_accuracy"] > 0.4


def test_the_scales_of_neurons_are_learned_in_a_network_with_normalisations(tmp_path: Path) -> None:
    overrides = ["network=convnet", "network.norm=group", "estimator=likelihood_ratio", "callbacks=learned_sigma"]
    overrides += ["callbacks.learned_sigma.per=neuron", "callbacks.learned_sigma.lr=0.1"]
    result = train(compose([*overrides, *SMALL["convnet"], *FAST]), tmp_path / "run")
    assert 0 <= result["test_accuracy"] <= 1
    run = load_run(tmp_path / "run")
    shapes = [parameter.shape for parameter in log_scales(LikelihoodRatio(), run.network, "neuron")]
    assert shapes == [(3, 1, 1), (3, 1, 1), (4, 1, 1), (4, 1, 1), (10,)]
    state = run.checkpoint["state_dict"]
    assert all(state[f"log_sigma.{site}"].shape == shape for site, shape in enumerate(shapes))
    assert all(float(state[f"log_sigma.{site}"].std()) > 0 for site in range(5))


def test_scales_of_neurons_under_group_normalisation_are_refused() -> None:
    """Channel scales are shaped for images; along vectors they would meet the copies."""
    built = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    estimator, x, y = LikelihoodRatio(copies=4), torch.rand(2, 3).double(), torch.tensor([0, 1])
    scales = [parameter.detach().exp().double() for parameter in log_scales(estimator, built, "neuron")]
    with refused(None, "'1' (GroupNorm)", "callbacks.learned_sigma.per=layer"):
        estimate(replace(estimator, sigma=tuple(scales)), built, CrossEntropy(), x, y)
    ordinary = estimate(estimator, built, CrossEntropy(), x, y)
    assert set(ordinary.gradients) == {name for name, _ in built.named_parameters()}


# ---- copies per layer -----------------------------------------------------------------------------------------------


def test_a_list_of_copies_gives_each_layer_its_own() -> None:
    built, x, y = normalised(HardThreshold()), torch.rand(2, 1, 7, 7).double(), torch.tensor([0, 1])
    for kind, more in ((LikelihoodRatio, {"injection": Layerwise()}), (Tiered, {})):
        same, listed = (
            estimate(kind(copies=copies, **more), built, CrossEntropy(), x, y) for copies in (4, [4, 4, 4, 4, 4, 4])
        )
        assert all(torch.equal(same.gradients[name], value) for name, value in listed.gradients.items())
        other = estimate(kind(copies=[4, 6, 8, 10, 12, 14], **more), built, CrossEntropy(), x, y)
        assert other.diagnostics["forwards"] == 2 * (1 + 4 + 6 + 8 + 10 + 12 + 14)
        assert torch.equal(other.gradients["0.weight"], same.gradients["0.weight"])  # the first draws are the same


@pytest.mark.parametrize("kind", [LikelihoodRatio, Tiered])
def test_each_layer_is_averaged_over_its_own_copies(kind: Any) -> None:
    check_copies_per_layer(kind)


@pytest.mark.parametrize(
    ("make", "option", "advice"),
    [
        (
            lambda: Tiered(copies=[4, 4]).check(normalised(nn.Tanh()), CrossEntropy()),
            "estimator.copies",
            "give one value, or 6",
        ),
        (
            lambda: LikelihoodRatio(copies=[4, 4], injection=Layerwise()).check(normalised(nn.Tanh()), CrossEntropy()),
            "estimator.copies",
            "give one value, or 6",
        ),
        (lambda: LikelihoodRatio(copies=[4, 4]), None, "use one number, or estimator=likelihood_ratio injection=layer"),
        (lambda: Tiered(copies=[]), "copies", "or a non-empty list of them"),
        (lambda: Tiered(copies=[4, 0]), "copies", "a whole number from 1"),
        (lambda: Tiered(copies=[4, 3]), "copies", "a positive multiple of 2"),
        (lambda: Tiered(copies=[4, 4.0]), "copies", "a whole number"),
        (lambda: Tiered(copies="44"), "copies", "a whole number"),
        (lambda: LocalExpectation(copies=[4, 4]), "copies", "a whole number from 1"),  # type: ignore[arg-type]
        (
            lambda: Tiered().check(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), CrossEntropy()),
            None,
            "use estimator=likelihood_ratio",
        ),
    ],
)
def test_copies_and_networks_that_do_not_fit_are_refused(make: Any, option: str | None, advice: str) -> None:
    with refused(option, advice):
        make()


def test_a_schedule_of_copies_and_a_list_of_them_are_refused_together(tmp_path: Path) -> None:
    common = ["estimator=tiered", *FAST, "copies=[4,4,4]"]
    eight = "{_target_:glr_lightning.schedules.Geometric,end:8}"
    overrides = ["network=convnet", *SMALL["convnet"], *common]
    assert train(compose(overrides), tmp_path / "listed")["epochs"] == 1
    with refused("callbacks.annealing.copies", "copies=[4, 4, 4]", "leave it out, or use one number"):
        train(compose([*overrides, "callbacks=annealing", f"callbacks.annealing.copies={eight}"]), tmp_path / "both")
    with refused("estimator.copies", "give one value, or 8"):
        train(compose(["network=vgg8", *SMALL["vgg8"], *common]), tmp_path / "wrong")


# ---- evaluation and diagnosis ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a threshold network with a residual block, normalisations and a preprocessing."""
    folder = tmp_path_factory.mktemp("convolutional")
    overrides = ["network=resnet5", "network.norm=group", "estimator=tiered", "preprocess=standardise", "sigma=0.3"]
    train(compose([*overrides, *SMALL["resnet5"], *FAST, "epochs=2", "batch_size=64"]), folder / "run")
    return folder


def test_the_honest_threats_run_on_a_residual_network(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    quick = ["threat.fgsm.epsilon=[0.1]", "threat.pgd_linf.steps=3", "threat.transfer_pgd.steps=3", "limit=12"]
    quick += ["threat.square_linf.queries=20", "threat.pgd_linf.gradient.copies=8", "threat.fgsm.gradient.copies=8"]
    quick += ["surrogate.dir=surrogates", "surrogate.epochs=1", "progress=false", "noisy_passes=2"]
    outcome = run_cli(evaluate.main, ["run=run", "threat=honest", *quick], monkeypatch, capsys)
    assert outcome.code == 0, outcome.err
    rows = read_rows(trained / "run/robustness.csv")
    sources = {row.gradient_source: row for row in rows if row.threat == "pgd_linf"}
    assert {"autograd", "straight_through", "likelihood_ratio"} <= set(sources)
    for source in ("straight_through", "likelihood_ratio"):
        assert sources[source].zero_gradient_fraction == 0.0
    assert sources["autograd"].zero_gradient_fraction == 1.0


@pytest.mark.parametrize("norm", ["preactivation", "l2", "linf"])
def test_a_residual_network_behind_a_standardisation_is_certified(
    norm: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    quick = [f"threat.certify.norm={norm}", "threat.certify.draws=100", "threat.certify.radii=[0,0.01]", "limit=12"]
    for more in ([], ["threat.certify.sigma=0.2"], ["noisy_passes=2"]):
        (trained / "run/robustness.csv").unlink(missing_ok=True)
        outcome = run_cli(
            evaluate.main, ["run=run", "threat=certify", "progress=false", *quick, *more], monkeypatch, capsys
        )
        assert outcome.code == 0, outcome.err
        rows = [row for row in read_rows(trained / "run/robustness.csv") if row.kind == "certificate"]
        assert [(row.level, row.preset) for row in rows] == [(0.0, norm), (0.01, norm)]
        assert rows[0].accuracy >= rows[1].accuracy


@pytest.mark.parametrize("std", [0.25, 3.0])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_behind_a_standardisation_radii_are_in_pixels(kind: str, std: float) -> None:
    """The same network with its first weights divided by std instead: the same votes, the same bounds in every norm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 5, 5, generator=generator).double()
    first = [nn.Conv2d(1, 2, 3, stride=2)] if kind == "convolution" else [nn.Flatten(), nn.Linear(25, 8)]
    last = nn.Linear(8, 3)
    behind = nn.Sequential(Standardise(0.4, std), *first, HardThreshold(), nn.Flatten(), last).double().eval()
    layer = first[-1]
    inside = type(layer)(1, 2, 3, stride=2) if isinstance(layer, nn.Conv2d) else nn.Linear(25, 8)
    inside.double().weight.data = layer.weight.data / std
    inside.bias.data = layer.bias.data - 0.4 / std * layer.weight.data.flatten(1).sum(1)
    instead = nn.Sequential(*first[:-1], inside, HardThreshold(), nn.Flatten(), last).eval()
    torch.testing.assert_close(behind(x), instead(x))
    for norm in ("standardised", "preactivation", "l2", "linf"):
        assert largest_shift(behind, x, 0.3, norm) == pytest.approx(largest_shift(instead, x, 0.3, norm), rel=1e-12)
    one, other = (certify(n, x, [0.3], seed=0, draws=300, selection=30) for n in (behind, instead))
    assert torch.equal(one.prediction, other.prediction)
    torch.testing.assert_close(one.radius, other.radius)


def test_no_change_within_a_certified_radius_moves_the_vote() -> None:
    """In pixels, of a linear network whose vote is known: the distance from the decision, over ||w|| / std."""
    built = nn.Sequential(Standardise(0.5, 0.2), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    w = torch.tensor([0.5, -1.0, 0.3, 0.8], dtype=torch.float64)
    built[2].weight.data, built[2].bias.data = torch.stack([w, -w]), torch.zeros(2, dtype=torch.float64)
    x = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    distance = (w @ ((x.flatten(1) - 0.5) / 0.2).T).abs() / (w.norm() / 0.2)
    found = certify(built, x, [0.7], seed=0, draws=2000, selection=50)
    radius = found.radius / largest_shift(built, x, 0.7, "l2")
    assert bool((radius <= distance).all())
    assert float((radius / distance).max()) > 0.6


def test_a_sine_before_the_first_layer_is_not_certified() -> None:
    built = network("convnet", preprocess=Sine()).eval()
    with refused(None, "got Sine. ", "preprocess=standardise"):
        certify(built, torch.rand(2, 1, 8, 8), [0.3], seed=0, draws=10, selection=10)


def test_tiered_is_diagnosed_against_the_layerwise_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {
        "tiered": "estimator=tiered",
        "layerwise": "estimator=likelihood_ratio injection=layerwise",
        "listed": "estimator=tiered copies=[4,8,10]",
        "wrong": "estimator=tiered copies=[4,4]",
    }
    labelled = [f"{{{label}:'{text}'}}" for label, text in words.items()]
    entries = f"estimators=[{','.join(labelled)}]"
    arguments = ["experiment=lrt", "network=convnet", *SMALL["convnet"], entries, "copies=[4]", "repetitions=20"]
    arguments += ["reference.copies=32", "reference.repetitions=20", "batch_size=16", "threads=1", "progress=false"]
    outcome = run_cli(diagnose.main, [*arguments, "sampling=antithetic"], monkeypatch, capsys)
    assert outcome.code == 0, outcome.err
    found = read_findings(tmp_path / "diagnosis/diagnosis.csv")
    for label in ("tiered", "layerwise", "listed"):
        own = [f for f in found if f.estimator == label]
        assert {f.layer for f in own} == {"conv1", "conv2", "linear3"}
        assert {f.objective for f in own} == {"layerwise"}
        assert {f.outcome for f in own} <= {UNBIASED, UNCLEAR}, [(f.layer, f.outcome, f.note) for f in own]
    assert {f.outcome for f in found if f.estimator == "wrong"} == {REFUSED}
    assert {(f.layer, f.copies) for f in found if f.estimator == "listed"} == {
        ("conv1", 4),
        ("conv2", 8),
        ("linear3", 10),
    }
    assert NO_REFERENCE not in {f.outcome for f in found}
    assert "Reference of layerwise" in outcome.out
    by = {(f.estimator, f.layer): f for f in found}
    assert by["tiered", "linear3"].relative_variance < by["layerwise", "linear3"].relative_variance


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": [4, 4], "bias": False, "spread": 1.0}, "no hidden layer has a bias"),
        ({"hidden": [4, 4], "bias": [False, False, True], "spread": 1.0}, "no hidden layer has a bias"),
        ({"hidden": [], "spread": 1.0}, "no hidden layer has a bias"),
        ({"hidden": [4, 4], "bias": [True, False, True], "spread": [1.0, 1.0]}, "hidden layer 2"),
    ],
)
def test_a_spread_of_biases_that_are_not_there_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        mlp(image_shape=(1, 2, 2), classes=3, activation=nn.Tanh(), **options)
    assert caught.value.option == "spread"


def test_a_spread_of_some_hidden_biases_is_taken() -> None:
    for bias, spread in (([True, False, True], 1.0), ([False, True, True], [None, 1.0]), (False, None)):
        mlp(image_shape=(1, 2, 2), classes=3, hidden=[4, 4], activation=nn.Tanh(), bias=bias, spread=spread)  # type: ignore[arg-type]
