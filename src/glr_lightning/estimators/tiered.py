"""Tiered: noise in one layer at a time; for each layer the best estimate from loss values that its place allows."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.baselines import Baseline, LeaveOneOut
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
from glr_lightning.estimators.likelihood_ratio import LikelihoodRatio
from glr_lightning.estimators.local_expectation import (
    LocalExpectation,
    is_under_the_logits,
    require_logits_of_a_layer,
)
from glr_lightning.estimators.moved_units import Beyond
from glr_lightning.estimators.output_loss import noise_free_output, output_loss_for
from glr_lightning.estimators.passes import PassEstimate, Prepared, added_up
from glr_lightning.estimators.score import Score
from glr_lightning.injection import Layerwise
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.chain import Chain, CleanPass
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.sampling import Antithetic, Sampler
from glr_lightning.validation import Count, CountPerLayer, ScalePerLayer


@dataclass(frozen=True)
class Tiered(Estimator):
    """Per layer the gradient of E[L] under noise at that layer alone: local expectation on top, likelihood ratio below.

    The last two layers are within reach of `LocalExpectation`, which computes what each unit's own noise does in place
    of sampling it, for all units at once:

        the logits                  noise at the logits, see `output_loss.py`
        the layer under them        noise there alone; a moved unit is a rank-one change of the noise-free logits

    Every other layer gets the likelihood ratio of `LikelihoodRatio` with layer-wise injection: conditional score where
    a threshold follows, what a unit cannot reach subtracted (`receptive_field.py`), and the noise-free state below the
    layer reused, so that the pass of a layer costs the forward pass from that layer on.

    Unbiased layer by layer, since each tier is, for the objective of its own layer. Layer-wise objectives are not one
    function: see `Layerwise`.

    References. As for `LocalExpectation` and `LikelihoodRatio`.

    Preconditions. As for both; the logits are a layer's output.

    Args and errors as for `LikelihoodRatio`; for the last two layers a few copies are enough, and with independent
    sampling one is.
    """

    noise: Noise = Gaussian()
    sigma: ScalePerLayer = 1.0
    copies: CountPerLayer = 32
    sampling: Sampler = Antithetic()
    baseline: Baseline = LeaveOneOut()
    score: Score = "auto"
    reach: bool = True
    chunk: Count | None = None

    family: ClassVar[Family] = "likelihood ratio"
    needs_derivatives: ClassVar[bool] = False
    objective: ClassVar[Objective] = "layerwise"

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = self.copies if isinstance(self.copies, tuple) else (self.copies,)
        require_small_chunk(self.chunk, max(counts))
        self._ratio(max(counts))  # the layers that need no leave-one-out may have fewer, see `check_chain`
        for copies in counts:
            self.sampling.check(self.noise, copies)

    def _ratio(self, copies: int) -> LikelihoodRatio:
        """Return the estimator of a layer below the last two, which also checks the options."""
        injection, chunk = Layerwise(), None if self.chunk is None else min(self.chunk, copies)
        return LikelihoodRatio(
            self.noise, self.sigma, copies, self.sampling, self.baseline, injection, self.score, self.reach, chunk
        )

    def parts(self, copies: int, chunk: int) -> list[int]:
        """Split copies into parts of at most `chunk`, as `LikelihoodRatio` does."""
        counts = self.copies if isinstance(self.copies, tuple) else (self.copies,)
        return self._ratio(max(counts)).parts(copies, chunk)

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Local expectation for the last two layers, likelihood ratio for those below."""
        chain = Chain.of(network)
        words = ["likelihood ratio, from loss values"] * len(chain.sites)
        words[-1] = f"local expectation at the logits, from loss values ({type(loss).__name__})"
        if len(words) > 1 and _is_on_top(chain, len(words) - 2):
            words[-2] = "local expectation, from loss values: all units at once"
        return dict(zip(chain.site_names, words, strict=True))

    def check(self, network: nn.Module, loss: Loss, x: Tensor | None = None) -> None:
        """Refuse what the method cannot train, and settings without effect."""
        chain = Chain.of(network, x)
        self.check_chain(chain)
        require_defaults(self, self._idle(chain, None if x is None else chain.clean(x)))

    def _idle(self, chain: Chain, clean: CleanPass | None) -> dict[str, str]:
        below = [(site,) for site in range(len(chain.sites)) if not _is_on_top(chain, site)]
        if not below:
            reason = "it is for layers below the last two, whose local expectations do not read it"
            return dict.fromkeys(("baseline", "score", "reach", "chunk"), reason)
        copies = max(self.copies) if isinstance(self.copies, tuple) else self.copies
        return self._ratio(copies).idle(chain, below, clean)

    def check_chain(self, chain: Chain) -> None:
        """Refuse what cannot be trained, as `check` does. Raises ConfigurationError."""
        check_sites(chain, self.sigma, self.sampling)
        for site, copies in enumerate(per_site(self.copies, len(chain.sites), "copies")):
            if _is_on_top(chain, site):
                self.sampling.check(self.noise, copies)
            else:
                self._ratio(copies).check_chain(chain)
        require_separate_samples(chain.named_modules)
        require_logits_of_a_layer(chain)

    @torch.no_grad()
    def _estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Add up the estimates of the layers, each under noise at that layer alone."""
        chain = Chain.of(network, x)
        self.check_chain(chain)
        batch = Prepared(chain, chain.clean(x), per_site(self.sigma, len(chain.sites)), loss, y, generator)
        outcomes = []
        for site, copies in enumerate(per_site(self.copies, len(chain.sites), "copies")):
            on_top = _is_on_top(chain, site)
            outcomes.append(
                self._of_top(batch, site, copies) if on_top else self._ratio(copies).of_pass(batch, (site,))
            )
        forwards = len(y) + sum(outcome.forwards for outcome in outcomes)
        mean_loss = torch.stack([outcome.loss for outcome in outcomes]).mean()
        return Estimate(added_up(outcomes), mean_loss, batch.clean.logits, {"forwards": forwards})

    def _of_top(self, batch: Prepared, site: int, copies: int) -> PassEstimate:
        """As `LikelihoodRatio.of_pass`, for one of the last two layers."""
        local, chain, y = LocalExpectation(self.noise), batch.chain, batch.y
        group_size, sigma = self.sampling.group_size(copies), float(batch.sigma[site])
        gradients: dict[str, Tensor] = {}
        total = torch.zeros((), device=y.device)
        for part in local.parts(batch.clean, copies, group_size):
            draw = self.sampling.part(part // group_size).bound(self.noise, part, batch.generator)
            noisy = chain.noisy(batch.clean, (site,), batch.sigma, draw)
            (at,) = noisy.seen
            labels = y.repeat(part)
            # differences of losses need the precision that autocast would take away
            with torch.autocast(y.device.type, enabled=False):
                if site == len(chain.sites) - 1:
                    u = at.v0.expand_as(at.z).flatten(0, 1)
                    output = output_loss_for(batch.loss, self.noise, sigma, at.z.flatten(0, 1), labels)
                    losses, signal = output.values(u), output.signal(u, batch.generator).view_as(at.z)
                else:
                    u = noisy.logits.to(at.v.dtype)
                    output = noise_free_output(batch.loss, self.noise, u, labels)
                    losses = output.values(u)
                    beyond = Beyond(chain, (at,), {site: sigma}, output, u, losses)
                    signal = local.all_units(beyond, at, batch.generator)
            accumulate(gradients, chain.weight_vjp(site, at.x, signal / (copies * len(y))))
            total = total + losses.sum()
        samples = copies * len(y)
        return PassEstimate(gradients, total / samples, samples, {})


def _is_on_top(chain: Chain, site: int) -> bool:
    return site == len(chain.sites) - 1 or is_under_the_logits(chain, site)
