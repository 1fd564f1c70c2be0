"""Backpropagation through a noisy forward pass: infinitesimal perturbation analysis, paper 1's "BP+"."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.estimators.backprop import differentiate, require_derivatives
from glr_lightning.estimators.base import Estimate, Estimator, Family, Objective, check_sites, per_site
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.chain import Chain
from glr_lightning.sampling import Antithetic, Sampler
from glr_lightning.validation import Count, ScalePerLayer


@dataclass(frozen=True)
class NoisyBackprop(Estimator):
    """Infinitesimal perturbation analysis: dE[L]/dtheta by differentiating L along each noisy path.

    Quantity. The gradient of the jointly smoothed objective, as `LikelihoodRatio` with joint injection has it.
    Estimator. The mean over K copies of dL(z_k)/dtheta with the noise held fixed; unbiased when L and phi are
    Lipschitz continuous, so that derivative and expectation may be exchanged. With K = 1 this is paper 1's
    "BP+". Reference: Peng et al., INFORMS Journal on Computing 34(1), 2022, on the link between the two.

    Args and errors as for `LikelihoodRatio`.
    """

    noise: Noise = Gaussian()
    sigma: ScalePerLayer = 1.0
    copies: Count = 32
    sampling: Sampler = Antithetic()

    family: ClassVar[Family] = "pathwise"
    needs_derivatives: ClassVar[bool] = True
    objective: ClassVar[Objective] = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling.check(self.noise, self.copies)

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Every layer is backpropagated through, under noise."""
        return dict.fromkeys(Chain.of(network).site_names, "pathwise: backpropagation through the noisy network")

    def check(self, network: nn.Module, loss: Loss, x: Tensor | None = None) -> None:
        """Refuse what has no useful derivative, and noise that does not fit."""
        chain = Chain.of(network, x)
        require_derivatives(network, loss)
        check_sites(chain, self.sigma, self.sampling)

    @torch.enable_grad()
    def _estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Differentiate the mean loss of one noisy pass over all copies."""
        chain = Chain.of(network, x)
        self.check(network, loss)
        sites = tuple(range(len(chain.sites)))

        draw = self.sampling.bound(self.noise, self.copies, generator)
        clean = chain.clean(x)
        logits, *_ = chain.noisy(clean, sites, per_site(self.sigma, len(sites)), draw)
        mean_loss = loss(logits, y.repeat(self.copies)).mean()
        return differentiate(network, mean_loss, clean.logits, forwards=(self.copies + 1) * len(y))
