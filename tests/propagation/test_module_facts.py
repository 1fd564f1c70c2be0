"""Facts about modules: what is known of torch's kinds is what a probe finds, and a probe finds what a module does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.estimators import (
    Backprop,
    Estimator,
    EvolutionStrategies,
    ForwardGradient,
    Hybrid,
    LikelihoodRatio,
    LocalExpectation,
    NoisyBackprop,
    StraightThrough,
)
from glr_lightning.losses import CrossEntropy
from glr_lightning.networks import Residual, Shift, Standardise
from glr_lightning.networks.modules import Sine
from glr_lightning.propagation import module_facts
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import ELEMENTWISE, facts_of, observe, without_derivative
from glr_lightning.propagation.probing import ModuleFacts, probe
from tests.checks.estimator_cases import X, Y, estimate, small_network
from tests.checks.groups import member, options
from tests.checks.refusals import refused


class Function(nn.Module):
    """A module of which nothing is known."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.calls = 0

    def forward(self, v: Tensor) -> Tensor:
        self.calls += 1
        return self.function(v)


def step(v: Tensor) -> Tensor:
    return (v > 0).to(v.dtype)


def plain(facts: ModuleFacts) -> tuple[bool, ...]:
    return facts.elementwise, facts.jumps, facts.flat, facts.draws, facts.couples


OPTIONS: dict[str, tuple[Any, ...]] = {"Threshold": (0.5, 0.0), "MultiheadAttention": (4, 1)}
TORCH = [getattr(nn, name) for name in nn.modules.activation.__all__ if name != "MultiheadAttention"]


@pytest.mark.parametrize("kind", TORCH, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_known_of_an_activation_of_torch_is_what_a_probe_finds(kind: type[nn.Module], training: bool) -> None:
    module = kind(*OPTIONS.get(kind.__name__, ())).train(training)
    assert not facts_of(module).found
    assert plain(facts_of(module)) == plain(probe(module, None))


@pytest.mark.parametrize("name", options("activation"))
def test_the_configured_activations_are_what_a_probe_finds(name: str) -> None:
    module = member("activation", name)
    assert facts_of(module).elementwise
    assert plain(facts_of(module)) == plain(probe(module, None))


def test_every_kind_called_elementwise_is_of_torch_or_of_this_package() -> None:
    assert all(kind.__module__.startswith(("torch.nn.", "glr_lightning.")) for kind in ELEMENTWISE)


SEEN = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KNOWN: list[tuple[nn.Module, tuple[int, ...]]] = [
    *((nn.Linear(4, 3), (4,)), (nn.Linear(6, 3), (4, 6, 6)), (nn.Flatten(), (4, 6, 6)), (nn.Identity(), (4,))),
    *((nn.Unflatten(1, (2, 2)), (4,)), (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), (4,)), (Sine(), (4,))),
    *((nn.Conv1d(4, 3, 2), (4, 6)), (nn.Conv2d(4, 3, 2), (4, 6, 6)), (nn.ConvTranspose2d(4, 3, 2), (4, 6, 6))),
    *((nn.Conv3d(1, 2, 2), (1, 4, 4, 4)), (nn.AvgPool2d(2), (4, 6, 6)), (nn.AdaptiveAvgPool2d(1), (4, 6, 6))),
    *((nn.AvgPool1d(2), (4, 6)), (nn.MaxPool2d(2), (4, 6, 6)), (nn.LPPool2d(2, 2), (4, 6, 6))),
    *((nn.GroupNorm(2, 4), (4, 6, 6)), (nn.LayerNorm(6), (4, 6)), (nn.InstanceNorm2d(4), (4, 6, 6))),
    *((nn.BatchNorm2d(4), (4, 6, 6)), (nn.Dropout(0.5), (4,)), (nn.Dropout2d(0.5), (4, 6, 6))),
    *((nn.AlphaDropout(0.5), (4,)), (nn.FractionalMaxPool2d(3, output_ratio=0.6), (4, 6, 6))),
    *((nn.FractionalMaxPool3d(2, output_ratio=0.7), (1, 6, 6, 6)), (nn.LocalResponseNorm(2), (4, 6, 6))),
    *((nn.ReflectionPad2d(1), (4, 6, 6)), (nn.PixelShuffle(2), (4, 6, 6)), (nn.Upsample(scale_factor=2), (4, 6, 6))),
    *((Standardise(0.5, 2.0), (4,)), (Shift(0.5), (4,)), (Residual(nn.Sequential(nn.Linear(4, 4))), (4,))),
]


