"""The tests of the tests: each defect that this method invites is planted, and the check that is to see it must fail.

A check is the very function that the other files call. Before the defect it passes; with it, it raises.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning import sampling
from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.baselines import Clean, LeaveOneOut, NoBaseline
from glr_lightning.estimators import (
    Backprop,
    Estimate,
    EvolutionStrategies,
    ForwardGradient,
    LikelihoodRatio,
    Tiered,
    evolution_strategies,
    forward_gradient,
    likelihood_ratio,
    local_expectation,
    straight_through,
)
from glr_lightning.estimators import output_loss as output_losses
from glr_lightning.estimators.moved_units import Beyond
from glr_lightning.estimators.passes import CleanBatch, Total, started
from glr_lightning.injection import Joint, Layerwise
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.noise import Gaussian, Laplace, Logistic, Noise, StudentT
from glr_lightning.propagation import graph as graphs
from glr_lightning.propagation import layer_vjp as layers
from glr_lightning.propagation import receptive_field as reach
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.receptive_field import Fields
from glr_lightning.sampling import Antithetic, Independent, Sobol
from glr_lightning.training.callbacks import gradient_quality as diagnostics
from glr_lightning.training.callbacks.gradient_quality import SignalToNoise
from tests.checks import receptive_field as reach_checks
from tests.checks import traced_networks as traced
from tests.checks.convolutional import ESTIMATORS as CONVOLUTIONAL
from tests.checks.convolutional import check_convolutional
from tests.checks.convolutional_cases import pooled, projected, residual
from tests.checks.copies_per_layer import check_copies_per_layer
from tests.checks.estimator_cases import (
    SIGMA,
    X,
    Y,
    check_unbiased,
    check_unbiased_with_stride,
    flat,
    reference,
    small_network,
)
from tests.checks.gradient_quality import check_signal_to_noise
from tests.checks.hybrid import check_above_a_threshold, check_below_a_zero_one_loss
from tests.checks.layer_vjp import check_weight_vjp, convolution
from tests.checks.learned_sigma import DEFAULT as SCALES
from tests.checks.learned_sigma import check_scale_gradient
from tests.checks.likelihood_ratio import check_coupled_score, check_variance_never_larger
from tests.checks.local_expectation import (
    check_deep,
    check_enumeration,
    check_local,
    check_zero_one_signal,
    threshold_network,
)
from tests.checks.noise import (
    ADMISSIBLE,
    check_conditional_scale_score,
    check_conditional_score,
    check_score,
    check_slope_radius,
)
from tests.checks.noisy_pass import check_passes
from tests.checks.peers import (
    check_all_patterns,
    check_error_of_one_weight,
    check_noise_on_weights,
    check_straight_through,
)
from tests.checks.published import check_training_step
from tests.checks.receptive_field import check_never_too_small, check_own_noise_is_no_part_of_the_baseline
from tests.checks.sampling import check_baseline_ignores_dependent_copies
from tests.checks.zscores import assert_mean, repetitions

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], None]

DEFAULT = LikelihoodRatio(copies=4)
PLAIN = replace(DEFAULT, score="plain")
COUPLED = replace(DEFAULT, score="coupled")
SOBOL = replace(DEFAULT, sampling=Sobol())

slopes = partial(check_straight_through, Gaussian(), Sign())
directions = partial(check_all_patterns, Joint(), small_network(nn.Tanh()), Backprop(), X, Y)

threshold = partial(check_unbiased, activation=HardThreshold(), loss=ZeroOne())
smooth = partial(check_unbiased, activation=nn.Tanh(), loss=CrossEntropy())


# ---- the defects ----------------------------------------------------------------------------------------------------


def estimate_divided_by_4(patch: pytest.MonkeyPatch) -> None:
    right = LikelihoodRatio._step

    def wrong(self: LikelihoodRatio, *args: Any) -> Estimate:
        estimate = right(self, *args)
        return replace(estimate, gradients={name: g / 4 for name, g in estimate.gradients.items()})

    patch.setattr(LikelihoodRatio, "_step", wrong)


def plain_leave_one_out_across_antithetic_pairs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Antithetic, "group", lambda self, copies, device: torch.arange(copies, device=device))


def a_sobol_group_split_into_its_copies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sobol, "group", lambda self, copies, device: torch.arange(copies, device=device))


def sobol_without_its_digital_shift(patch: pytest.MonkeyPatch) -> None:
    right = sampling._random_bits

    def wrong(shape: Any, generator: torch.Generator) -> Tensor:
        shift = len(shape) == 4  # the linear scramble, of three axes, is left
        return torch.zeros(shape, dtype=torch.int32) if shift else right(shape, generator)

    patch.setattr(sampling, "_random_bits", wrong)


def coupled_score_x_2(patch: pytest.MonkeyPatch) -> None:
    right = likelihood_ratio.coupled_score
    patch.setattr(likelihood_ratio, "coupled_score", lambda *args: 2 * right(*args))


def own_loss_inside_a_moving_average(patch: pytest.MonkeyPatch) -> None:
    """b = (1 - decay) * the past + decay * the present mean, which holds the copy's own loss."""
    past, decay = 0.4, 0.5

    def wrong(self: LeaveOneOut, loss: Tensor, group: Tensor, clean_loss: Tensor | None) -> Tensor:
        return (1 - decay) * past + decay * loss.mean(0)[None]

    patch.setattr(LeaveOneOut, "__call__", wrong)


