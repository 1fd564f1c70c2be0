"""Tiered: noise in one layer at a time; for each layer the best estimate from loss values that its place allows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from glr_lightning.baselines import Baseline, LeaveOneOut, NoBaseline
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.likelihood_ratio import LikelihoodRatio
from glr_lightning.estimators.local_expectation import LocalExpectation, parts_for_moves
from glr_lightning.estimators.moved_units import Beyond
from glr_lightning.estimators.output_loss import noise_free_output, output_loss_for
from glr_lightning.estimators.passes import CleanBatch, Part, Total, full_precision, noise_at, of_copies, started
from glr_lightning.estimators.score import Score
from glr_lightning.estimators.settings import (
    check_sites,
    per_layer,
    per_site,
    require_defaults,
    require_logits_of_a_layer,
    require_small_chunk,
)
from glr_lightning.estimators.windows import draw_windows, parts_for_windows, places_of, reader_of, window_signal
from glr_lightning.injection import Layerwise
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.readout import is_under_the_logits
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.propagation.values import Shapes
from glr_lightning.sampling import Antithetic, Sampler
from glr_lightning.validation import Count, CountPerLayer, ScalePerLayer


@dataclass(frozen=True)
class Tiered(Estimator):
    """Per layer the gradient of E[L] under noise at that layer alone: local expectation on top, likelihood ratio below.

    The last two layers are within reach of `LocalExpectation`, which computes what each unit's own noise does in place
    of sampling it, for all units at once:

        the logits                  noise at the logits, see `output_loss.py`
        the layer under them        noise there alone; a moved unit is a rank-one change of the noise-free logits

    With `windows` so is a layer below them that a convolution or a linear layer reads, with thresholds behind both: a
    moved unit changes a window of that reader's pre-activations (`windows.py`), for some of the units.

    Every other layer gets the likelihood ratio of `LikelihoodRatio` with layer-wise injection: conditional score where
    a threshold follows, what a unit cannot reach subtracted (`receptive_field.py`), and the noise-free state below the
    layer reused, so that the pass of a layer costs the forward pass from that layer on.

    Unbiased layer by layer, since each tier is, for the objective of its own layer. Layer-wise objectives are not one
    function: see `Layerwise`.

    References. As for `LocalExpectation` and `LikelihoodRatio`.

    Preconditions. As for both; the logits are a layer's output.

    Args and errors as for `LikelihoodRatio`, and

        windows: how many units of a sample and copy are moved in the layer whose units change windows, on average over
            the batch; None: that layer gets the likelihood ratio.

    For layers with local expectation a few copies are enough, and with independent sampling one is.
    """

    noise: Noise = Gaussian()
    sigma: ScalePerLayer = 1.0
    copies: CountPerLayer = 32
    sampling: Sampler = Antithetic()
    baseline: Baseline = LeaveOneOut()
    score: Score = "auto"
    reach: bool = True
    chunk: Count | None = None
    windows: Count | None = None

    family: ClassVar[Family] = "likelihood ratio"
    needs_derivatives: ClassVar[bool] = False
    objective: ClassVar[Objective] = "layerwise"

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = self.copies if isinstance(self.copies, tuple) else (self.copies,)
        require_small_chunk(self.chunk, max(counts))
        # layers that need no leave-one-out may have fewer copies, and with windows no other may be left: see `_require`
        (self if self.windows is None else replace(self, windows=None, baseline=NoBaseline()))._ratio(max(counts))
        for copies in counts:
            self.sampling.check(self.noise, copies)

    def _ratio(self, copies: int) -> LikelihoodRatio:
        """Return the estimator of a layer without local expectation, which also checks the options."""
        injection, chunk = Layerwise(), None if self.chunk is None else min(self.chunk, copies)
        return LikelihoodRatio(
            self.noise, self.sigma, copies, self.sampling, self.baseline, injection, self.score, self.reach, chunk
        )

    def parts(self, copies: int, chunk: int) -> list[int]:
        """Split copies into parts of at most `chunk`, as `LikelihoodRatio` does."""
        counts = self.copies if isinstance(self.copies, tuple) else (self.copies,)
        if max(counts) // self.sampling.group_size(max(counts)) < self.baseline.required_groups:
            return [copies]  # no layer has a likelihood ratio
        return self._ratio(max(counts)).parts(copies, chunk)

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Local expectation for the last two layers, if called once, and by windows; else likelihood ratio."""
        graph = Graph.of(network)
        return {name: self._words(graph, layer, loss) for layer, name in enumerate(graph.layers)}

    def _words(self, graph: Graph, layer: int, loss: Loss) -> str:
        if self._has_windows(graph, layer):
            return f"local expectation, from loss values: {self.windows} units a sample, by their windows"
        if not _is_on_top(graph, layer):
            return "likelihood ratio, from loss values"
        if graph.sites_of([layer])[0] == len(graph.sites) - 1:
            return f"local expectation at the logits, from loss values ({type(loss).__name__})"
        return "local expectation, from loss values: all units at once"

    def _require(self, bound: Bound) -> None:
        graph = bound.graph
        check_sites(graph, self.sigma, self.sampling)
        for layer, copies in enumerate(per_layer(self.copies, graph, "copies")):
            if self._is_local(graph, layer):
                self.sampling.check(self.noise, copies)
            else:
                self._ratio(copies).require_graph(graph)
        require_separate_samples(graph.named_modules)
        require_logits_of_a_layer(graph)

    def _has_windows(self, graph: Graph, layer: int) -> bool:
        """Whether a layer's units are moved by their windows."""
        sites = graph.sites_of([layer])
        return self.windows is not None and len(sites) == 1 and reader_of(graph, sites[0]) is not None

    def _is_local(self, graph: Graph, layer: int) -> bool:
        """Whether a layer gets a local expectation."""
        return _is_on_top(graph, layer) or self._has_windows(graph, layer)

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        graph, shapes = bound.graph, None if x is None else bound.graph.shapes(x)
        require_defaults(self, self._idle(graph, shapes))
        for layer, name in enumerate(graph.layers):
            if shapes is not None and self.windows is not None and self._has_windows(graph, layer):
                units = shapes.sites[graph.sites_of([layer])[0]].numel()
                if units < self.windows:
                    raise ConfigurationError(
                        f"estimator.windows={self.windows} is more than the {units} units of '{name}'; use {units}, "
                        "which moves all of them.",
                        option="estimator.windows",
                    )

    def _idle(self, graph: Graph, shapes: Shapes | None) -> dict[str, str]:
        layers, idle = range(len(graph.layers)), {}
        if not any(self._has_windows(graph, layer) for layer in layers):
            idle["windows"] = "no convolution or linear layer under the logits reads a layer, thresholds behind both"
        below = [graph.sites_of([layer]) for layer in layers if not self._is_local(graph, layer)]
        if not below:
            reason = "no layer has a likelihood ratio, and local expectations do not read it"
            return idle | dict.fromkeys(("baseline", "score", "reach", "chunk"), reason)
        copies = max(self.copies) if isinstance(self.copies, tuple) else self.copies
        return idle | self._ratio(copies).idle(graph, below, shapes)

    def _prepare(self, bound: Bound) -> "_Tiers":
        graph = bound.graph
        copies = enumerate(per_layer(self.copies, graph, "copies"))
        below = tuple(None if self._is_local(graph, layer) else self._ratio(number) for layer, number in copies)
        return _Tiers(below, LocalExpectation(self.noise))

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Part]:
        graph, tiers = bound.graph, bound.prepared
        for layer, copies in enumerate(per_layer(self.copies, graph, "copies")):
            sites, ratio = graph.sites_of([layer]), tiers.below[layer]
            if ratio is None:
                yield from self._draws_of_top(bound, x, sites[0], copies, generator)
            else:
                yield from ratio.draws_of_pass(graph, x, sites, generator)

    def _draws_of_top(
        self, bound: Bound, x: Tensor, site: int, copies: int, generator: torch.Generator
    ) -> Iterator[Part]:
        graph, local, size = bound.graph, bound.prepared.top, self.sampling.group_size(copies)
        shapes, windows = graph.shapes(x), self.windows if self._has_windows(graph, graph.layer_of[site]) else None
        split = parts_for_moves if windows is None else parts_for_windows
        for count in split(shapes, len(x), copies, size):
            z = noise_at(graph, [site], x, self.noise, self.sampling.part(count // size), count, generator)
            slopes, chosen = {}, {}
            if windows is not None:
                chosen[site] = draw_windows(windows, z[site], *places_of(graph, shapes, site), generator)
            if local.reads_slopes(graph, site, bound.loss):
                slopes[site] = self.noise.sample_slope(z[site].shape, generator=generator, dtype=z[site].dtype)
            yield Part(z, slopes, chosen)

    @torch.no_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Part]) -> Estimate:
        """Add up the estimates of the layers, each under noise at that layer alone."""
        graph, tiers = bound.graph, bound.prepared
        copies = per_layer(self.copies, graph, "copies")
        batch = CleanBatch(graph, graph.clean(x), per_site(self.sigma, graph), bound.loss, y)
        total = started(y)
        for part in noise:
            layer = graph.layer_of[part.sites[0]]
            ratio = tiers.below[layer]
            if ratio is None:
                self._add_top(total, batch, part, copies[layer], tiers.top)
            else:
                ratio.add(total, batch, part, graph.shapes(x))
        return Estimate(total.gradients, total.mean_loss, batch.clean.logits, {"forwards": total.forwards})

    def _add_top(self, total: Total, batch: CleanBatch, part: Part, copies: int, local: LocalExpectation) -> None:
        """As `LikelihoodRatio.add`, for a layer with a local expectation."""
        graph, y, (site,) = batch.graph, batch.y, part.sites
        sigma, slopes = float(batch.sigma[site]), part.slopes.get(site)
        noisy = graph.noisy(batch.clean, part.z, batch.sigma, keep=site in part.chosen)
        (at,) = noisy.seen
        labels = of_copies(y, part.copies)
        with full_precision(y):
            if site == len(graph.sites) - 1:
                u = at.v0.expand_as(at.z).flatten(0, 1)
                output = output_loss_for(batch.loss, self.noise, sigma, at.z.flatten(0, 1), labels)
                losses = output.values(u)
                signal = output.signal(u, None if slopes is None else slopes.flatten(0, 1)).view_as(at.z)
            else:
                u = noisy.logits.to(at.v.dtype)
                output = noise_free_output(batch.loss, self.noise, u, labels)
                losses = output.values(u)
                scales = [float(scale) for scale in batch.sigma]
                beyond = Beyond(graph, noisy, scales, output, u, losses)
                if site in part.chosen:
                    signal = window_signal(beyond, at, self.noise, part.chosen[site])
                else:
                    signal = local.all_units(beyond, at, slopes)
        total.add(graph.weight_vjp(site, at.x, signal / (copies * len(y))))
        total.count(part, losses.sum() / (copies * len(y)), part.copies * len(y))


class _Tiers(NamedTuple):
    below: tuple[LikelihoodRatio | None, ...]  # by layer, None for those with local expectations
    top: LocalExpectation


def _is_on_top(graph: Graph, layer: int) -> bool:
    """Whether a layer is one of the last two, and is called once."""
    sites = graph.sites_of([layer])
    return len(sites) == 1 and (sites[0] == len(graph.sites) - 1 or is_under_the_logits(graph, sites[0]))