@pytest.mark.parametrize(("module", "shape"), KNOWN, ids=lambda each: repr(each).partition("(")[0])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_known_of_other_modules_is_what_a_probe_finds(
    module: nn.Module, shape: tuple[int, ...], training: bool
) -> None:
    module.train(training)
    known = facts_of(module)
    assert not known.found
    seen = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = probe(copy.deepcopy(module), seen)
    assert (known.draws, known.couples, known.jumps, known.flat) == (
        found.draws,
        found.couples,
        found.jumps,
        found.flat,
    )
    assert found.affine or not known.affine
    assert known.affine or not known.isometry


def test_attention_and_recurrent_layers_draw_by_their_own_dropout() -> None:
    for kind in (nn.MultiheadAttention(4, 1, dropout=0.5), nn.LSTM(4, 4, 2, dropout=0.5)):
        assert facts_of(kind.train()).draws
        assert not facts_of(kind.eval()).draws
    assert not facts_of(nn.MultiheadAttention(4, 1)).draws


def test_random_pooling_is_refused_in_either_mode() -> None:
    network = nn.Sequential(nn.FractionalMaxPool2d(2, output_ratio=0.5), nn.Flatten(), nn.Linear(36, 2)).double()
    for training in (True, False):
        for estimator in (LikelihoodRatio(copies=4), EvolutionStrategies(copies=4)):
            with refused(None, "'0' (FractionalMaxPool2d) draws noise of its own"):
                estimator.check(network.train(training), CrossEntropy(), SEEN)


def test_a_module_of_torch_that_is_not_known_is_probed() -> None:
    network = nn.Sequential(nn.Linear(3, 4), FakeQuantize(), nn.Linear(4, 2))
    for x in (None, X.float()):
        with refused(None, "'1' (FakeQuantize, found to", "constant between its jumps"):
            Backprop().check(network, CrossEntropy(), x)


def test_a_subclass_with_a_pass_of_its_own_is_probed() -> None:
    class Rounded(nn.Linear):
        def forward(self, v: Tensor) -> Tensor:
            return super().forward(v).round()

    class Named(nn.Linear):
        pass

    assert facts_of(Rounded(12, 2)).jumps
    assert not facts_of(Named(12, 2)).found


