"""The graph: networks run as torch runs them, whatever is noisy; what is no graph is refused."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import (
    Backprop,
    EvolutionStrategies,
    ForwardGradient,
    Hybrid,
    LikelihoodRatio,
    LocalExpectation,
    NoisyBackprop,
    StraightThrough,
    Tiered,
)
from glr_lightning.evaluation.certification import certify
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy
from glr_lightning.networks import Residual
from glr_lightning.noise import Gaussian
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.graph_module import GraphModule
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.propagation.readout import readout_weight
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import (
    input_gradient,
    likelihood_ratio_gradient,
    scales,
    straight_through,
)
from tests.checks import traced_networks as traced
from tests.checks.convolutional_cases import (
    CLASS,
    NETWORKS,
    PIXELS,
    check_against,
    drawn,
    noisy_logits,
    normalised,
    pathwise,
    plain_ratio,
    pooled,
    projected,
    residual,
    weighted,
)
from tests.checks.estimator_cases import check_gradient, estimate
from tests.checks.noisy_pass import SIGMA, check_passes
from tests.checks.refusals import refused
from tests.checks.traced_networks import NETWORKS as TRACED
from tests.checks.zscores import assert_gradient, repetitions

every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


@every_network
def test_a_pass_with_noise_is_torchs_own_with_the_same_noise(make: Any) -> None:
    check_passes(make)


@every_network
def test_the_chain_as_a_module_is_the_network_and_its_own_chain(make: Any) -> None:
    network = make(HardThreshold())
    chained = GraphModule(Graph.of(network))
    assert torch.equal(chained(PIXELS), network(PIXELS))
    again = Graph.of(chained)
    assert again.sites == Graph.of(network).sites
    assert torch.equal(again.clean(PIXELS).logits, network(PIXELS))


@every_network
def test_keys_are_those_of_the_plain_network_and_gradients_have_them(make: Any) -> None:
    network = make(HardThreshold())
    before = copy.deepcopy(network.state_dict())
    every = [LikelihoodRatio(copies=4), Tiered(copies=4), LocalExpectation(), EvolutionStrategies(copies=4)]
    for estimator in (*every, StraightThrough(), Hybrid(copies=4), Backprop(), ForwardGradient(copies=4)):
        trained = make(nn.Tanh()) if isinstance(estimator, Backprop | ForwardGradient) else network
        got = estimate(estimator, trained, CrossEntropy(), PIXELS, CLASS).gradients
        assert set(got) == set(before) == {name for name, _ in network.named_parameters()}
        assert all(got[name].shape == value.shape for name, value in before.items())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_readouts_matrix_is_the_derivative_of_the_logits() -> None:
    for make in NETWORKS.values():
        graph = Graph.of(make(nn.Tanh()))
        clean = graph.clean(PIXELS)
        end = nn.Sequential(*(graph.nodes[number].module for number in graph.end))
        jacobian = torch.func.jacrev(lambda h, end=end: end(h[None])[0])(clean.readout[0])
        torch.testing.assert_close(readout_weight(graph, clean.readout), jacobian.detach())
        assert len(graph.end) == (3 if make.__name__ == "pooled" else 2)


# ---- refusals -------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def in_a_block(module: nn.Module) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), module)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), Residual(body), nn.Flatten(), nn.Linear(50, 2))


BATCH_NORM = nn.BatchNorm2d(2, affine=False)


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        (BATCH_NORM, r"'2\.body\.1' \(BatchNorm2d\) .*per-sample normalisation \(nn\.GroupNorm\), or put it in eval"),
        (nn.BatchNorm2d(2), r"'2\.body\.1' \(BatchNorm2d\) holds parameters, .*replace it, freeze it"),
        (nn.Conv1d(5, 5, 3), r"'2\.body\.1' \(Conv1d\) holds parameters, .*replace it"),
        (nn.Dropout(0.5), r"'2\.body\.1' \(Dropout\) draws noise of its own .*remove it"),
        (nn.Dropout2d(0.5), r"'2\.body\.1' \(Dropout2d\) draws noise of its own"),
        (nn.PReLU(), r"'2\.body\.1' \(PReLU\) holds parameters"),
        (
            Attention(),
            r"'2\.body\.1\.attention' \(MultiheadAttention\) holds parameters of several layers.*with nn\.Linear",
        ),
        (nn.GRUCell(5, 5), r"'2\.body\.1' \(GRUCell\) holds parameters of several layers.*networks\.Recurrence"),
        (nn.ReLU(inplace=True), r"'2\.body\.1' \(ReLU\) writes into its input.*use inplace=False"),
        (nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True)), r"'2\.body\.1\.1' \(ReLU\) writes into its input"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_module_that_cannot_be_in_a_block_is_named(module: nn.Module, advice: str) -> None:
    network = in_a_block(module)
    for estimator in (LikelihoodRatio(copies=4), Tiered(copies=4), LocalExpectation()):
        with pytest.raises(ConfigurationError, match=re.compile(advice, re.DOTALL)):
            estimator.check(network, CrossEntropy())


def test_branches_of_other_shapes_are_refused_and_not_broadcast() -> None:
    """A sum over one place is added to all: the reach of the shortcut would be taken for that of a place."""
    shortcut = nn.Sequential(nn.AdaptiveAvgPool2d(1))
    block = Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)), shortcut)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), block, nn.Tanh(), nn.Flatten(), nn.Linear(50, 2)).double()
    with refused(None, "got [2, 5, 5] and [2, 1, 1]", "such as a 1 x 1 convolution"):
        estimate(LikelihoodRatio(copies=4), network, CrossEntropy(), PIXELS, CLASS)


@pytest.mark.parametrize("estimator", [LikelihoodRatio(copies=4), Tiered(copies=4)], ids=["joint", "tiered"])
def test_a_padding_in_words_is_refused_as_such_wherever_it_is(estimator: Any) -> None:
    network = in_a_block(nn.Conv2d(2, 2, 3, padding="same")).double()
    with refused(None, "takes its padding as numbers"):
        estimate(estimator, network, CrossEntropy(), PIXELS, CLASS)


# ---- the estimators on residual networks ----------------------------------------------------------------------------


def autograd(network: nn.Module, x: Tensor = PIXELS) -> dict[str, Tensor]:
    loss = CrossEntropy()(network(x), CLASS).mean()
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@every_network
def test_what_differentiates_a_smooth_network_is_autograd(make: Any) -> None:
    network = make(nn.Tanh())
    expected = autograd(network)
    for estimator, tolerance in ((Backprop(), 1e-12), (NoisyBackprop(sigma=1e-9, copies=4), 1e-6)):
        got = estimate(estimator, network, CrossEntropy(), PIXELS, CLASS).gradients
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance)


class Sloped(nn.Module):
    """A threshold with the slope of its mean under Gaussian noise, written down."""

    def forward(self, v: Tensor) -> Tensor:
        mean = torch.special.ndtr(v / 0.7)
        return (v > 0).to(v.dtype) + (mean - mean.detach())  # in brackets, 0 exactly: ties in a maximum stay ties


@every_network
def test_straight_through_is_autograd_of_the_slopes(make: Any) -> None:
    got = estimate(StraightThrough(sigma=0.7), make(HardThreshold()), CrossEntropy(), PIXELS, CLASS).gradients
    for name, value in autograd(make(Sloped())).items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [pooled, residual, projected], ids=lambda make: make.__name__)
def test_noisy_backprop_is_the_path_derivative(make: Any) -> None:
    network = make(nn.Tanh())
    samples = repetitions(
        NoisyBackprop(sigma=SIGMA, copies=20), network, CrossEntropy(), PIXELS, CLASS, number=100, seed=1
    )
    oracle = pathwise(network, CrossEntropy(), [list(weighted(network))], SIGMA, PIXELS, CLASS, rows=2000)
    check_against(samples, oracle, 0.5, "noisy backprop")


def test_forward_gradients_have_the_mean_of_the_gradient() -> None:
    network = residual(nn.Tanh())
    samples = repetitions(ForwardGradient(copies=32), network, CrossEntropy(), PIXELS, CLASS, number=200)
    expected = autograd(network)
    for name, value in expected.items():
        if name.endswith("weight"):
            assert_gradient(samples[name].flatten(1), value.flatten(), resolution=0.5, what=name)


def test_hybrid_splits_a_residual_network_at_its_last_jump() -> None:
    """Noise in the layers below the last threshold; above it the derivative along the path."""
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), HardThreshold(), nn.Conv2d(2, 2, 1))
    layers = [nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), Residual(body), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)]
    network = drawn(nn.Sequential(*layers), seed=3)
    estimator = Hybrid(sigma=SIGMA, copies=16)
    below, above = ["0", "2.body.0"], ["2.body.2", "5"]
    plan = estimator.plan(network, CrossEntropy())
    assert [name for name, words in plan.items() if "likelihood" in words] == below
    samples = repetitions(estimator, network, CrossEntropy(), PIXELS, CLASS, number=400)
    low = plain_ratio(network, CrossEntropy(), [below], SIGMA, PIXELS, CLASS, rows=40_000)
    check_against({name: samples[name] for name in low}, low, 1.0, "hybrid, below")
    generator, names = torch.Generator().manual_seed(4), [f"{layer}.{p}" for layer in above for p in ("weight", "bias")]
    shapes, parts = dict.fromkeys(below, (2, 3, 3)), []
    for _ in range(100):
        noise = {
            n: SIGMA * torch.randn(80, *shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()
        }
        loss = CrossEntropy()(noisy_logits(network, PIXELS.repeat(40, 1, 1, 1), noise), CLASS.repeat(40)).mean()
        parts.append(torch.autograd.grad(loss, [network.get_parameter(name) for name in names]))
    high = {name: torch.stack([part[i] for part in parts]) for i, name in enumerate(names)}
    check_against({name: samples[name] for name in high}, high, 0.5, "hybrid, above")


# ---- attacks and certificates on residual networks ------------------------------------------------------------------


@every_network
def test_straight_through_has_the_networks_scores_and_useful_slopes(make: Any) -> None:
    hard, smooth = make(HardThreshold()), make(nn.Tanh())
    surrogate = straight_through(hard, 0.5)
    assert torch.equal(surrogate(PIXELS), hard(PIXELS))
    assert float(input_gradient(hard, PIXELS, CLASS).abs().max()) == 0 or make.__name__ == "projected"
    assert bool((input_gradient(surrogate, PIXELS, CLASS).abs().amax((1, 2, 3)) > 0).all())
    same = input_gradient(straight_through(smooth, 0.5), PIXELS, CLASS)  # without jumps autograd's own
    torch.testing.assert_close(same, input_gradient(smooth, PIXELS, CLASS))


def test_noise_averaged_networks_go_through_their_straight_through_chain() -> None:
    network = residual(HardThreshold())
    averaged = NoiseAveraged(network, Gaussian(), (SIGMA,) * len(weighted(network)), 2).eval()
    around = averaged.around(straight_through(network, 0.5))
    random = ImageRandom(0, torch.arange(len(PIXELS)))
    torch.testing.assert_close(around(PIXELS, random), averaged(PIXELS, random))


@pytest.mark.parametrize("make", [residual, normalised], ids=lambda make: make.__name__)
def test_an_images_likelihood_ratio_is_the_gradient_of_its_smoothed_loss(make: Any) -> None:
    network = make(nn.Tanh())
    name = next(iter(weighted(network)))
    sigma = scales(Graph.of(network), 1.0)[0]
    image, label = PIXELS[:1], CLASS[:1]
    draws = [
        likelihood_ratio_gradient(
            network,
            image,
            label,
            lambda u, y: CrossEntropy()(u, y),
            random=ImageRandom(seed, torch.zeros(1, dtype=torch.int64)),
            copies=64,
            smoothing=1.0,
        )[0]
        for seed in range(200)
    ]
    x = image.clone().requires_grad_()
    z = torch.randn(20_000, *Graph.of(network).clean(image).preactivations[0].shape[1:], dtype=torch.float64)
    mean = CrossEntropy()(
        noisy_logits(network, x.expand(20_000, 1, 7, 7), {name: sigma * z}), label.expand(20_000)
    ).mean()
    (expected,) = torch.autograd.grad(mean, x)
    assert_gradient(torch.stack(draws).flatten(1), expected.flatten(), resolution=0.5, tolerance=0.02)


def test_the_likelihood_ratio_of_an_image_needs_a_first_layer_it_passes() -> None:
    network = nn.Sequential(Residual(nn.Sequential(nn.Conv2d(1, 1, 1))), nn.Flatten(), nn.Linear(49, 2)).double()
    options = {"random": ImageRandom(0, torch.arange(2)), "copies": 4, "smoothing": 0.5}
    with refused("gradient_source", "other calls than '0.body.0'", "use gradient_source=straight_through"):
        likelihood_ratio_gradient(network, PIXELS, CLASS, lambda u, y: CrossEntropy()(u, y), **options)  # type: ignore[arg-type]


def test_a_block_that_adds_nothing_leaves_a_certificate_as_it_is() -> None:
    torch.manual_seed(0)
    below, above = [nn.Conv2d(1, 2, 3, stride=2), HardThreshold()], [nn.Flatten(), nn.Linear(18, 2)]
    block = Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), HardThreshold(), nn.Conv2d(2, 2, 1)))
    for parameter in block.body[2].parameters():
        parameter.data.zero_()
    plain, residual_ = (nn.Sequential(*below, *middle, *above).double().eval() for middle in ([], [block]))
    one, other = (certify(n, PIXELS, [0.3], seed=0, draws=500, selection=50) for n in (plain, residual_))
    assert torch.equal(one.prediction, other.prediction)
    assert torch.equal(one.radius, other.radius)
    assert bool((one.radius > 0).any())


def test_a_certificate_is_refused_where_a_block_comes_first() -> None:
    network = nn.Sequential(Residual(nn.Sequential(nn.Conv2d(1, 1, 1))), nn.Flatten(), nn.Linear(49, 2)).double()
    with refused(None, "other calls than '0.body.0' (Conv2d) read the image"):
        certify(network.eval(), PIXELS, [0.3], seed=0, draws=10, selection=10)


# ---- networks that only a trace can take ----------------------------------------------------------------------------

every_traced = pytest.mark.parametrize("traced_network", TRACED.values(), ids=TRACED)
FROM_LOSSES = {
    "joint": LikelihoodRatio(copies=8),
    "joint_plain": LikelihoodRatio(copies=8, score="plain"),
    "layerwise": LikelihoodRatio(copies=8, injection=Layerwise()),
    "local_expectation": LocalExpectation(copies=2),
    "local_expectation_of_one_unit": LocalExpectation(copies=2, units=1),
    "local_expectation_of_chosen_units": LocalExpectation(copies=2, units=1, choice="weighted"),
    "tiered": Tiered(copies=8),
}


@every_traced
def test_a_traced_pass_is_torchs_own_with_noise_at_the_same_calls(traced_network: Any) -> None:
    traced.check_noisy_pass(traced_network)


@every_traced
@pytest.mark.parametrize("estimator", FROM_LOSSES.values(), ids=FROM_LOSSES)
def test_means_from_loss_values_are_sums_over_all_patterns(estimator: Any, traced_network: Any) -> None:
    traced.check_exact(estimator, traced_network)


@pytest.mark.parametrize("traced_network", [traced.Recurrent, traced.Tied], ids=["recurrent", "tied"])
@pytest.mark.parametrize("hard", [True, False], ids=["threshold", "tanh"])
def test_shared_weights_get_the_sum_of_their_calls_gradients(traced_network: Any, hard: bool) -> None:
    act = HardThreshold() if hard else nn.Tanh()
    every = [LikelihoodRatio(copies=8), LikelihoodRatio(copies=8, score="plain"), LocalExpectation(copies=3)]
    derivatives = [StraightThrough()] if hard else [NoisyBackprop(copies=4), Backprop()]
    for estimator in (*every, *derivatives, ForwardGradient(copies=4)):
        traced.check_twin(estimator, traced_network, act, CrossEntropy())


@every_traced
def test_derivatives_of_a_traced_network_are_autograds(traced_network: Any) -> None:
    smooth, hard = (traced.made(traced_network, act) for act in (nn.Tanh(), HardThreshold()))
    sloped = traced.made(traced_network, Sloped())
    got = estimate(StraightThrough(sigma=0.7), hard, CrossEntropy(), traced.X, traced.Y).gradients
    torch.testing.assert_close(got, traced.autograd(sloped), rtol=1e-10, atol=1e-12)
    samples = repetitions(ForwardGradient(copies=32), smooth, CrossEntropy(), traced.X, traced.Y, number=200)
    check_gradient(samples, traced.autograd(smooth), 0.5, what="forward gradient")
    bound = NoisyBackprop(sigma=0.7, copies=4).bind(smooth, CrossEntropy())
    (part,) = bound.draw(traced.X, torch.Generator().manual_seed(0))
    with traced.noise_at_calls(smooth, [0.7 * z.flatten(0, 1) for z in part.z.values()]):
        names, parameters = zip(*smooth.named_parameters(), strict=True)
        loss = CrossEntropy()(smooth(traced.X.repeat(4, 1)), traced.Y.repeat(4)).mean()
        path = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    torch.testing.assert_close(bound.step(traced.X, traced.Y, [part]).gradients, path)


def test_hybrid_sums_over_the_patterns_below_the_last_jump() -> None:
    above = traced.made(traced.SmoothAbove, HardThreshold())
    sigma = traced.SIGMA
    value = traced.smoothed_loss(above, [sigma, sigma, 0.0])
    names, parameters = zip(*above.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(value, parameters), strict=True))
    estimator = Hybrid(sigma=sigma, copies=16)
    samples = repetitions(estimator, above, CrossEntropy(), traced.X, traced.Y, number=600)
    for name in names:
        assert_gradient(samples[name].flatten(1), expected[name].flatten(), resolution=0.6, what=name)


def test_a_pre_activation_that_two_calls_read_has_the_plain_score() -> None:
    traced.check_read_twice()


@every_traced
def test_a_layers_scale_gets_the_sum_over_its_calls(traced_network: Any) -> None:
    traced.check_scales(traced_network)


def as_sequential(network: Any, act: Any) -> nn.Sequential:
    """The functional residual by this package's own block, with the same weights."""
    return nn.Sequential(network.a, act(), Residual(nn.Sequential(network.b, act())), network.c).eval()


