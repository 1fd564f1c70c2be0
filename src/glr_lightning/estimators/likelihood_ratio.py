"""The generalized (push-out) likelihood-ratio estimator."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.baselines import Baseline, Clean, LeaveOneOut
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.coupled_score import coupled_score
from glr_lightning.estimators.passes import CleanBatch, Part, Total, full_precision, noise_at, started
from glr_lightning.estimators.score import Score, has_cells, mean_over_cell, require_cells_for
from glr_lightning.estimators.settings import check_sites, even_parts, per_site, require_defaults, require_small_chunk
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise, require_admissible
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.receptive_field import Fields, fields_of
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.propagation.values import NoisyPass, NoisySite, Shapes
from glr_lightning.sampling import Antithetic, Sampler
from glr_lightning.validation import Count, CountPerLayer, NonEmpty, ScalePerLayer

CHUNK_ELEMENTS = 2**22
"""Without a `chunk`, as many copies at once as keep the widest layer behind noise below this many numbers (16 MiB)."""
FEW_GROUPS = 4
"""The least number of groups of copies that are held at once, if there are as many."""


@dataclass(frozen=True)
class LikelihoodRatio(Estimator):
    """Gradient of J(theta) = E[L] from loss values alone: no backward pass, no derivative of L or of phi.

    Quantity. With v_l = A_l(h_{l-1}; theta_l) + sigma_l z_l, h_l = phi_l(v_l), the derivative of E[L(h_L, y)]
    with respect to theta_l.

    Estimator. From K copies of the noise,

        g_l = 1/(K B) sum_{k,n} (L_kn - b_kn) VJP_{A_l}( s(z_l,kn) / sigma_l ).

    Unbiased because v_l has density f((v - A_l)/sigma_l)/sigma_l: moving the derivative onto the density and
    using E[s(z)] = 0 (hence E[b s(z)] = 0 for b independent of z) gives E[g_l] = dJ/dtheta_l, for any bounded
    L and phi, continuous or not.

    Conditional score (Rao-Blackwell). Where a piecewise-constant activation follows the layer, L depends on z_l
    only through the cell in which v_l falls, so s(z_l) may be replaced by its mean over that cell: same mean, and
    with independent copies never a larger variance. A layer that no such activation follows (the logits) keeps the
    plain score.

    Coupled score. Mirrored partners that share the pre-activation A_l enter as (L(z) - L(-z)) s(z), and both
    losses depend on z only through the cells of z and of -z, so s(z) may be replaced by its mean given both: the
    Rao-Blackwell form of the plain antithetic estimate, whose variance it never exceeds. It is odd in z, so any
    baseline common to the partners cancels. It takes of a pair the difference of the losses alone, and the conditional
    score each loss for what it says: with leave-one-out and K >= 8 the coupled variance was 1.2 to 2 times the
    conditional one on threshold networks. Only at K = 2, which leaves nothing to leave one out of, are they on a par.

    Noise scale. From the same copies, E[(L - b) (s(z) z - 1)] = dJ/dlog(sigma), summed over the units that share the
    scale: log f((v - A)/sigma)/sigma has the derivative s(z) z - 1 with respect to log(sigma), and E[s(z) z - 1] = 0
    lets b be subtracted. Where the score is conditional, so is this.

    Reach. In a convolutional network a unit reaches a few places of the map that the logits read. What the loss would
    be if these had no noise is independent of its own, and is the first baseline (`receptive_field.py`, from the losses
    that follow): same mean, and the noise of units elsewhere is gone. The other baseline acts on what is left.

    References. Peng, Xiao, Heidergott, Hong, Lam, INFORMS Journal on Computing 34(1), 2022 (joint injection);
    Jiang, Zhang, Xu, Yu, Peng, ICLR 2024 (layer-wise injection); Dong, Mnih, Tucker, DisARM, NeurIPS 2020 (the
    coupled score of a logistic threshold unit).

    Preconditions. An admissible density; samples that do not influence each other (no BatchNorm in train mode).

    Args:
        noise: the standardised density.
        sigma: its scale, one value or one per layer, in units of the pre-activation. Learned scales are tensors, one
            for each layer that broadcasts to its pre-activation and is positive, which is not checked: of these alone
            the gradients are returned in `Estimate.log_sigma`.
        copies: K, the noise copies per sample, whole groups of the sampler; with layer-wise injection one number, or
            one per layer.
        sampling: how the copies are drawn.
        baseline: what is subtracted from the losses.
        injection: which layers are noisy together.
        score: "auto", conditional at every layer that a piecewise-constant activation follows, if there is one;
            "plain"; "conditional", the same as auto, for estimates that compare scores: it needs such a layer, and
            `check` refuses it as a second name; "coupled", which needs antithetic sampling as well, and is conditional
            where v_l's partners do not share A_l (above the first noisy layer).
        reach: where the logits read a map of places, subtract what a unit cannot reach (see above).
        chunk: copies held in memory at once, whole groups together and never fewer than the baseline needs, or
            None to choose by `CHUNK_ELEMENTS`. The leave-one-out baseline is taken within each chunk, which
            leaves the mean as it is.

    Raises:
        ConfigurationError: any of these is out of range, or the combination cannot work.
    """

    noise: Noise = Gaussian()
    sigma: ScalePerLayer | NonEmpty[Tensor] = 1.0
    copies: CountPerLayer = 32
    sampling: Sampler = Antithetic()
    baseline: Baseline = LeaveOneOut()
    injection: Injection = Joint()
    score: Score = "auto"
    reach: bool = True
    chunk: Count | None = None

    family: ClassVar[Family] = "likelihood ratio"
    needs_derivatives: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_admissible(self.noise)
        if isinstance(self.copies, tuple) and not isinstance(self.injection, Layerwise):
            raise ConfigurationError(
                f"copies={list(self.copies)} are numbers for passes of single layers, and noise in all layers at once "
                "is one pass; use one number, or estimator=likelihood_ratio injection=layerwise."
            )
        if self.score == "coupled" and not self.sampling.mirrored:
            raise ConfigurationError(
                f"score=coupled needs mirrored pairs of copies, which {type(self.sampling).__name__.lower()} sampling "
                "does not draw; use sampling=antithetic, or estimator.score=auto."
            )
        counts = self.copies if isinstance(self.copies, tuple) else (self.copies,)
        for copies in counts:
            self._check_copies(copies)
        require_small_chunk(self.chunk, max(counts))

    def _check_copies(self, copies: int) -> None:
        self.sampling.check(self.noise, copies)
        group_size = self.sampling.group_size(copies)
        if self.chunk is not None and self.chunk < group_size:
            raise ConfigurationError(
                f"chunk={self.chunk} is smaller than one group of {group_size} dependent copies; "
                f"use chunk={group_size} or more.",
                option="chunk",
            )
        self.baseline.check(copies // group_size)

    @property
    def _learned(self) -> tuple[Tensor, ...]:
        """The noise scales of all layers if they are tensors, else nothing."""
        scales = self.sigma if isinstance(self.sigma, tuple) else ()
        tensors = tuple(scale for scale in scales if isinstance(scale, Tensor))
        return tensors if len(tensors) == len(scales) else ()

    @property
    def objective(self) -> Objective:
        """Joint or layer-wise, as the injection is."""
        return "layerwise" if isinstance(self.injection, Layerwise) else "joint"

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Every layer learns from loss values."""
        return dict.fromkeys(Graph.of(network).layers, "likelihood ratio, from loss values")

    def _require(self, bound: Bound) -> None:
        self.require_graph(bound.graph)

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        graph = bound.graph
        require_defaults(self, self.idle(graph, self._passes(graph), None if x is None else graph.shapes(x)))

    def require_graph(self, graph: Graph) -> None:
        """Refuse a network that cannot be trained. Raises ConfigurationError."""
        check_sites(graph, self.sigma, self.sampling)
        per_site(self.copies, graph, "copies")
        require_separate_samples(graph.named_modules)
        require_cells_for(self.score, graph, self._passes(graph))

    def _passes(self, graph: Graph) -> list[tuple[int, ...]]:
        """The noisy sites of each pass."""
        return [graph.sites_of(layers) for layers in self.injection.passes(len(graph.layers))]

    def idle(self, graph: Graph, passes: Sequence[tuple[int, ...]], shapes: Shapes | None) -> dict[str, str]:
        """Return the settings that have no effect on these passes, with the reason; without `shapes`, those known."""
        idle: dict[str, str] = {}
        if len(graph.layers) == 1:
            idle["injection"] = "the network has one layer with weights"
        if not any(has_cells(graph, site) for sites in passes for site in sites):
            idle["score"] = "no piecewise-constant activation follows a noisy layer"
        elif self.score == "conditional":
            idle["score"] = "auto is conditional at every layer that a piecewise-constant activation follows"
        read = [site for sites in passes for site in sites if self._reads_baseline(graph, sites, site)]
        if not read:
            idle["baseline"] = "losses of mirrored copies enter by their difference, in which it cancels"
        if shapes is not None:
            fields = [site for sites in passes for site in sites if fields_of(graph, shapes, site) is not None]
        else:
            fields = [site for sites in passes for site in sites if isinstance(graph.layer(site), nn.Conv2d)]
        if not fields:
            idle["reach"] = "the logits read no map of which a unit reaches a part"
        elif shapes is not None and self.reach and set(read) <= set(fields) and isinstance(self.baseline, Clean):
            idle["baseline"] = "what estimator.reach subtracts is 0 without noise, so this is baseline=none"
        return idle

    def _reads_baseline(self, graph: Graph, sites: tuple[int, ...], site: int) -> bool:
        """Whether a baseline common to mirrored copies has an effect: not where x is common and scores are opposite."""
        conditional = has_cells(graph, site) and self.score in ("conditional", "auto")
        return not self.sampling.mirrored or bool(self._learned) or site != sites[0] or conditional

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Part]:
        for sites in self._passes(bound.graph):
            yield from self.draws_of_pass(bound.graph, x, sites, generator)

    def draws_of_pass(
        self, graph: Graph, x: Tensor, sites: tuple[int, ...], generator: torch.Generator
    ) -> Iterator[Part]:
        """Draw the noise of a pass over a batch like x with noise at these sites, in parts that fit in memory."""
        shapes, count = graph.shapes(x).sites, self.copies_at(graph, sites)
        chunk = self._chunk_for(max(len(x) * shape.numel() for shape in shapes[sites[0] :]), count)
        for site in sites if self.reach else ():
            fields_of(graph, graph.shapes(x), site)  # found before the first step, which may be a compiled one
        for copies in self.parts(count, chunk):
            sampler = self.sampling.part(copies // self.sampling.group_size(count))
            yield Part(noise_at(graph, sites, x, self.noise, sampler, copies, generator))

    @torch.no_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Part]) -> Estimate:
        """Add up the estimates from the parts of the noise."""
        graph = bound.graph
        batch = CleanBatch(graph, graph.clean(x), per_site(self.sigma, graph), bound.loss, y)
        total = started(y)
        for part in noise:
            self.add(total, batch, part, graph.shapes(x))
        log_sigma = total.log_sigma_of(graph, self._learned)
        return Estimate(total.gradients, total.mean_loss, batch.clean.logits, {"forwards": total.forwards}, log_sigma)

    def add(self, total: Total, batch: CleanBatch, part: Part, shapes: Shapes) -> None:
        """Add the estimates of the layers that are noisy together, from some copies of a pass."""
        graph, y = batch.graph, batch.y
        count = self.copies_at(graph, part.sites)
        group = self.sampling.part(part.copies // self.sampling.group_size(count)).group(part.copies, y.device)
        noisy, losses = batch.run(part.z)
        common: Tensor | None = None  # the weight at all sites without fields
        for at in noisy.seen:
            sigma = batch.sigma[at.site]
            fields = fields_of(graph, shapes, at.site) if self.reach else None
            weight = common if fields is None else None
            if weight is None:
                weight = self._weight(batch, noisy, losses, group, fields) / (count * len(y))
                common = weight if fields is None else common
            weight = weight[(...,) + (None,) * (at.v.dim() - weight.dim())]
            signal = self.score_of(graph, at, sigma) * (weight / sigma)
            total.add(graph.weight_vjp(at.site, at.x, signal))
            if self._learned:
                by_unit = (weight * self._scale_score(graph, at, sigma)).sum((0, 1))
                total.log_sigma[at.site] = total.log_sigma.get(at.site, torch.zeros_like(by_unit)) + by_unit
        total.count(part, losses.sum() / (count * len(y)), part.copies * len(y))

    def _weight(
        self, batch: CleanBatch, noisy: NoisyPass, losses: Tensor, group: Tensor, fields: Fields | None
    ) -> Tensor:
        """L - b, by which the score of each draw is weighted.

        It is [copies, batch] or, where units reach a part of the readout only, [copies, batch, 1, height, width].
        """
        needs_clean = self.baseline.needs_clean
        if fields is None:
            return losses - self.baseline(losses, group, batch.clean_loss() if needs_clean else None)
        with full_precision(batch.y):  # less would leave own noise in
            without = fields.losses_without(batch.graph, batch.clean, noisy, batch.loss, batch.y)
            own = losses[..., None] - without
        nothing = torch.zeros_like(own[0]) if needs_clean else None  # what `own` is without noise
        return fields.spread(own - self.baseline(own, group, nothing))

    def copies_at(self, graph: Graph, noisy_sites: tuple[int, ...]) -> int:
        """K of the pass with noise at these sites."""
        return per_site(self.copies, graph, "copies")[noisy_sites[0]]

    def score_of(self, graph: Graph, at: NoisySite, sigma: float | Tensor) -> Tensor:
        """The score of each draw, [copies, batch, *site]: plain, or its mean over the cells of the activation."""
        activation = graph.follower(at.site)
        if self.score == "plain" or not isinstance(activation, PiecewiseConstant):
            return self.noise.score(at.z)
        if self.score == "coupled" and len(at.v0) == 1:  # the partners share v0
            return coupled_score(self.noise, [(cut - at.v0) / sigma for cut in activation.cuts], at.z)
        # v0 of the first noisy layer is common to all copies, so this costs 1 / copies of a score per draw
        return mean_over_cell(self.noise.conditional_score, activation, at, sigma)

    def _scale_score(self, graph: Graph, at: NoisySite, sigma: float | Tensor) -> Tensor:
        """s(z) z - 1 of each draw, [copies, batch, *site]: plain, or its mean over the activation's cell."""
        activation = graph.follower(at.site)
        if self.score == "plain" or not isinstance(activation, PiecewiseConstant):
            return self.noise.score(at.z) * at.z - 1
        return mean_over_cell(self.noise.conditional_scale_score, activation, at, sigma)

    def _chunk_for(self, widest: int, copies: int) -> int:
        """The copies to hold at once; widest: pre-activations of the widest layer with copies, over a batch."""
        if self.chunk is not None:
            return self.chunk
        # to leave one of two groups out doubles the variance, so a few go together whatever they take
        return max(CHUNK_ELEMENTS // widest, FEW_GROUPS * self.sampling.group_size(copies))

    def parts(self, copies: int, chunk: int) -> list[int]:
        """Split copies into parts of at most `chunk`, whole groups together, as even as can be."""
        return even_parts(copies, chunk, self.sampling.group_size(copies), self.baseline.required_groups)