SMOOTH, STEP, JUMPS = (True, False, False), (True, True, True), (True, True, False)
MIXES, MIXES_AND_JUMPS, RANKS = (False, False, False), (False, True, False), (False, True, True)
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[bool, bool, bool]]] = {
    "softsign": (lambda v: v / (1 + v.abs()), SMOOTH),
    "steep": (lambda v: torch.tanh(1000 * v), SMOOTH),
    "fast": (lambda v: torch.sin(100 * v), SMOOTH),
    "root": (lambda v: v.abs().sqrt(), SMOOTH),
    "logarithm": (lambda v: v.log(), SMOOTH),
    "float32 inside": (lambda v: torch.sigmoid(v.float()).to(v.dtype), SMOOTH),
    "writes into its input": (lambda v: v.mul_(2), SMOOTH),
    "step": (step, STEP),
    "step elsewhere": (lambda v: (v > 0.3).to(v.dtype), STEP),
    "three levels": (lambda v: v.sign() * (v.abs() > 0.5), STEP),
    "steps finer than the grid": (lambda v: torch.round(8192 * v) / 8192, STEP),
    "steps finer than a small step": (lambda v: torch.round(2**36 * v) / 2**36, STEP),
    "values without a derivative": (lambda v: v.detach().tanh(), STEP),
    "fine steps with the slope of the identity": (lambda v: v + (torch.round(8192 * v) / 8192 - v).detach(), SMOOTH),
    "almost a step": (lambda v: torch.tanh(1e5 * v), SMOOTH),
    "zeros": (torch.zeros_like, (True, False, True)),
    "one unit gates the others": (lambda v: v.tanh() * torch.sigmoid(3 * v[..., 3:4]), MIXES),
    "one unit reads another": (lambda v: v + nn.functional.one_hot(torch.tensor(1), 12) * v[..., 2:3], MIXES),
    "one unit less another": (lambda v: v - nn.functional.one_hot(torch.tensor(7), 12) * v[..., 11:].relu(), MIXES),
    "quantiser": (lambda v: torch.round(128 * v).clamp(-128, 127) / 128, STEP),
    "exponential and a step": (lambda v: v.exp() + step(v), JUMPS),
    "slope and small steps": (lambda v: v + 0.1 * v.floor(), JUMPS),
    "hyperbola": (lambda v: 1 / v, JUMPS),
    "softmax": (lambda v: v.softmax(1), MIXES),
    "mean": (lambda v: v.mean(1, keepdim=True), MIXES),
    "winners": (lambda v: v * (v >= v.topk(3, 1).values[:, -1:]), MIXES_AND_JUMPS),
    "ranks": (lambda v: v.argsort(1).to(v.dtype), RANKS),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_probe_finds_what_a_function_does(name: str) -> None:
    function, expected = FUNCTIONS[name]
    assert plain(facts_of(Function(function))) == (*expected, False, False)


@pytest.mark.parametrize("units", [2, 3, 50, 64, 200])
def test_a_probe_finds_any_unit_that_reads_another(units: int) -> None:
    seen = torch.randn(8, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for reads, read in ((0, units - 1), (units - 1, 0), (units // 2, units // 2 - 1)):

        def coupled(v: Tensor, reads: int = reads, read: int = read) -> Tensor:
            return torch.where(torch.arange(v.shape[1]) == reads, v + v[:, read : read + 1].tanh(), v)

        assert not probe(Function(coupled), seen).elementwise
    assert probe(Function(torch.tanh), seen).elementwise


AFFINE: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "scale": (lambda v: 3 * v - 1, True),
    "mean": (lambda v: v.mean(1, keepdim=True), True),
    "flip": (lambda v: v.flip(1), True),
    "relu": (torch.relu, False),
    "wide clamp": (lambda v: v.clamp(-100, 100), False),
    "constant": (torch.zeros_like, False),
    "step": (step, False),
    "logarithm": (lambda v: v.log(), False),
    "fine steps": (lambda v: torch.round(2**36 * v) / 2**36, False),
    "nearly": (lambda v: v + 1e-6 * v**2, False),
}


@pytest.mark.parametrize("name", AFFINE)
def test_a_probe_finds_whether_a_function_is_affine(name: str) -> None:
    function, expected = AFFINE[name]
    assert facts_of(Function(function)).affine == expected
    assert not facts_of(Function(function)).isometry


def test_an_affine_module_of_ones_own_belongs_to_the_readout() -> None:
    own, clamp = Function(lambda v: 3 * v - 1), Function(lambda v: v.clamp(-1, 1))
    for module, readout in ((own, 2), (nn.AvgPool1d(2), 2), (clamp, 3), (nn.Sigmoid(), 3)):
        assert Graph.of(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), module, nn.Linear(4, 2))).readout == readout


def test_a_probe_finds_random_draws_and_coupled_samples() -> None:
    assert facts_of(Function(lambda v: nn.functional.dropout(v))).draws
    assert facts_of(Function(lambda v: v - v.mean(0))).couples
    assert facts_of(Function(lambda v: step(v + torch.randn_like(v)))).flat
    assert facts_of(Function(lambda v: step(v) - v.amax())).couples
    assert facts_of(Function(lambda v: v - v.amax())).couples
    assert facts_of(Function(lambda v: (v > v.amax() / 2).to(v.dtype))).flat
    assert not facts_of(Function(lambda v: nn.functional.dropout(v, 0.9))).flat
    assert not facts_of(Function(lambda v: v - v.mean(0))).flat


def test_a_step_outside_the_usual_range_is_found_on_what_the_module_sees() -> None:
    far = Function(lambda v: 1.0 * (v > 500) + 0.01 * v)
    network = nn.Sequential(nn.Linear(3, 4), far)
    nn.init.constant_(network[0].bias, 450.0)
    nn.init.constant_(network[0].weight, 60.0)
    assert not facts_of(far).jumps
    observe(network, X.float())
    assert facts_of(far).jumps


def test_a_network_is_observed_once_and_left_as_it_is() -> None:
    act = Function(torch.tanh)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), act, nn.Dropout(0.5), nn.Linear(4, 2)).double()
    before, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    observe(network, X)
    assert act.calls == 0  # a copy was probed
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_after_the_first_estimate_nothing_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network(Function(torch.tanh))
    estimate(LikelihoodRatio(copies=4), network, CrossEntropy())
    monkeypatch.setattr(module_facts, "probe", None)
    estimate(LikelihoodRatio(copies=4), network, CrossEntropy())


