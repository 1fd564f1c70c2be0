"""The generalized (push-out) likelihood-ratio estimator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.baselines import Baseline, LeaveOneOut
from glr_lightning.chain import Chain, CleanPass, NoisySite
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.base import Estimate, Estimator, Objective, per_site, validated_count, validated_sigma
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.layers import contract
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise, require_admissible
from glr_lightning.sampling import Antithetic, Sampler

Score = Literal["plain", "conditional", "auto"]

CHUNK_ELEMENTS = 2**22
"""Without a `chunk`, as many copies at once as keep the widest noisy layer below this many numbers (16 MiB)."""


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
    only through the cell in which v_l falls, so s(z_l) may be replaced by its mean over that cell: same mean,
    smaller variance. A layer that no such activation follows (the logits) keeps the plain score.

    Noise scale. From the same copies, E[(L - b) (s(z) z - 1)] = dJ/dlog(sigma), summed over the units that share the
    scale: log f((v - A)/sigma)/sigma has the derivative s(z) z - 1 with respect to log(sigma), and E[s(z) z - 1] = 0
    lets b be subtracted. Where the score is conditional, so is this.

    References. Peng, Xiao, Heidergott, Hong, Lam, INFORMS Journal on Computing 34(1), 2022 (joint injection);
    Jiang, Zhang, Xu, Yu, Peng, ICLR 2024 (layer-wise injection).

    Preconditions. An admissible density; samples that do not influence each other (no BatchNorm in train mode).

    Args:
        noise: the standardised density.
        sigma: its scale, one value or one per layer, in units of the pre-activation.
        copies: K, the noise copies per sample, a multiple of the sampler's group size.
        sampling: how the copies are drawn.
        baseline: what is subtracted from the losses.
        injection: which layers are noisy together.
        score: "plain"; "conditional", which needs a layer that a piecewise-constant activation follows; or "auto",
            conditional at every such layer, if there is one.
        chunk: copies held in memory at once, whole groups together and never fewer than the baseline needs, or
            None to choose by `CHUNK_ELEMENTS`. The leave-one-out baseline is taken within each chunk, which
            leaves the mean as it is.

    Raises:
        ConfigurationError: any of these is out of range, or the combination cannot work.
    """

    noise: Noise = Gaussian()
    sigma: float | tuple[float, ...] = 1.0
    copies: int = 32
    sampling: Sampler = Antithetic()
    baseline: Baseline = LeaveOneOut()
    injection: Injection = Joint()
    score: Score = "auto"
    chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", validated_sigma(self.sigma))
        validated_count("copies", self.copies)
        require_admissible(self.noise)
        self.sampling.check(self.noise, self.copies)
        if self.score not in get_args(Score):
            raise ConfigurationError(f"score must be one of {', '.join(get_args(Score))}, got {self.score!r}.")
        if self.chunk is not None and validated_count("chunk", self.chunk) < self.sampling.group_size:
            raise ConfigurationError(
                f"chunk={self.chunk} is smaller than one group of {self.sampling.group_size} dependent copies; "
                f"use chunk={self.sampling.group_size} or more."
            )
        self.baseline.check(self.copies // self.sampling.group_size)

    @property
    def objective(self) -> Objective:
        return "layerwise" if isinstance(self.injection, Layerwise) else "joint"

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        return dict.fromkeys(Chain.of(network).site_names, "likelihood ratio, from loss values")

    def check(self, network: nn.Module, loss: Loss) -> None:
        chain = Chain.of(network)
        self._check_chain(chain)

    def _check_chain(self, chain: Chain) -> None:
        per_site(self.sigma, len(chain.sites))
        inner = [(n, m) for n, leaf in zip(chain.names, chain.modules, strict=True) for m in leaf.modules()]
        for name, module in inner:
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if batch_norm and (module.training or module.running_mean is None):
                raise ConfigurationError(
                    f"module '{name}' ({type(module).__name__}) is in train mode or keeps no statistics, and couples "
                    "the samples of a batch, which breaks the likelihood-ratio estimate; remove it, use a per-sample "
                    "normalisation (nn.GroupNorm without affine parameters), or put it in eval mode."
                )
            draws = isinstance(module, nn.RReLU) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
            if draws and module.training:
                raise ConfigurationError(
                    f"module '{name}' ({type(module).__name__}) draws noise of its own from the global generator; "
                    "remove it: the injected noise already regularises."
                )
        if self.score == "conditional" and not any(
            isinstance(chain.follower(site), PiecewiseConstant) for site in range(len(chain.sites))
        ):
            raise ConfigurationError(
                "score=conditional needs a piecewise-constant activation (activation=threshold or sign) right "
                "after a layer; this network has none. Use estimator.score=plain or auto."
            )

    @torch.no_grad()
    def estimate(
        self,
        network: nn.Module,
        loss: Loss,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator,
        scales: Sequence[Tensor] | None = None,
    ) -> Estimate:
        """As every estimator's; with `scales`, one tensor for each layer that broadcasts to its pre-activation, these
        are the noise scales in place of `sigma`, and `Estimate.log_sigma` holds the gradients of their logarithms."""
        chain = Chain.of(network)
        self._check_chain(chain)
        sigma = per_site(self.sigma, len(chain.sites)) if scales is None else tuple(scales)
        by_log_sigma = [torch.zeros_like(scale) for scale in scales or ()]
        clean = chain.clean(x)
        clean_loss = loss(clean.logits, y) if self.baseline.needs_clean else None
        passes = self.injection.passes(len(chain.sites))

        gradients: dict[str, Tensor] = {}
        total = torch.zeros((), device=x.device)
        for noisy_sites in passes:
            for copies in self._chunks(self._chunk_for(clean)):
                losses, group, seen = self._losses(chain, clean, noisy_sites, sigma, copies, loss, y, generator)
                advantage = losses - self.baseline(losses, group, clean_loss)
                weight = advantage / (self.copies * len(y))
                for at in seen:
                    score = self._score(chain, at, sigma[at.site])
                    per_unit = weight[(...,) + (None,) * (score.dim() - 2)]
                    signal = score * (per_unit / sigma[at.site])
                    if scales is not None:
                        by_unit = torch.tensordot(weight, self._scale_score(chain, at, sigma[at.site]), dims=2)
                        by_log_sigma[at.site] = by_log_sigma[at.site] + by_unit.sum_to_size(scales[at.site].shape)
                    for name, value in contract(chain.layer(at.site), at.x, signal).items():
                        full_name = chain.parameter_name(at.site, name)
                        gradients[full_name] = gradients[full_name] + value if full_name in gradients else value
                total = total + losses.sum()
        noisy_samples = len(passes) * self.copies * len(y)
        forwards = {"forwards": noisy_samples + len(y)}
        return Estimate(gradients, total / noisy_samples, clean.logits, forwards, tuple(by_log_sigma))

    def _losses(
        self,
        chain: Chain,
        clean: CleanPass,
        noisy_sites: tuple[int, ...],
        sigma: tuple[float | Tensor, ...],
        copies: int,
        loss: Loss,
        y: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, list[NoisySite]]:
        """The losses [copies, batch] of one noisy pass, the copies' groups, and what its sites saw."""
        groups: list[Tensor] = []

        def draw(v0: Tensor) -> Tensor:
            draws = self.sampling(self.noise, copies, v0.shape[1:], generator=generator, dtype=v0.dtype)
            groups.append(draws.group)
            return draws.z

        logits, seen = chain.noisy(clean, noisy_sites, sigma, draw)
        # autocast may have lowered the logits; a leave-one-out mean over many copies needs the full precision
        losses = loss(logits.to(seen[0].v.dtype), y.repeat(copies))
        return losses.unflatten(0, (copies, len(y))), groups[0], seen  # a sampler groups all sites alike

    def _score(self, chain: Chain, at: NoisySite, sigma: float | Tensor) -> Tensor:
        """The score of each draw, [copies, batch, *site]: plain, or its mean over the activation's cell."""
        activation = chain.follower(at.site)
        if self.score == "plain" or not isinstance(activation, PiecewiseConstant):
            return self.noise.score(at.z)
        # v0 of the first noisy layer is common to all copies, so this costs 1 / copies of a score per draw
        per_cell = [
            self.noise.conditional_score(*(None if cut is None else (cut - at.v0) / sigma for cut in cell))
            for cell in activation.cells
        ]
        return activation.select(at.v, per_cell)

    def _scale_score(self, chain: Chain, at: NoisySite, sigma: float | Tensor) -> Tensor:
        """s(z) z - 1 of each draw, [copies, batch, *site]: plain, or its mean over the activation's cell."""
        activation = chain.follower(at.site)
        if self.score == "plain" or not isinstance(activation, PiecewiseConstant):
            return self.noise.score(at.z) * at.z - 1
        per_cell = [
            self.noise.conditional_scale_score(*(None if cut is None else (cut - at.v0) / sigma for cut in cell))
            for cell in activation.cells
        ]
        return activation.select(at.v, per_cell)

    def _chunk_for(self, clean: CleanPass) -> int:
        """The number of copies to hold at once."""
        if self.chunk is not None:
            return self.chunk
        return CHUNK_ELEMENTS // max(v0.numel() for v0 in clean.preactivations)

    def _chunks(self, chunk: int) -> Iterator[int]:
        """Split the copies into chunks of at most `chunk`, whole groups together, as even as can be."""
        size = self.sampling.group_size
        groups = self.copies // size
        parts = min(-(-groups // max(chunk // size, 1)), groups // self.baseline.required_groups)
        return (size * (groups // parts + (part < groups % parts)) for part in range(parts))
