"""The generalized (push-out) likelihood-ratio estimator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.baselines import Baseline, Clean, LeaveOneOut
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.base import (
    Estimate,
    Estimator,
    Family,
    Objective,
    accumulate,
    check_sites,
    per_site,
    require_defaults,
    require_small_chunk,
)
from glr_lightning.estimators.coupled_score import coupled_score
from glr_lightning.estimators.passes import Drawn, PassEstimate, Prepared, added_up
from glr_lightning.estimators.score import Score, has_cells, mean_over_cell, require_cells_for
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise, require_admissible
from glr_lightning.propagation.chain import Chain, CleanPass, NoisySite
from glr_lightning.propagation.receptive_field import Fields, fields_of
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.sampling import Antithetic, Sampler
from glr_lightning.validation import Count, CountPerLayer, NonEmpty, ScalePerLayer

CHUNK_ELEMENTS = 2**22
"""Without a `chunk`, as many copies at once as keep the widest noisy layer below this many numbers (16 MiB)."""
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
        return dict.fromkeys(Chain.of(network).site_names, "likelihood ratio, from loss values")

    def check(self, network: nn.Module, loss: Loss, x: Tensor | None = None) -> None:
        """Refuse what the method cannot train, and settings without effect."""
        chain = Chain.of(network, x)
        self.check_chain(chain)
        passes = self.injection.passes(len(chain.sites))
        require_defaults(self, self.idle(chain, passes, None if x is None else chain.clean(x)))

    def check_chain(self, chain: Chain) -> None:
        """Refuse what cannot be trained, as `check` does. Raises ConfigurationError."""
        check_sites(chain, self.sigma, self.sampling)
        per_site(self.copies, len(chain.sites), "copies")
        require_separate_samples(chain.named_modules)
        require_cells_for(self.score, chain, self.injection.passes(len(chain.sites)))

    @torch.no_grad()
    def idle(self, chain: Chain, passes: Sequence[tuple[int, ...]], clean: CleanPass | None) -> dict[str, str]:
        """Return the settings that have no effect on these passes, with the reason; without `clean`, those known."""
        idle: dict[str, str] = {}
        if len(chain.sites) == 1:
            idle["injection"] = "the network has one layer with weights"
        if not any(has_cells(chain, site) for sites in passes for site in sites):
            idle["score"] = "no piecewise-constant activation follows a noisy layer"
        elif self.score == "conditional":
            idle["score"] = "auto is conditional at every layer that a piecewise-constant activation follows"
        read = [site for sites in passes for site in sites if self._reads_baseline(chain, sites, site)]
        if not read:
            idle["baseline"] = "losses of mirrored copies enter by their difference, in which it cancels"
        if clean is not None:
            fields = [site for sites in passes for site in sites if fields_of(chain, clean, site) is not None]
        else:
            fields = [site for sites in passes for site in sites if isinstance(chain.layer(site), nn.Conv2d)]
        if not fields:
            idle["reach"] = "the logits read no map of which a unit reaches a part"
        elif clean is not None and self.reach and set(read) <= set(fields) and isinstance(self.baseline, Clean):
            idle["baseline"] = "what estimator.reach subtracts is 0 without noise, so this is baseline=none"
        return idle

    def _reads_baseline(self, chain: Chain, sites: tuple[int, ...], site: int) -> bool:
        """Whether a baseline common to mirrored copies has an effect: not where x is common and scores are opposite."""
        conditional = has_cells(chain, site) and self.score in ("conditional", "auto")
        return not self.sampling.mirrored or bool(self._learned) or site != sites[0] or conditional

    @torch.no_grad()
    def _estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Add up the estimates of the passes of the injection."""
        chain = Chain.of(network, x)
        self.check_chain(chain)
        sigma: tuple[float | Tensor, ...] = per_site(self.sigma, len(chain.sites))
        batch = Prepared(chain, chain.clean(x), sigma, loss, y, generator)
        outcomes = [self.of_pass(batch, sites) for sites in self.injection.passes(len(chain.sites))]
        by_log_sigma = {site: gradient for outcome in outcomes for site, gradient in outcome.log_sigma.items()}
        return Estimate(
            added_up(outcomes),
            torch.stack([outcome.loss for outcome in outcomes]).mean(),
            batch.clean.logits,
            {"forwards": len(y) + sum(outcome.forwards for outcome in outcomes)},
            tuple(by_log_sigma[site].sum_to_size(scale.shape) for site, scale in enumerate(self._learned)),
        )

    def of_pass(self, batch: Prepared, sites: tuple[int, ...]) -> PassEstimate:
        """The gradients of the layers that are noisy together, from a pass with noise at their sites."""
        chain, y = batch.chain, batch.y
        count = self.copies_at(sites, len(chain.sites))
        fields = {site: fields_of(chain, batch.clean, site) if self.reach else None for site in sites}
        gradients: dict[str, Tensor] = {}
        by_log_sigma: dict[int, Tensor] = {}
        total = torch.zeros((), device=y.device)
        for copies in self.parts(count, self._chunk_for(batch.clean, sites[0], count)):
            noisy, losses, group = self._losses(batch, sites, copies, count)
            for at in noisy.seen:
                sigma = batch.sigma[at.site]
                weight = self._weight(batch, Drawn(noisy, losses, group), fields[at.site])
                weight = weight[(...,) + (None,) * (at.v.dim() - weight.dim())] / (count * len(y))
                signal = self.score_of(chain, at, sigma) * (weight / sigma)
                accumulate(gradients, chain.weight_vjp(at.site, at.x, signal))
                if self._learned:
                    by_unit = (weight * self._scale_score(chain, at, sigma)).sum((0, 1))
                    by_log_sigma[at.site] = by_log_sigma.get(at.site, torch.zeros_like(by_unit)) + by_unit
            total = total + losses.sum()
        samples = count * len(y)
        return PassEstimate(gradients, total / samples, samples, by_log_sigma)

    def _losses(self, batch: Prepared, sites: tuple[int, ...], copies: int, count: int) -> Drawn:
        """One noisy pass over `copies` copies of all `count`."""
        return batch.draw(sites, self.noise, self.sampling.part(copies // self.sampling.group_size(count)), copies)

    def _weight(self, batch: Prepared, drawn: Drawn, fields: Fields | None) -> Tensor:
        """L - b, by which the score of each draw is weighted.

        It is [copies, batch] or, where units reach a part of the readout only, [copies, batch, 1, height, width].
        """
        _, losses, group = drawn
        needs_clean = self.baseline.needs_clean
        if fields is None:
            return losses - self.baseline(losses, group, batch.clean_loss() if needs_clean else None)
        with torch.autocast(batch.y.device.type, enabled=False):  # less precision would leave own noise in
            without = fields.losses_without(batch.chain, batch.clean, drawn.noisy, batch.loss, batch.y)
            own = losses[..., None] - without
        nothing = torch.zeros_like(own[0]) if needs_clean else None  # what `own` is without noise
        return fields.spread(own - self.baseline(own, group, nothing))

    def copies_at(self, noisy_sites: tuple[int, ...], sites: int) -> int:
        """K of the pass with noise at these sites, of a network that has `sites` of them."""
        return per_site(self.copies, sites, "copies")[noisy_sites[0]]

    def score_of(self, chain: Chain, at: NoisySite, sigma: float | Tensor) -> Tensor:
        """The score of each draw, [copies, batch, *site]: plain, or its mean over the cells of the activation."""
        activation = chain.follower(at.site)
        if self.score == "plain" or not isinstance(activation, PiecewiseConstant):
            return self.noise.score(at.z)
        if self.score == "coupled" and len(at.v0) == 1:  # the partners share v0
            return coupled_score(self.noise, [(cut - at.v0) / sigma for cut in activation.cuts], at.z)
        # v0 of the first noisy layer is common to all copies, so this costs 1 / copies of a score per draw
        return mean_over_cell(self.noise.conditional_score, activation, at, sigma)

    def _scale_score(self, chain: Chain, at: NoisySite, sigma: float | Tensor) -> Tensor:
        """s(z) z - 1 of each draw, [copies, batch, *site]: plain, or its mean over the activation's cell."""
        activation = chain.follower(at.site)
        if self.score == "plain" or not isinstance(activation, PiecewiseConstant):
            return self.noise.score(at.z) * at.z - 1
        return mean_over_cell(self.noise.conditional_scale_score, activation, at, sigma)

    def _chunk_for(self, clean: CleanPass, first: int, copies: int) -> int:
        """The number of copies to hold at once in a pass that starts at a site."""
        if self.chunk is not None:
            return self.chunk
        fitting = CHUNK_ELEMENTS // max(v0.numel() for v0 in clean.preactivations[first:])
        # to leave one of two groups out doubles the variance, so a few go together whatever they take
        return max(fitting, FEW_GROUPS * self.sampling.group_size(copies))

    def parts(self, copies: int, chunk: int) -> list[int]:
        """Split copies into parts of at most `chunk`, whole groups together, as even as can be."""
        size = self.sampling.group_size(copies)
        groups = copies // size
        parts = max(min(-(-groups // max(chunk // size, 1)), groups // self.baseline.required_groups), 1)
        return [size * (groups // parts + (part < groups % parts)) for part in range(parts)]