def test_a_module_that_takes_something_else_is_unknown_and_stops_nothing() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    assert facts_of(Pair()).found == "could not be probed"
    assert not without_derivative(Pair())


# ---- what estimators make of it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [Backprop(), NoisyBackprop()], ids=lambda e: type(e).__name__)
def test_backpropagation_refuses_a_step_that_nobody_declared(estimator: Estimator) -> None:
    words = "cannot train through '1' (Function, found to be elementwise, jumping near 0, constant between"
    for refuse in (
        lambda: estimator.check(small_network(Function(step)), CrossEntropy()),
        lambda: estimate(estimator, small_network(Function(step)), CrossEntropy()),
    ):
        with refused(None, words, "or estimator=local_expectation"):
            refuse()


def test_backpropagation_refuses_a_step_in_a_forward_pass_of_ones_own() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second((self.first(x) > 0).to(x.dtype))

    with refused(None, "'network' (Network, found to be not elementwise, jumping", "or estimator=local_expectation"):
        estimate(Backprop(), Network().double(), CrossEntropy())


@pytest.mark.parametrize("estimator", [StraightThrough(), ForwardGradient()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("hard", [Function(step), nn.Hardshrink()], ids=["step", "hardshrink"])
def test_a_jump_without_cells_is_given_no_slope(estimator: Estimator, hard: nn.Module) -> None:
    network = nn.Sequential(*small_network(hard), PiecewiseConstant([0.0], [0.0, 1.0]), nn.Linear(2, 2)).double()
    with refused(None, "module '1'", "derive it from glr_lightning.activations.PiecewiseConstant"):
        estimate(estimator, network, CrossEntropy())


def test_backpropagation_refuses_steps_finer_than_a_probe_sees() -> None:
    network = small_network(Function(lambda v: torch.round(8192 * v) / 8192))
    with refused(None, "cannot train through '1' (Function, found to be elementwise, changing with a derivative of 0)"):
        estimate(Backprop(), network, CrossEntropy())


def test_local_expectation_moves_units_one_by_one_where_one_gates_the_others() -> None:
    gate = Function(lambda v: v.tanh() * torch.sigmoid(3 * v[..., 3:4]))
    network = nn.Sequential(nn.Linear(3, 50), gate, nn.Linear(50, 5)).double()
    assert "all units at once" not in LocalExpectation().plan(network, CrossEntropy())["0"]


def test_hybrid_splits_at_a_step_that_nobody_declared() -> None:
    sources = list(Hybrid().plan(small_network(Function(step)), CrossEntropy()).values())
    assert sources[0].startswith("likelihood ratio")
    assert sources[1].startswith("pathwise")


def test_a_module_that_draws_is_refused_where_it_breaks_an_estimator() -> None:
    network = small_network(Function(lambda v: v + torch.randn_like(v)))
    for estimator in (LikelihoodRatio(copies=4), LocalExpectation(), ForwardGradient()):
        with refused(None, "'1' (Function, found to draw random numbers)", "remove it"):
            estimate(estimator, network, CrossEntropy())


@pytest.mark.parametrize("act", [nn.Softsign(), nn.Mish(), Function(lambda v: v / (1 + v.abs()))], ids=repr)
def test_any_elementwise_activation_has_all_its_units_evaluated_at_once(act: nn.Module) -> None:
    network = nn.Sequential(nn.Linear(3, 50), act, nn.Linear(50, 2)).double()
    assert "all units at once" in LocalExpectation().plan(network, CrossEntropy())["0"]
    assert estimate(LocalExpectation(), network, CrossEntropy()).diagnostics["forwards"] == 2 * len(Y)


def test_the_description_says_what_was_found() -> None:
    lines = LocalExpectation().describe(small_network(Function(torch.tanh)), CrossEntropy())
    assert lines[-1] == "  module '1' (Function, found to be elementwise, continuous)"
    assert not any("module" in line for line in LocalExpectation().describe(small_network(nn.Tanh()), CrossEntropy()))


def test_a_declared_fact_is_believed() -> None:
    class Surrogate(nn.Module):
        facts = ModuleFacts(elementwise=True)

        def forward(self, v: Tensor) -> Tensor:
            return step(v).detach() + torch.tanh(v) - torch.tanh(v).detach()

    assert Backprop().check(small_network(Surrogate()), CrossEntropy()) is None
    assert estimate(Backprop(), small_network(Surrogate()), CrossEntropy()).gradients["0.weight"].abs().sum() > 0
