"""Local expectation: exact where it claims to be exact, unbiased where it draws, and of small variance."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.estimators import LikelihoodRatio, LocalExpectation, Tiered, local_expectation, output_loss
from glr_lightning.estimators.local_expectation import Beyond, parts_for_moves
from glr_lightning.estimators.output_loss import (
    CrossEntropyOutput,
    OutputLoss,
    ZeroOneOutput,
    noise_free_output,
    output_loss_for,
    output_of,
)
from glr_lightning.estimators.passes import noise_at
from glr_lightning.estimators.settings import IdleSettingError
from glr_lightning.estimators.unit_choice import Choice
from glr_lightning.injection import Joint
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.networks import Residual, Shift, mlp
from glr_lightning.noise import Gaussian, Noise, Uniform
from glr_lightning.propagation.graph import Graph
from glr_lightning.sampling import Independent
from tests.checks.estimator_cases import (
    IMAGES,
    LABELS,
    SIGMA,
    X,
    Y,
    check_gradient,
    estimate,
    every_density,
    reference,
    small_convnet,
    small_network,
)
from tests.checks.groups import member, options
from tests.checks.local_expectation import (
    GAUSSIAN,
    UNITS,
    a_head,
    check_deep,
    check_enumeration,
    check_local,
    check_zero_one_signal,
    threshold_network,
)
from tests.checks.oracles import TOLERANCE
from tests.checks.refusals import refused
from tests.checks.zscores import assert_gradient, repetitions

TERNARY = PiecewiseConstant(cuts=(-0.4, 0.5), levels=(-1.0, 0.2, 1.5))

CHOICES: tuple[Choice, ...] = ("uniform", "weighted")
SMOOTH = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


@final
@dataclass(frozen=True)
class Squared(Loss):
    """A loss that no head knows: the squared distance of the logits from the one-hot label."""

    differentiable = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - nn.functional.one_hot(labels, logits.shape[1])).square().sum(1)


LOSSES = {"cross_entropy": CrossEntropy(), "zero_one": ZeroOne(), "squared": Squared()}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


# ---- heads ----------------------------------------------------------------------------------------------------------


@every_density
@every_loss
def test_the_loss_after_each_step_is_the_loss_at_the_logits_moved_by_hand(loss: Loss, noise: Noise) -> None:
    head, u, step, columns = a_head(loss, noise)
    by_hand = torch.stack([head.values(u + step[:, j, None] * columns[:, j]) for j in range(UNITS)], dim=1)
    torch.testing.assert_close(head.after_steps(u, step, columns), by_hand, rtol=1e-12, atol=1e-12)
    up = step > 0
    jumps = 1.8 * up.double() - 0.9
    torch.testing.assert_close(
        head.after_jumps(u, up, 0.9, columns), head.after_steps(u, jumps, columns), rtol=1e-12, atol=1e-12
    )


@every_loss
def test_the_values_of_stacked_logits_are_those_of_each(loss: Loss) -> None:
    head, u, _, _ = a_head(loss, Gaussian())
    stacked = torch.stack([u, u + 0.3])
    torch.testing.assert_close(head.values(stacked), torch.stack([head.values(u), head.values(u + 0.3)]))


def test_each_loss_gets_its_head() -> None:
    kinds = [type(a_head(loss, Gaussian())[0]) for loss in LOSSES.values()]
    assert kinds == [CrossEntropyOutput, ZeroOneOutput, OutputLoss]


def test_a_jump_that_costs_hundreds_of_nats_stays_finite() -> None:
    z = torch.zeros(1, 2)
    head = output_loss_for(CrossEntropy(), Gaussian(), 1.0, z, torch.tensor([0]))
    got = head.after_jumps(torch.tensor([[500.0, 0.0]]), torch.tensor([[True]]), 1.0, torch.tensor([[-600.0], [300.0]]))
    assert torch.isfinite(got).all()
    assert float(got) > 80


@every_density
@pytest.mark.parametrize("spread", [1.0, 40.0])  # 40: many a softmax is 1 but for rounding
@pytest.mark.parametrize("classes", [2, 7])
def test_cross_entropys_signal_is_that_of_any_loss_with_the_same_draws(
    noise: Noise, spread: float, classes: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    u, z = torch.randn(2, 50, classes, generator=generator, dtype=torch.float64)
    u *= spread  # and the noise too, else no draw would reach the other logits
    labels = torch.randint(classes, (50,), generator=generator)
    slopes = noise.sample_slope(u.shape, generator=generator, dtype=u.dtype)
    expected, got = (
        kind(CrossEntropy(), noise, 0.7 * spread, z, labels).signal(u, slopes)
        for kind in (OutputLoss, CrossEntropyOutput)
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    assert (got.abs() > 1e-4).any(1).float().mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_logarithm_of_the_sum_of_the_others_is_accurate_to_rounding(dtype: torch.dtype) -> None:
    """Where one logit is hundreds of nats above the others, where the two largest tie, and with two classes."""
    v = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    v[:10, 2] += 300
    v[10:20, 1] = v[10:20, 4] = v[10:20].amax(1)
    for logits in (v, v[:, 1:3]):
        classes = logits.shape[1]
        others = logits.double()[:, None, :].masked_fill(torch.eye(classes, dtype=torch.bool), -torch.inf).logsumexp(2)
        got = output_loss._log_sum_of_others(logits)
        torch.testing.assert_close(
            got.double(), others, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps * 8
        )
    v[3, 0] = torch.nan
    assert output_loss._log_sum_of_others(v)[3].isnan().all()


def test_jumps_of_cross_entropy_take_no_selection_by_booleans() -> None:
    head, u, step, columns = a_head(CrossEntropy(), Gaussian())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        head.after_jumps(u, (step > 0).double(), 0.9, columns)
    calls = [event.name for event in profile.events()]
    assert not {"aten::where", "aten::index", "aten::log_softmax"} & set(calls)
    assert calls.count("aten::log_") == 1  # of the sum that a unit moves to, not of both


@every_loss
def test_the_losses_of_a_head_compile_without_a_break(loss: Loss) -> None:
    head, u, step, columns = a_head(loss, Gaussian())

    def losses(u: Tensor, step: Tensor, columns: Tensor) -> list[Tensor]:
        up = step > 0
        return [head.values(u), head.after_steps(u, step, columns), head.after_jumps(u, up, 0.9, columns)]

    compiled = torch.compile(losses, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(u, step, columns), losses(u, step, columns), rtol=0, atol=0)


def test_jumps_are_told_by_booleans_or_ones() -> None:
    for loss in LOSSES.values():
        head, u, step, columns = a_head(loss, Gaussian())
        up = step > 0
        assert torch.equal(head.after_jumps(u, up, 0.9, columns), head.after_jumps(u, up.double(), 0.9, columns))


@every_density
def test_zero_one_integrates_each_logits_own_noise_out(noise: Noise) -> None:
    check_zero_one_signal(noise)


def test_of_two_logits_the_only_rival_is_the_best() -> None:
    z = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    head = output_loss_for(ZeroOne(), Gaussian(), 1.0, z, torch.tensor([1]))
    u = torch.tensor([[0.1, 0.4]], dtype=torch.float64)
    f = Gaussian().log_prob(torch.tensor([0.2 - 0.1, 0.4 - 0.4], dtype=torch.float64)).exp()
    torch.testing.assert_close(head.signal(u, None), torch.stack([f[0], -f[1]])[None])


# ---- enumeration ----------------------------------------------------------------------------------------------------


@every_density
@every_loss
def test_local_expectation_equals_the_enumeration_of_all_states(loss: Loss, noise: Noise) -> None:
    check_enumeration(noise, loss, threshold_network(3, 4, 3), (0.8, 0.6))


@every_loss
def test_a_deeper_layer_equals_the_enumeration_of_all_states(loss: Loss) -> None:
    check_enumeration(Gaussian(), loss, threshold_network(3, 4, 2, 3), (0.8, 0.5, 0.6))


# ---- unbiased -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_density
@pytest.mark.parametrize("loss", options("loss"))
@pytest.mark.parametrize("activation", options("activation"))
def test_every_combination_is_unbiased_for_the_joint_objective(activation: str, loss: str, noise: Noise) -> None:
    for sampling in options("sampling"):
        check_local(
            member("activation", activation),
            member("loss", loss),
            noise,
            sampling=member("sampling", sampling),
        )


def test_three_cells_are_unbiased() -> None:
    check_local(TERNARY, CrossEntropy())
    check_local(TERNARY, ZeroOne())


@pytest.mark.parametrize(("units", "choice"), [(None, "uniform"), (1, "uniform"), (2, "uniform"), (2, "weighted")])
def test_deeper_layers_are_unbiased_for_any_share_of_their_units(units: int | None, choice: Choice) -> None:
    check_deep(threshold_network(3, 3, 2, 2), (0.5, 0.7, 0.9), units, X, Y, choice)


@pytest.mark.parametrize(("units", "choice"), [(None, "uniform"), (1, "uniform"), (3, "uniform"), (3, "weighted")])
def test_a_strided_convolution_is_unbiased(units: int | None, choice: Choice) -> None:
    check_deep(small_convnet(), (0.3, 0.5), units, IMAGES, LABELS, choice)


def test_modules_between_that_carry_a_change_or_mix_it_are_both_right() -> None:
    """A shift leaves the change of a unit as it is; a soft maximum over units does not, and takes the long way."""
    for between in (Shift(-0.5), nn.Softmax(dim=1)):
        network = nn.Sequential(nn.Linear(3, 2), HardThreshold(), between, nn.Linear(2, 2)).double()
        for parameter, source in zip(network.parameters(), small_network(HardThreshold()).parameters(), strict=True):
            parameter.data = source.data.clone()
        samples = repetitions(LocalExpectation(sigma=SIGMA, copies=4), network, CrossEntropy(), X, Y, number=3000)
        ratio = repetitions(LikelihoodRatio(sigma=SIGMA, copies=64), network, CrossEntropy(), X, Y, number=3000)
        expected = {name: values.mean(0) for name, values in ratio.items()}
        error = max(float(values.std(0).max()) for values in ratio.values()) / 3000**0.5
        check_gradient(samples, expected, resolution=0.3, tolerance=5 * error)


def test_moved_units_are_held_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network = threshold_network(3, 5, 4, 2)
    whole = estimate(LocalExpectation(units=4), network, ZeroOne())
    monkeypatch.setattr(local_expectation, "MOVED_ELEMENTS", 1)
    parts = estimate(LocalExpectation(units=4), network, ZeroOne())
    assert whole.diagnostics == parts.diagnostics
    for name, value in whole.gradients.items():
        torch.testing.assert_close(parts.gradients[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampling", options("sampling"))
def test_copies_are_held_a_few_at_a_time_and_stay_unbiased(sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_expectation, "MOVED_ELEMENTS", 2 * 2 * len(X) * 2)  # two copies of 2 units, 2 logits
    sampler = replace(member("sampling", sampling), **({"randomisations": 4} if sampling == "sobol" else {}))
    network, estimator = small_network(HardThreshold()), LocalExpectation(sigma=SIGMA, copies=8, sampling=sampler)
    assert parts_for_moves(Graph.of(network).shapes(X), len(X), 8, sampler.group_size(8)) == [2] * 4
    samples = repetitions(estimator, network, CrossEntropy(), X, Y, number=2000)
    check_gradient(samples, reference(network, GAUSSIAN, Joint(), CrossEntropy()), 0.3, TOLERANCE)
    assert estimate(estimator, network, CrossEntropy()).diagnostics["forwards"] == 9 * len(X)


def test_forwards_count_the_noisy_passes_and_the_units_of_deeper_layers() -> None:
    shallow = estimate(LocalExpectation(copies=3), threshold_network(3, 5, 2), ZeroOne())
    assert shallow.diagnostics["forwards"] == 4 * len(X)
    deep = estimate(LocalExpectation(copies=3, units=4), threshold_network(3, 5, 4, 2), ZeroOne())
    assert deep.diagnostics["forwards"] == 4 * len(X) + 3 * len(X) * 4


# ---- variance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [HardThreshold(), Sign(), nn.Sigmoid()], ids=["threshold", "sign", "sigmoid"])
@pytest.mark.parametrize("loss", [CrossEntropy(), ZeroOne()], ids=["cross_entropy", "zero_one"])
def test_one_copy_has_less_variance_than_four_of_the_likelihood_ratio(activation: nn.Module, loss: Loss) -> None:
    torch.manual_seed(0)
    network = mlp(image_shape=(1, 14, 14), classes=10, hidden=[20], activation=activation)
    x, y = torch.rand(8, 1, 14, 14), torch.arange(8)
    local, ratio = (
        repetitions(estimator, network, loss, x, y, number=200)
        for estimator in (LocalExpectation(copies=1), LikelihoodRatio(copies=4))
    )
    for name in ("linear1.weight", "linear2.weight"):
        assert float(local[name].var(0).sum()) < float(ratio[name].var(0).sum())


def test_units_chosen_by_weight_leave_less_variance() -> None:
    """Of 24 units with sharp thresholds few are near enough for their own noise to matter."""
    torch.manual_seed(0)
    network = mlp(image_shape=(1, 14, 14), classes=10, hidden=[24, 12], activation=HardThreshold())
    x, y = torch.rand(8, 1, 14, 14), torch.arange(8)
    uniform, weighted = (
        repetitions(
            LocalExpectation(sigma=0.05, copies=4, units=2, choice=choice), network, CrossEntropy(), x, y, number=200
        )["linear1.weight"]
        for choice in CHOICES
    )
    assert float(weighted.var(0).sum()) < 0.3 * float(uniform.var(0).sum())


# ---- options and refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "option", "advice"),
    [
        (lambda: LocalExpectation(noise=Uniform()), "noise", "Use noise=gaussian"),
        (lambda: LocalExpectation(units=0), "units", "a whole number from 1 to "),
        (lambda: LocalExpectation(choice="best"), "choice", "weighted"),  # type: ignore[arg-type]
        (lambda: LocalExpectation(copies=3, sampling=member("sampling", "antithetic")), "copies", "use copies="),
        (
            lambda: LocalExpectation(sigma=(1.0,)).check(small_network(nn.Tanh()), ZeroOne()),
            "estimator.sigma",
            "give one value, or 2",
        ),
        (
            lambda: LocalExpectation().check(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), ZeroOne()),
            None,
            "use estimator=likelihood_ratio",
        ),
        (
            lambda: LocalExpectation().check(
                nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2)), ZeroOne()
            ),
            None,
            "or put it in eval mode",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_advice(make: Callable[[], Any], option: str | None, advice: str) -> None:
    with refused(option, advice):
        make()


@pytest.mark.parametrize(
    ("units", "network", "advice"),
    [
        (32, threshold_network(3, 2, 2), "all its units evaluated at once"),
        (None, threshold_network(3, 40, 2, 2), "all units of the deeper layers are evaluated"),
        (4, SMOOTH, "have no steps"),
    ],
)
def test_a_choice_without_effect_is_refused(units: int | None, network: nn.Sequential, advice: str) -> None:
    with refused("estimator.choice", advice, error=IdleSettingError):
        LocalExpectation(choice="weighted", units=units).check(network, CrossEntropy())


def test_the_plan_says_how_each_layer_is_served() -> None:
    plan = LocalExpectation(units=4).plan(threshold_network(3, 5, 4, 2), ZeroOne())
    assert list(plan) == ["0", "2", "4"]
    for words, part in zip(plan.values(), ("4 units a sample", "all units at once", "at the logits"), strict=True):
        assert part in words
        assert "from loss values" in words
    weighted = LocalExpectation(units=4, choice="weighted").plan(threshold_network(3, 5, 4, 2), ZeroOne())
    assert weighted["0"].endswith("4 units a sample, chosen by weight")
    assert "all units, one at a time" in LocalExpectation(units=5).plan(threshold_network(3, 5, 4, 2), ZeroOne())["0"]
    assert "measure-valued" in LocalExpectation().plan(small_network(nn.Tanh()), CrossEntropy())["0"]


def test_under_bf16_autocast_differences_of_losses_stay_in_float32() -> None:
    network = threshold_network(3, 5, 4, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = estimate(LocalExpectation(), network, CrossEntropy(), X.float())
    assert {g.dtype for g in got.gradients.values()} == {torch.float32}


def test_a_loss_that_derives_from_a_known_one_gets_no_closed_form_of_it() -> None:
    class Twice(CrossEntropy):
        def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
            return 2 * super().__call__(logits, labels)

    head, _, _, _ = a_head(Twice(), GAUSSIAN)
    assert type(head) is OutputLoss


def test_a_layer_applied_at_several_places_takes_the_long_way_and_is_right() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(3, 2), HardThreshold(), nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = torch.randn(3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2])
    local, ratio = (
        repetitions(estimator, network, CrossEntropy(), x, y, number=2000)
        for estimator in (LocalExpectation(copies=4), LikelihoodRatio(copies=64))
    )
    expected = {name: values.mean(0) for name, values in ratio.items()}
    error = max(float(values.std(0).max()) for values in ratio.values()) / 2000**0.5
    check_gradient(local, expected, resolution=0.3, tolerance=5 * error)


def test_units_of_a_block_move_beside_a_shortcut_common_to_all_copies() -> None:
    body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1))
    block = Residual(body, nn.Sequential(nn.Conv2d(1, 2, 1)))
    graph = Graph.of(nn.Sequential(block, nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).double())
    x, y = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.arange(5) % 3
    sigma = (0.5,) * len(graph.sites)
    z = noise_at(graph, range(len(sigma)), x, Gaussian(), Independent(), 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        noisy = graph.noisy(graph.clean(x), z, sigma, keep=True)
        beyond = Beyond.of(graph, noisy, sigma, CrossEntropy(), Gaussian(), y)
        for at in noisy.seen[:-1]:  # moved to where they are
            units = at.v[0, 0].numel()
            chosen = torch.arange(units)[:, None, None].expand(units, 3, 5)
            expected = beyond.losses.view(3, 5).expand(units, 3, 5)
            torch.testing.assert_close(beyond.after_moves(at, at.v, chosen), expected)


@pytest.mark.parametrize("integrates", [True, False])
def test_a_loss_of_ones_own_registers_its_form(integrates: bool) -> None:
    class Own(CrossEntropy):
        pass

    @output_of(Own, integrates=integrates)
    class OwnOutput(OutputLoss):
        pass

    class Derived(Own):
        pass

    z, labels = torch.zeros(1, 3), torch.tensor([0])
    assert type(output_loss_for(Own(), Gaussian(), 1.0, z, labels)) is OwnOutput
    assert type(noise_free_output(Own(), Gaussian(), z, labels)) is (OutputLoss if integrates else OwnOutput)
    assert type(output_loss_for(Derived(), Gaussian(), 1.0, z, labels)) is OutputLoss


def test_a_form_that_integrates_noise_out_is_not_used_without_noise() -> None:
    z, labels = torch.zeros(1, 3), torch.tensor([0])
    assert type(noise_free_output(ZeroOne(), Gaussian(), z, labels)) is OutputLoss
    assert type(noise_free_output(CrossEntropy(), Gaussian(), z, labels)) is CrossEntropyOutput


# ---- which layers are on top -----------------------------------------------------------------------------------------


class CalledTwice(nn.Module):
    """Logits of a layer that is called before as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.c(torch.tanh(self.a(x))))))
        return self.c(h)  # type: ignore[no-any-return]