def test_a_functional_residual_is_certified_and_attacked_as_the_block() -> None:
    for make in (HardThreshold, nn.Tanh):
        network = traced.made(traced.Residual, make()).eval()
        block = as_sequential(network, make)
        random = ImageRandom(0, torch.arange(2))
        one, other = (certify(n, traced.X, [0.3], seed=0, draws=500, selection=50) for n in (network, block))
        assert torch.equal(one.prediction, other.prediction)
        assert torch.equal(one.radius, other.radius)
        assert bool((one.radius > 0).any())
        options: dict[str, Any] = {"random": random, "copies": 16, "smoothing": 0.5}
        ratios = [
            likelihood_ratio_gradient(n, traced.X, traced.Y, lambda u, y: CrossEntropy()(u, y), **options)
            for n in (network, block)
        ]
        assert torch.equal(*ratios)
        averaged = [NoiseAveraged(n, Gaussian(), (0.5,) * 3, 4)(traced.X, random) for n in (network, block)]
        assert torch.equal(*averaged)


class SlopedBy(nn.Module):
    """As `Sloped`, with the scales of each call in turn."""

    def __init__(self, scales: list[Tensor]) -> None:
        super().__init__()
        self.scales = iter(scales)

    def forward(self, v: Tensor) -> Tensor:
        mean = torch.special.ndtr(v / next(self.scales))
        return (v > 0).to(v.dtype) + (mean - mean.detach())


