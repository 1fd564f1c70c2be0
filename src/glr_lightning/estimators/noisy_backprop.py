"""Backpropagation through a noisy forward pass: infinitesimal perturbation analysis, paper 1's "BP+"."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.estimators.backprop import differentiate, require_derivatives
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.passes import Part, noise_at, of_copies
from glr_lightning.estimators.settings import check_sites, per_site
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.graph import Graph
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
        return dict.fromkeys(Graph.of(network).layers, "pathwise: backpropagation through the noisy network")

    def bias(self, network: nn.Module) -> str:
        """Biased where the network cuts the path."""
        nodes = (node.module for node in Graph.of(network).nodes)
        cuts = [module.line for module in nodes if isinstance(module, FunctionCall) and module.name == "detach"]
        return f"detach ({', '.join(cuts)}) hides from the derivative what the loss depends on" if cuts else ""

    def _require(self, bound: Bound) -> None:
        require_derivatives(bound.network, bound.loss)
        check_sites(bound.graph, self.sigma, self.sampling)

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Part]:
        sites = range(len(bound.graph.sites))
        yield Part(noise_at(bound.graph, sites, x, self.noise, self.sampling, self.copies, generator))

    @torch.enable_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Part]) -> Estimate:
        """Differentiate the mean loss of one noisy pass over all copies."""
        graph, (part,) = bound.graph, noise
        clean = graph.clean(x)
        logits = graph.noisy(clean, part.z, per_site(self.sigma, graph)).logits
        mean_loss = bound.loss(logits, of_copies(y, self.copies)).mean()
        return differentiate(bound.network, mean_loss, clean.logits, forwards=(self.copies + 1) * len(y))