def test_words_of_tiered_are_those_of_the_layers_as_they_are_called() -> None:
    ratio = "likelihood ratio, from loss values"
    assert Tiered().plan(CalledTwice(), CrossEntropy()) == {
        "a": ratio,
        "c": ratio,
        "b": "local expectation, from loss values: all units at once",
    }
    shallow = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    assert Tiered().plan(shallow, CrossEntropy()) == {
        "0": "local expectation, from loss values: all units at once",
        "2": "local expectation at the logits, from loss values (CrossEntropy)",
    }


def test_a_normalisation_at_the_end_is_not_taken_for_an_affine_readout() -> None:
    """A move of a unit below it is no column of a matrix; the path derivative of many copies is the reference."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.LayerNorm(3)).double()
    network[2].weight.data.copy_(torch.tensor([1.0, 2.0, -1.0]))
    x, y, sigma, copies = torch.rand(2, 4, dtype=torch.float64), torch.tensor([0, 1]), 0.5, 20_000
    z = torch.randn(copies, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = network[2](torch.tanh(network[0](x) + sigma * z)).flatten(0, 1)
    loss = CrossEntropy()(logits, y.repeat(copies)).mean()
    (expected,) = torch.autograd.grad(loss, [network[0].bias])
    samples = repetitions(Tiered(sigma=sigma, copies=16), network, CrossEntropy(), x, y, number=800)["0.bias"]
    assert_gradient(samples, expected, resolution=0.3, tolerance=0.01)
