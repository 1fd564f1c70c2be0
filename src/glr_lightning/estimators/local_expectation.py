"""Local expectation gradients (LEG): every unit's own noise is integrated out, given the noise of all others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant, is_above
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.moved_units import Beyond
from glr_lightning.estimators.output_loss import density_at_0, drawn, needs_slopes
from glr_lightning.estimators.passes import Part, full_precision, noise_at, started
from glr_lightning.estimators.settings import (
    check_sites,
    even_parts,
    per_site,
    require_defaults,
    require_logits_of_a_layer,
)
from glr_lightning.estimators.unit_choice import Choice, by_weight, draw_choice
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise, require_admissible
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.moves import moves
from glr_lightning.propagation.readout import is_under_the_logits, readout_weight
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.propagation.values import NoisySite, Shapes
from glr_lightning.sampling import Independent, Sampler
from glr_lightning.validation import Count, ScalePerLayer

DEFAULT_UNITS = 32
MOVED_ELEMENTS = 2**22
"""Numbers of moved units that are held at once (16 MiB)."""
CACHED_ELEMENTS = 2**19
"""Pre-activations above moved units that are held at once on a CPU (1 MiB), about what a core's cache holds."""


@dataclass(frozen=True)
class LocalExpectation(Estimator):
    """Gradient of J(theta) = E[L] from loss values: what each unit's own noise does is computed, not sampled.

    Quantity. The gradient of the jointly smoothed objective, as `LikelihoodRatio` with joint injection has it.

    Estimator. For a unit with noise-free pre-activation v0, and all other noise fixed, the derivative of the
    expectation over its own noise is a weighted sum of losses with this unit moved (common random numbers):

        piecewise-constant phi   sum_c P_c'(v0) L(h = level_c),   P_c' = (f(t_c) - f(t_{c+1})) / sigma,
                                 t_c = (cut_c - v0) / sigma;  for a threshold  f(t) / sigma (L(1) - L(0))
        any other phi            f(0) / sigma (L(phi(v0 + sigma r)) - L(phi(v0 - sigma r))),  r ~ |f'| / f(0)

    (the first is exact, the second a draw of the measure-valued derivative, `Noise.sample_slope`). The weights add
    up to 0, so losses count as differences to the loss as it was drawn. The mean over K draws of all
    noise is unbiased by the tower rule: E[dE[L | others]/dv0] = dE[L]/dv0. Since nothing but a unit's own
    influence enters, the variance does not grow with the number of units, as that of a likelihood ratio does.

    Cost. A moved unit of the last hidden layer, also of a convolutional one, is a rank-one change of the logits: all
    units together cost about one more matrix product per copy (`OutputLoss.after_jumps`). A unit of a deeper layer
    costs a forward pass through what it changes above (`moves.py`); `units` evaluates that many at random for each
    sample and divides by their probability. Most units of a sharp threshold are far from it, and their own noise does
    nothing: choice="weighted" chooses by the weights P_c', which leaves a small part of the variance. Where the last
    layer itself reads such a unit, beside others (`torch.cat`), what the unit does by that alone is a rank-one change
    again, known for all units, and only what it does besides is evaluated for some: a control variate.

    At the logits the same holds with phi the identity; 0-1 loss is piecewise constant in each logit, and its noise is
    integrated out exactly (`ZeroOneOutput`).

    References. Titsias & Lazaro-Gredilla, NeurIPS 2015 (local expectation gradients); Pflug 1989 and Heidergott &
    Vazquez-Abad 2008 (measure-valued derivatives).

    Preconditions. An admissible density; samples that do not influence each other; the logits are a layer's output.

    Args:
        noise: the standardised density.
        sigma: its scale, one value or one per layer, in units of the pre-activation.
        copies: K, how often all noise is drawn; in Python one by default, in configuration files 32.
        sampling: how the copies are drawn; in Python independent by default, in configuration files antithetic.
        units: how many units of a layer below the last hidden one are evaluated per sample and step, None for all.
        choice: how they are chosen: "uniform", or "weighted", in proportion to their weight in the sum above, where
            they have steps.

    Raises:
        ConfigurationError: any of these is out of range, or the network does not fit.
    """

    noise: Noise = Gaussian()
    sigma: ScalePerLayer = 1.0
    copies: Count = 1
    sampling: Sampler = Independent()
    units: Count | None = DEFAULT_UNITS
    choice: Choice = "uniform"

    family: ClassVar[Family] = "likelihood ratio"
    needs_derivatives: ClassVar[bool] = False
    objective: ClassVar[Objective] = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_admissible(self.noise)
        self.sampling.check(self.noise, self.copies)

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Local expectation at every layer, exact or by the measure-valued derivative."""
        graph = Graph.of(network)
        words = {}
        for site in reversed(range(len(graph.sites))):  # of several sites of a layer the first has the last word
            exact = isinstance(graph.follower(site), PiecewiseConstant)
            how = "own noise integrated out" if exact else "measure-valued derivative"
            if site == len(graph.sites) - 1:
                words[site] = f"local expectation at the logits, from loss values ({type(loss).__name__})"
            elif is_under_the_logits(graph, site):
                words[site] = f"local expectation, from loss values: {how}, all units at once"
            else:
                words[site] = f"local expectation, from loss values: {how}, {self._share(graph.layer(site))}"
        return {layer: words[graph.layer_of.index(number)] for number, layer in enumerate(graph.layers)}

    def _share(self, layer: nn.Module) -> str:
        """Return in words how many units of a deeper layer are evaluated."""
        width = layer.out_features if isinstance(layer, nn.Linear) else None  # of a convolution known with an input
        if self.units is None or (width is not None and width <= self.units):
            return "all units, one at a time"
        return f"{self.units} units a sample" + (", chosen by weight" if self.choice == "weighted" else "")

    def _require(self, bound: Bound) -> None:
        check_sites(bound.graph, self.sigma, self.sampling)
        require_separate_samples(bound.graph.named_modules)
        require_logits_of_a_layer(bound.graph)

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        require_defaults(self, self._idle(bound.graph, None if x is None else bound.graph.shapes(x)))

    def _idle(self, graph: Graph, shapes: Shapes | None) -> dict[str, str]:
        """The settings that have no effect on this network, with the reason."""
        deeper = [site for site in range(len(graph.sites) - 1) if not is_under_the_logits(graph, site)]
        if not deeper:
            return dict.fromkeys(("units", "choice"), "every hidden layer has all its units evaluated at once")
        layers = [graph.layer(site) for site in deeper]
        if shapes is not None:
            widths = [shapes.sites[site].numel() for site in deeper]
        elif all(isinstance(layer, nn.Linear) for layer in layers):
            widths = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
        else:  # the width of a convolution is known once it has seen an input
            return {}
        most, idle = max(widths), {}
        if self.units is None and most <= DEFAULT_UNITS:
            idle["units"] = f"no deeper layer has more than {DEFAULT_UNITS} units"
        if self.units is not None and self.units >= most:
            idle["units"] = f"no deeper layer has more than {most} units, and units=null evaluates all"
        if self.units is None or self.units >= most:
            idle["choice"] = "all units of the deeper layers are evaluated"
        elif not any(isinstance(graph.follower(site), PiecewiseConstant) for site in deeper):
            idle["choice"] = "the units of the deeper layers have no steps, so they all weigh the same"
        return idle

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Part]:
        graph, size = bound.graph, self.sampling.group_size(self.copies)
        for copies in parts_for_moves(graph.shapes(x), len(x), self.copies, size):
            sampler = self.sampling.part(copies // size)
            z = noise_at(graph, range(len(graph.sites)), x, self.noise, sampler, copies, generator)
            slopes, chosen = {}, {}
            for site in z:
                if self._is_sampled(graph, site):
                    moves(graph, site, graph.shapes(x))  # found before the first step, which may be a compiled one
                    chosen[site] = draw_choice(self.choice, z[site], self.units, generator)
                if self.reads_slopes(graph, site, bound.loss):
                    slopes[site] = self.noise.sample_slope(z[site].shape, generator=generator, dtype=z[site].dtype)
            yield Part(z, slopes, chosen)

    def _is_sampled(self, graph: Graph, site: int) -> bool:
        """Whether units of a site are moved one at a time."""
        return site != len(graph.sites) - 1 and not is_under_the_logits(graph, site)

    def reads_slopes(self, graph: Graph, site: int, loss: Loss) -> bool:
        """Whether the signal of a site takes draws of the measure-valued derivative."""
        if site == len(graph.sites) - 1:
            return needs_slopes(loss)
        return not isinstance(graph.follower(site), PiecewiseConstant)

    @torch.no_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Part]) -> Estimate:
        """Average over the copies the derivatives of the local expectations."""
        graph, sigma = bound.graph, per_site(self.sigma, bound.graph)
        clean, total, samples = graph.clean(x), started(y), self.copies * len(y)
        deeper = any(self._is_sampled(graph, site) for site in range(len(graph.sites)))
        for part in noise:
            noisy = graph.noisy(clean, part.z, sigma, keep=deeper)
            with full_precision(x):
                beyond = Beyond.of(graph, noisy, sigma, bound.loss, self.noise, y)
                forwards = beyond.losses.numel()
                for at in noisy.seen:
                    signal, moved = self._signal(beyond, at, part)
                    forwards += moved
                    total.add(graph.weight_vjp(at.site, at.x, signal / samples))
                total.count(part, beyond.losses.sum() / samples, forwards)
        return Estimate(total.gradients, total.mean_loss, clean.logits, {"forwards": total.forwards})

    def _signal(self, beyond: Beyond, at: NoisySite, part: Part) -> tuple[Tensor, int]:
        """dE[L]/dv0 [copies, batch, *site] at a site, and how many samples went through the layers above for it."""
        slopes = part.slopes.get(at.site)
        if at is beyond.noisy.seen[-1]:
            flat = None if slopes is None else slopes.flatten(0, 1)
            return beyond.output_loss.signal(beyond.u, flat).view_as(at.z), 0
        if is_under_the_logits(beyond.graph, at.site):
            return self.all_units(beyond, at, slopes), 0
        return self._some_units(beyond, at, part.chosen[at.site], slopes)

    def _branches(
        self, activation: nn.Module | None, at: NoisySite, sigma: float, draws: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The terms of dE[L]/dv0 = sum weight * (L(v moved to `target`) - L(v)), as (weight, target).

        Each broadcasts to [copies, batch, *site].
        """
        if isinstance(activation, PiecewiseConstant) and len(activation.levels) == 2:
            side = 1 - 2 * is_above(at.v, activation.cuts[0])  # of the other cell
            yield self._edge(activation.cuts[0], at, sigma) * side, side + activation.cuts[0]
        elif isinstance(activation, PiecewiseConstant):
            edges = [self._edge(cut, at, sigma) for cut in activation.cuts]
            zero = torch.zeros_like(edges[0])
            slopes = [low - high for low, high in zip([zero, *edges], [*edges, zero], strict=True)]
            points = [at.v.new_full((), point) for point in activation.points]
            for turn in range(1, len(slopes)):  # the cells besides the one that v is in
                yield (
                    activation.select(at.v, slopes[turn:] + slopes[:turn]),
                    activation.select(at.v, points[turn:] + points[:turn]),
                )
        else:
            r = sigma * drawn(draws)
            weight = density_at_0(self.noise, r) / sigma
            yield weight, at.v0 + r
            yield -weight, at.v0 - r

    def _edge(self, cut: float, at: NoisySite, sigma: float) -> Tensor:
        """The density f(t) / sigma, t = (cut - v0) / sigma, with which a pre-activation crosses a cut."""
        return self.noise.pdf((cut - at.v0) / sigma) / sigma

    def all_units(self, beyond: Beyond, at: NoisySite, slopes: Tensor | None) -> Tensor:
        """The signal [copies, batch, *site] of the last hidden layer: every move is a rank-one change of the logits."""
        activation = beyond.graph.follower(at.site)
        columns = readout_weight(beyond.graph, at.v0[0]).flatten(1)
        if isinstance(activation, PiecewiseConstant) and len(activation.levels) == 2:
            ((weight, _),) = self._branches(activation, at, beyond.sigma[at.site], slopes)
            return weight * beyond.changes_by_jumps(at, activation, columns)
        assert activation is not None
        signal = torch.zeros_like(at.v)
        h = activation(at.v)
        for weight, target in self._branches(activation, at, beyond.sigma[at.site], slopes):
            step = (activation(target) - h).flatten(0, 1).flatten(1)
            losses = beyond.output_loss.after_steps(beyond.u, step, columns)
            signal += weight * (losses - beyond.losses[:, None]).view_as(at.v)
        return signal

    def _some_units(self, beyond: Beyond, at: NoisySite, chosen: Tensor, slopes: Tensor | None) -> tuple[Tensor, int]:
        """The signal [copies, batch, *site] of a deeper layer, and how many samples were sent through the rest.

        Args:
            beyond: the network above.
            at: the layer.
            chosen: [copies, batch, m], what `draw_choice` drew.
            slopes: draws of the measure-valued derivative.
        """
        branches = [
            (weight.expand_as(at.v), target.expand_as(at.v))
            for weight, target in self._branches(beyond.graph.follower(at.site), at, beyond.sigma[at.site], slopes)
        ]
        n, m = at.v[0, 0].numel(), chosen.shape[2]
        count: float | Tensor = n / m  # each with probability m / n
        if chosen.is_floating_point():
            weights = [weight.abs().flatten(2) for weight, _ in branches]
            chosen, count = by_weight(chosen, weights[0] if len(weights) == 1 else torch.stack(weights).sum(0))
        numbers = CACHED_ELEMENTS if at.v.device.type == "cpu" else MOVED_ELEMENTS
        at_once = max(1, numbers // (at.v.shape[:2].numel() * beyond.widest_above(at)))
        direct = beyond.direct_changes(at)
        signal = torch.zeros_like(at.v).flatten(2)
        for weight, target in branches:
            losses = [beyond.after_moves(at, target, some) for some in chosen.permute(2, 0, 1).split(at_once)]
            change = torch.cat(losses).permute(1, 2, 0) - beyond.losses.view(*at.v.shape[:2], 1)
            if direct is not None:  # of all units; what a unit does besides counts for those that are chosen
                signal += (weight * direct).flatten(2)
                change -= direct.flatten(2).gather(2, chosen)
            signal = signal.scatter_add(2, chosen, weight.flatten(2).gather(2, chosen) * change * count)
        return signal.view(at.v.shape), len(branches) * chosen.numel()


def parts_for_moves(shapes: Shapes, batch: int, copies: int, group: int) -> list[int]:
    """Split copies so that the logits with each unit of the widest layer moved, over a batch, fit in memory.

    Args:
        shapes: of one sample.
        batch: the number of samples.
        copies: the number of copies.
        group: how many of them belong together.
    """
    a_copy = batch * max(site.numel() for site in shapes.sites) * shapes.sites[-1].numel()
    return even_parts(copies, MOVED_ELEMENTS // a_copy, group)