def convolution_contraction_that_ignores_the_stride(patch: pytest.MonkeyPatch) -> None:
    """The cotangent meets the patches of a stride of 1. Right where the stride is 1 and there are no groups."""

    def wrong(x: Tensor, shape: Any, rows: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
        patches = nn.functional.unfold(x, tuple(shape[2:]), dilation=dilation, padding=padding)
        reach = [dilation[i] * (shape[2 + i] - 1) for i in range(2)]
        height, width = (x.shape[2 + i] + 2 * padding[i] - reach[i] for i in range(2))
        met = patches.unflatten(2, (height, width))[:, :, : rows.shape[2], : rows.shape[3]]
        return torch.einsum("nohw,nkhw->ok", rows, met).view(shape)

    patch.setattr(layers.weight_gradients, "conv2d_weight", wrong)


def score_of(wrong: Noise, right: type[Noise]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(right, "score", lambda self, z: wrong.score(z))

    return plant


def conditional_score_of(wrong: Noise, right: type[Noise]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(right, "conditional_score", lambda self, lower, upper: wrong.conditional_score(lower, upper))

    return plant


def signals_in_sample_major_rows(patch: pytest.MonkeyPatch) -> None:
    right = layers.rows_of

    def wrong(x: Tensor, signal: Tensor) -> Tensor:
        return right(x, signal) if x.shape[0] == signal.shape[1] else signal.transpose(0, 1).flatten(0, 1)

    patch.setattr(layers, "rows_of", wrong)


def losses_in_sample_major_rows(patch: pytest.MonkeyPatch) -> None:
    right = CleanBatch.run

    def wrong(self: CleanBatch, z: Any) -> Any:
        noisy, losses = right(self, z)
        copies, batch = losses.shape
        return noisy, losses.flatten().unflatten(0, (batch, copies)).T

    patch.setattr(CleanBatch, "run", wrong)


def slope_without_its_division_by_sigma(patch: pytest.MonkeyPatch) -> None:
    right = straight_through.smoothed_slope
    patch.setattr(straight_through, "smoothed_slope", lambda a, noise, sigma, v: sigma * right(a, noise, sigma, v))


def slope_that_forgets_the_jump(patch: pytest.MonkeyPatch) -> None:
    def wrong(activation: PiecewiseConstant, noise: Noise, sigma: float, v: Tensor) -> Tensor:
        return sum(noise.log_prob((cut - v) / sigma).exp() / sigma for cut in activation.cuts) + torch.zeros_like(v)

    patch.setattr(straight_through, "smoothed_slope", wrong)


def slope_with_the_first_layers_sigma_everywhere(patch: pytest.MonkeyPatch) -> None:
    right = straight_through.per_site
    patch.setattr(straight_through, "per_site", lambda sigma, sites: right(sigma, sites)[::-1])


def one_pattern_of_signs_for_all_layers(patch: pytest.MonkeyPatch) -> None:
    """Then E[u_1 u_2^T] is not 0, and each layer's estimate holds the other's gradient."""
    right = ForwardGradient._draws

    def wrong(*args: Any) -> Any:
        for part in right(*args):
            yield part._replace(z=dict.fromkeys(part.z, part.z[0]))

    patch.setattr(ForwardGradient, "_draws", wrong)


def derivatives_in_sample_major_rows(patch: pytest.MonkeyPatch) -> None:
    right = forward_gradient.directional_derivatives

    def wrong(*args: Any) -> Any:
        derivatives = right(*args)
        return derivatives.flatten().unflatten(0, derivatives.shape[::-1]).T

    patch.setattr(forward_gradient, "directional_derivatives", wrong)


def weights_noise_not_divided_by_sigma(patch: pytest.MonkeyPatch) -> None:
    right = EvolutionStrategies.estimate

    def wrong(self: EvolutionStrategies, *args: Any, **kwargs: Any) -> Estimate:
        estimate = right(self, *args, **kwargs)
        return replace(estimate, gradients={name: self.sigma * g for name, g in estimate.gradients.items()})

    patch.setattr(EvolutionStrategies, "estimate", wrong)


def twice(owner: Any, name: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)
        patch.setattr(owner, name, lambda *args: 2 * right(*args))

    return plant


def signal_without_its_division_by_sigma(patch: pytest.MonkeyPatch) -> None:
    right = graphs.weight_vjp

    def wrong(layer: nn.Linear, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
        first = layer.in_features == 3
        return right(layer, x, signal * SIGMA[0 if first else 1])

    patch.setattr(graphs, "weight_vjp", wrong)


def noise_of_twice_the_sigma_that_is_divided_by(patch: pytest.MonkeyPatch) -> None:
    right = Graph.noisy

    def wrong(self: Graph, clean: Any, noise: Any, sigma: Any, **options: Any) -> Any:
        return right(self, clean, noise, tuple(2 * s for s in sigma), **options)

    patch.setattr(Graph, "noisy", wrong)


def mean_square_for_signal(patch: pytest.MonkeyPatch) -> None:
    """|m|^2 without s^2 / W taken away: the noise of the mean is counted as signal."""
    right = SignalToNoise.compute_and_reset

    def wrong(self: SignalToNoise) -> dict[str, float]:
        return {name: ratio + 1 / diagnostics.WINDOW for name, ratio in right(self).items()}

    patch.setattr(SignalToNoise, "compute_and_reset", wrong)


def scale_score_without_its_minus_1(patch: pytest.MonkeyPatch) -> None:
    right = LikelihoodRatio._scale_score
    patch.setattr(LikelihoodRatio, "_scale_score", lambda self, *args: right(self, *args) + 1)


def slope_radius_of_another_density(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Gaussian, "slope_radius", lambda self, u: Logistic().slope_radius(u))


def share_of_the_units_not_divided_by_its_probability(patch: pytest.MonkeyPatch) -> None:
    right = Beyond.after_moves

    def wrong(self: Any, at: Any, target: Tensor, chosen: Tensor) -> Tensor:
        losses = self.losses.view(at.v.shape[:2])
        change = right(self, at, target, chosen) - losses
        return losses + change * len(chosen) / at.v[0, 0].numel()

    patch.setattr(Beyond, "after_moves", wrong)


def fresh_noise_above_a_moved_unit(patch: pytest.MonkeyPatch) -> None:
    """Unbiased still, but not under common random numbers: the enumeration sees it."""
    right = Beyond.after_moves

    def wrong(self: Any, at: Any, *args: Tensor) -> Tensor:
        seen = [replace(site, z=-site.z, v=2 * site.v0 - site.v) for site in self.noisy.seen]
        return right(replace(self, noisy=self.noisy._replace(seen=seen)), at, *args)

    patch.setattr(Beyond, "after_moves", wrong)


def jumps_the_other_way(patch: pytest.MonkeyPatch) -> None:
    right = output_losses.CrossEntropyOutput.after_jumps
    patch.setattr(
        output_losses.CrossEntropyOutput, "after_jumps", lambda self, u, up, *args: right(self, u, 1 - up, *args)
    )


def reach_too_small_by_one_place(patch: pytest.MonkeyPatch) -> None:
    right = reach._window

    def wrong(*args: Any) -> tuple[Tensor, Tensor]:
        first, last = right(*args)
        return first, last - 1

    patch.setattr(reach, "_window", wrong)


def reach_of_nothing(patch: pytest.MonkeyPatch) -> None:
    """The baseline is then the loss itself, own noise included."""
    right = likelihood_ratio.fields_of

    def wrong(*args: Any) -> Fields | None:
        found = right(*args)
        return found and replace(found, members=tuple(map(torch.zeros_like, found.members)))

    patch.setattr(likelihood_ratio, "fields_of", wrong)
    patch.setattr(reach_checks, "fields_of", wrong)


def reach_of_the_neighbours(patch: pytest.MonkeyPatch) -> None:
    """Each place with the reach of the one before it: height and width right, rows shifted."""
    right = likelihood_ratio.fields_of

    def wrong(*args: Any) -> Fields | None:
        found = right(*args)
        return found and replace(found, of_place=(found.of_place[0].roll(1), found.of_place[1]))

    patch.setattr(likelihood_ratio, "fields_of", wrong)
    patch.setattr(reach_checks, "fields_of", wrong)


def sum_of_branches_in_sample_major_rows(patch: pytest.MonkeyPatch) -> None:
    """The rows of what has no noise yet are repeated one by one and not as a whole."""

    def wrong(values: list[Tensor], layouts: Any, *, sizes: bool) -> list[Tensor]:
        rows = max(map(len, values))
        return [value.repeat_interleave(rows // len(value), dim=0) for value in values]

    patch.setattr(graphs, "aligned", wrong)


def a_path_beside_the_noise_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A pass that starts in a block goes on without what the shortcut carries."""
    right = graphs.aligned

    def wrong(values: list[Tensor], layouts: Any, *, sizes: bool) -> list[Tensor]:
        rows = max(map(len, values))
        return right([v if len(v) == rows else torch.zeros_like(v) for v in values], layouts, sizes=sizes)

    patch.setattr(graphs, "aligned", wrong)


def mean_over_the_copies_of_the_first_layer(patch: pytest.MonkeyPatch) -> None:
    copies_are_counted_as(lambda estimator, graph: estimator.copies_at(graph, (0,)), patch)


def mean_over_a_number_of_copies_for_all_layers(patch: pytest.MonkeyPatch) -> None:
    """Where every layer has a likelihood ratio of its own."""
    copies_are_counted_as(lambda estimator, graph: 2000, patch)


def copies_are_counted_as(number: Callable[[LikelihoodRatio, Graph], int], patch: pytest.MonkeyPatch) -> None:
    """The mean of each layer is taken over another number of copies than were drawn."""
    right = LikelihoodRatio.add

    def wrong(self: LikelihoodRatio, total: Total, batch: CleanBatch, part: Any, shapes: Any) -> None:
        own = started(batch.y)
        right(self, own, batch, part, shapes)
        factor = self.copies_at(batch.graph, part.sites) / number(self, batch.graph)
        total.add({name: factor * g for name, g in own.gradients.items()})
        total.count(part, own.loss, 0)

    patch.setattr(LikelihoodRatio, "add", wrong)


def normalisation_contracted_with_its_input(patch: pytest.MonkeyPatch) -> None:
    """Not with what it has made of it."""

    def as_it_is(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x

    patch.setattr(layers, "functional", SimpleNamespace(group_norm=as_it_is, layer_norm=as_it_is))


def cotangent_of_one_copy(patch: pytest.MonkeyPatch) -> None:
    """The likelihood ratio at the logits forgets its division by sigma."""
    right = LikelihoodRatio.score_of
    patch.setattr(LikelihoodRatio, "score_of", lambda self, graph, at, sigma: sigma * right(self, graph, at, sigma))


def gradients_of_a_layers_first_call_alone(patch: pytest.MonkeyPatch) -> None:
    right = Graph.weight_vjp

    def wrong(self: Graph, site: int, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
        first = self.layer_of.index(self.layer_of[site])
        return right(self, site, x, signal if site == first else torch.zeros_like(signal))

    patch.setattr(Graph, "weight_vjp", wrong)


def a_site_with_two_readers_is_read_by_the_first_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Graph, "only_user", lambda self, number: next(iter(self.users[number]), None))


def a_map_that_is_broadcast_reaches_its_own_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reach, "_everywhere", lambda field, size: field)


def one_draw_for_all_calls_of_a_layer(patch: pytest.MonkeyPatch) -> None:
    right = likelihood_ratio.noise_at

    def wrong(graph: Graph, *args: Any, **options: Any) -> dict[int, Tensor]:
        drawn = right(graph, *args, **options)
        return {site: drawn[graph.layer_of.index(graph.layer_of[site])] for site in drawn}

    patch.setattr(likelihood_ratio, "noise_at", wrong)


def scale_of_a_layers_first_call_alone(patch: pytest.MonkeyPatch) -> None:
    right = Total.log_sigma_of

    def wrong(self: Total, graph: Graph, scales: Any) -> tuple[Tensor, ...]:
        first = {site: graph.layer_of.index(graph.layer_of[site]) == site for site in self.log_sigma}
        self.log_sigma = {site: value * first[site] for site, value in self.log_sigma.items()}
        return right(self, graph, scales)

    patch.setattr(Total, "log_sigma_of", wrong)


# ---- which check sees them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    plant: Plant
    check: Check
    says: str  # in the failure's message, so that it fails for its own reason


GRADIENT, LAW, EQUAL = "expected", "moved", "not close"
CASES = {
    # the six that are named in the design
    "divided by 4, defaults": Case(estimate_divided_by_4, partial(threshold, DEFAULT), GRADIENT),
    "divided by 4, smooth": Case(estimate_divided_by_4, partial(smooth, PLAIN), GRADIENT),
    "divided by 4, published": Case(estimate_divided_by_4, partial(check_training_step, "lrs", "laplace"), EQUAL),
    "pairs, 4 copies": Case(plain_leave_one_out_across_antithetic_pairs, partial(threshold, DEFAULT), GRADIENT),
    "pairs, 8 copies": Case(
        plain_leave_one_out_across_antithetic_pairs,
        partial(threshold, replace(DEFAULT, copies=8), number=40_000, resolution=0.1),
        GRADIENT,
    ),
    "pairs, law 2": Case(
        plain_leave_one_out_across_antithetic_pairs,
        partial(check_baseline_ignores_dependent_copies, LeaveOneOut(), Antithetic()),
        LAW,
    ),
    "sobol group split": Case(a_sobol_group_split_into_its_copies, partial(threshold, SOBOL), GRADIENT),
    "sobol group split, law 2": Case(
        a_sobol_group_split_into_its_copies,
        partial(check_baseline_ignores_dependent_copies, LeaveOneOut(), Sobol()),
        LAW,
    ),
    "sobol without digital shift": Case(sobol_without_its_digital_shift, partial(threshold, SOBOL), GRADIENT),
    "moving average": Case(
        own_loss_inside_a_moving_average, partial(threshold, DEFAULT, number=40_000, resolution=0.1), GRADIENT
    ),
    "moving average, law 2": Case(
        own_loss_inside_a_moving_average,
        partial(check_baseline_ignores_dependent_copies, LeaveOneOut(), Independent()),
        LAW,
    ),
    "stride, product": Case(
        convolution_contraction_that_ignores_the_stride,
        partial(check_weight_vjp, convolution(stride=2), 4, 9, 8),
        "weight",
    ),
    "stride, layerwise": Case(
        convolution_contraction_that_ignores_the_stride, partial(check_unbiased_with_stride, Layerwise()), GRADIENT
    ),
    "stride, joint": Case(
        convolution_contraction_that_ignores_the_stride, partial(check_unbiased_with_stride, Joint()), GRADIENT
    ),
    "sample-major signals, product": Case(
        signals_in_sample_major_rows, partial(check_weight_vjp, nn.Linear(5, 7).double(), 5), "weight"
    ),
    "sample-major signals": Case(signals_in_sample_major_rows, partial(threshold, DEFAULT), GRADIENT),
    "sample-major signals, published": Case(
        signals_in_sample_major_rows, partial(check_training_step, "lrtz", "laplace"), EQUAL
    ),
    "sample-major losses": Case(losses_in_sample_major_rows, partial(threshold, DEFAULT), GRADIENT),
    # a wrong density's score, and a factor of two in each formula
    "Laplace scored as Gaussian": Case(
        score_of(Gaussian(), Laplace), partial(smooth, replace(PLAIN, noise=Laplace())), GRADIENT
    ),
    "Gaussian scored as Laplace": Case(
        score_of(Laplace(), Gaussian), partial(smooth, PLAIN, number=40_000, resolution=0.15), GRADIENT
    ),
    "Student scored as Gaussian": Case(
        score_of(Gaussian(), StudentT), partial(smooth, replace(PLAIN, noise=StudentT())), GRADIENT
    ),
    "Laplace scored as Gaussian, published": Case(
        score_of(Gaussian(), Laplace), partial(check_training_step, "lrs", "laplace"), EQUAL
    ),
    "Laplace's cells scored as the Gaussian's": Case(
        conditional_score_of(Gaussian(), Laplace),
        partial(threshold, replace(DEFAULT, noise=Laplace()), number=40_000, resolution=0.15),
        GRADIENT,
    ),
    "score x 2": Case(twice(Gaussian, "score"), partial(smooth, PLAIN), GRADIENT),
    "score x 2, law 1": Case(twice(Gaussian, "score"), partial(check_score, Gaussian()), EQUAL),
    "conditional score x 2": Case(twice(Noise, "conditional_score"), partial(threshold, DEFAULT), GRADIENT),
    "conditional score x 2, quadrature": Case(
        twice(Noise, "conditional_score"), partial(check_conditional_score, Logistic()), "assert"
    ),
    "coupled score x 2": Case(coupled_score_x_2, partial(threshold, COUPLED), GRADIENT),
    "coupled score x 2, quadrature": Case(
        coupled_score_x_2, partial(check_coupled_score, Logistic(), HardThreshold()), "assert"
    ),
    "coupled score x 2, variance": Case(
        coupled_score_x_2,
        partial(check_variance_never_larger, replace(COUPLED, copies=8), replace(PLAIN, copies=8)),
        GRADIENT,
    ),
    "not divided by sigma": Case(signal_without_its_division_by_sigma, partial(smooth, PLAIN), GRADIENT),
    # the peers
    "slope x 2": Case(twice(straight_through, "smoothed_slope"), slopes, "0.weight"),
    "slope not divided by sigma": Case(slope_without_its_division_by_sigma, slopes, "0.weight"),
    "slope without the jump": Case(slope_that_forgets_the_jump, slopes, "0.weight"),
    "slope of another layer's sigma": Case(slope_with_the_first_layers_sigma_everywhere, slopes, "0.weight"),
    "one pattern of signs": Case(one_pattern_of_signs_for_all_layers, directions, "weight"),
    "derivatives in sample-major rows": Case(derivatives_in_sample_major_rows, directions, "weight"),
    "weights: losses x 2": Case(
        twice(evolution_strategies, "batch_losses"), partial(check_error_of_one_weight, Gaussian()), GRADIENT
    ),
    "weights: not divided by sigma": Case(
        weights_noise_not_divided_by_sigma, partial(check_noise_on_weights, Gaussian()), GRADIENT
    ),
    "weights: Laplace scored as Gaussian": Case(
        score_of(Gaussian(), Laplace), partial(check_noise_on_weights, Laplace()), GRADIENT
    ),
    "scale score x 2": Case(
        twice(LikelihoodRatio, "_scale_score"), partial(check_scale_gradient, SCALES, "neuron"), GRADIENT
    ),
    "scale score without its - 1": Case(
        scale_score_without_its_minus_1,
        partial(check_scale_gradient, replace(SCALES, baseline=NoBaseline()), "layer", resolution=0.6),
        GRADIENT,
    ),
    "conditional scale score x 2, quadrature": Case(
        twice(Noise, "conditional_scale_score"), partial(check_conditional_scale_score, Logistic()), "assert"
    ),
    "noise not averaged over windows": Case(mean_square_for_signal, check_signal_to_noise, EQUAL),
    # local expectation and hybrid
    "weights of the branches x 2": Case(
        twice(local_expectation, "density_at_0"), partial(check_local, nn.Tanh(), CrossEntropy()), GRADIENT
    ),
    "radius of another density": Case(
        slope_radius_of_another_density, partial(check_local, nn.Tanh(), CrossEntropy()), GRADIENT
    ),
    "radius of another density, quadrature": Case(
        slope_radius_of_another_density, partial(check_slope_radius, Gaussian()), EQUAL
    ),
    "units not divided by their probability": Case(
        share_of_the_units_not_divided_by_its_probability,
        partial(check_deep, threshold_network(3, 3, 2, 2), (0.5, 0.7, 0.9), 1, X, Y),
        GRADIENT,
    ),
    "noise above not in common": Case(
        fresh_noise_above_a_moved_unit,
        partial(check_enumeration, Gaussian(), CrossEntropy(), threshold_network(3, 4, 2, 3), (0.8, 0.5, 0.6)),
        EQUAL,
    ),
    "jumps the other way": Case(
        jumps_the_other_way,
        partial(check_enumeration, Gaussian(), CrossEntropy(), threshold_network(3, 4, 3), (0.8, 0.6)),
        EQUAL,
    ),
    "0-1 loss of a label x 2": Case(
        twice(output_losses.ZeroOneOutput, "signal"), partial(check_zero_one_signal, Gaussian()), EQUAL
    ),
    "hybrid: logits not divided by sigma": Case(cotangent_of_one_copy, check_below_a_zero_one_loss, GRADIENT),
    "hybrid: thresholds not divided by sigma": Case(cotangent_of_one_copy, check_above_a_threshold, GRADIENT),
    # convolutional networks
    "reach too small": Case(reach_too_small_by_one_place, check_never_too_small, "missing"),
    "reach too small, own noise": Case(
        reach_too_small_by_one_place,
        partial(check_own_noise_is_no_part_of_the_baseline, Layerwise(), Antithetic(), make=pooled),
        "own noise",
    ),
    "reach too small, mean": Case(
        reach_too_small_by_one_place,
        partial(check_convolutional, CONVOLUTIONAL["likelihood_ratio layerwise"], "pooled", "tanh"),
        GRADIENT,
    ),
    "reach of nothing, own noise": Case(
        reach_of_nothing, partial(check_own_noise_is_no_part_of_the_baseline, Joint(), Antithetic()), "own noise"
    ),
    "reach of nothing, mean": Case(
        reach_of_nothing, partial(check_convolutional, CONVOLUTIONAL["tiered"], "projected", "tanh"), GRADIENT
    ),
    "reach of the neighbours": Case(
        reach_of_the_neighbours, partial(check_own_noise_is_no_part_of_the_baseline, Joint(), Antithetic()), "own noise"
    ),
    "sum in sample-major rows, pass": Case(
        sum_of_branches_in_sample_major_rows, partial(check_passes, projected), EQUAL
    ),
    "sum in sample-major rows, mean": Case(
        sum_of_branches_in_sample_major_rows,
        partial(check_convolutional, CONVOLUTIONAL["likelihood_ratio layerwise"], "residual", "tanh"),
        GRADIENT,
    ),
    "nothing waits, pass": Case(a_path_beside_the_noise_is_forgotten, partial(check_passes, residual), EQUAL),
    "nothing waits, mean": Case(
        a_path_beside_the_noise_is_forgotten,
        partial(check_convolutional, CONVOLUTIONAL["tiered"], "projected", "tanh"),
        GRADIENT,
    ),
    "copies of the first layer": Case(
        mean_over_the_copies_of_the_first_layer, partial(check_copies_per_layer, LikelihoodRatio), GRADIENT
    ),
    "copies of no layer, tiered": Case(
        mean_over_a_number_of_copies_for_all_layers, partial(check_copies_per_layer, Tiered), GRADIENT
    ),
    "normalisation's input, product": Case(
        normalisation_contracted_with_its_input,
        partial(check_weight_vjp, nn.GroupNorm(2, 6).double(), 6, 4, 3),
        "weight",
    ),
    "normalisation's input, product of layer norm": Case(
        normalisation_contracted_with_its_input, partial(check_weight_vjp, nn.LayerNorm(6).double(), 6), "weight"
    ),
    "normalisation's input, mean": Case(
        normalisation_contracted_with_its_input,
        partial(check_convolutional, CONVOLUTIONAL["tiered"], "normalised", "tanh"),
        GRADIENT,
    ),
    "traced: sum in sample-major rows": Case(
        sum_of_branches_in_sample_major_rows, partial(traced.check_noisy_pass, traced.Residual), EQUAL
    ),
    "traced: first call alone, twin": Case(
        gradients_of_a_layers_first_call_alone,
        partial(traced.check_twin, DEFAULT, traced.Recurrent, HardThreshold(), CrossEntropy()),
        EQUAL,
    ),
    "traced: first call alone, mean": Case(
        gradients_of_a_layers_first_call_alone,
        partial(traced.check_exact, LikelihoodRatio(copies=8), traced.Recurrent),
        GRADIENT,
    ),
    "traced: two readers": Case(a_site_with_two_readers_is_read_by_the_first_alone, traced.check_read_twice, EQUAL),
    "traced: broadcast": Case(
        a_map_that_is_broadcast_reaches_its_own_place, partial(reach_checks.check_functional, "mean_added"), "missing"
    ),
    "traced: one draw for all calls": Case(
        one_draw_for_all_calls_of_a_layer,
        partial(traced.check_exact, LikelihoodRatio(copies=8), traced.Recurrent),
        GRADIENT,
    ),
    "traced: scale of the first call": Case(
        scale_of_a_layers_first_call_alone, partial(traced.check_scales, traced.Recurrent), GRADIENT
    ),
    "twice the noise": Case(noise_of_twice_the_sigma_that_is_divided_by, partial(threshold, DEFAULT), GRADIENT),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_planted_defect_turns_its_check_red(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.check()
    case.plant(monkeypatch)
    with pytest.raises(AssertionError, match=case.says):
        case.check()


@pytest.mark.parametrize("right", ADMISSIBLE)
@pytest.mark.parametrize("wrong", ADMISSIBLE)
def test_no_density_passes_with_the_score_of_another(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if right == wrong:
        check_score(ADMISSIBLE[right])
        return
    score_of(ADMISSIBLE[wrong], type(ADMISSIBLE[right]))(monkeypatch)
    with pytest.raises(AssertionError):
        check_score(ADMISSIBLE[right])


def test_where_the_stride_is_1_the_planted_contraction_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is the stride, and nothing else about the plant, that its checks see."""
    convolution_contraction_that_ignores_the_stride(monkeypatch)
    check_weight_vjp(convolution(), 4, 9, 8)
    check_weight_vjp(convolution(padding=(2, 1), dilation=(1, 2)), 4, 9, 8)


@pytest.mark.parametrize("copies", [4, 8])
def test_plain_leave_one_out_across_pairs_is_k_over_k_minus_1_too_long(
    copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the defect is known, with the plain score, so the statistics can be held to that as well."""
    plain_leave_one_out_across_antithetic_pairs(monkeypatch)
    network = small_network(HardThreshold())
    samples = repetitions(replace(PLAIN, copies=copies, sigma=SIGMA), network, ZeroOne(), X, Y, number=10_000)
    expected = reference(network, Gaussian(), Joint(), ZeroOne())
    target = flat(expected, list(expected))
    got = torch.cat([samples[name].flatten(1) for name in expected], dim=1)
    assert_mean(got @ target / target.norm() ** 2, copies / (copies - 1), tolerance=1e-3)


def test_the_clean_baseline_does_not_care_about_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_leave_one_out_across_antithetic_pairs(monkeypatch)
    threshold(replace(DEFAULT, baseline=Clean()))