@every_traced
def test_straight_through_attacks_take_the_slopes_of_a_traced_network(traced_network: Any) -> None:
    hard = traced.made(traced_network, HardThreshold())
    surrogate = straight_through(hard, 0.7)
    assert torch.equal(surrogate(traced.X), hard(traced.X))
    graph = Graph.of(hard)
    norms = [0.7 * graph.layer(site).get_parameter("weight").detach().norm(dim=1) for site in range(len(graph.sites))]
    hard.act = SlopedBy(norms)
    torch.testing.assert_close(input_gradient(surrogate, traced.X, traced.Y), input_gradient(hard, traced.X, traced.Y))


@pytest.mark.parametrize("make", [traced.Branches, traced.Recurrent], ids=lambda make: make.__name__)
def test_where_several_calls_read_the_image_theorems_are_refused(make: Any) -> None:
    network = traced.made(make, HardThreshold()).eval()
    with refused(None, "other calls than", "read the image"):
        certify(network, traced.X, [0.3], seed=0, draws=10, selection=10)
    options = {"random": ImageRandom(0, torch.arange(2)), "copies": 4, "smoothing": 0.5}
    with refused("gradient_source", "other calls than", "use gradient_source=straight_through"):
        likelihood_ratio_gradient(network, traced.X, traced.Y, lambda u, y: CrossEntropy()(u, y), **options)  # type: ignore[arg-type]
