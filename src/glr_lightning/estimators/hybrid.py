"""Hybrid: likelihood ratio where something jumps, derivatives along the path above it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.baselines import Baseline, LeaveOneOut
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.backprop import derivatives
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.likelihood_ratio import LikelihoodRatio
from glr_lightning.estimators.passes import Part, Total, noise_at, of_copies
from glr_lightning.estimators.score import Score
from glr_lightning.estimators.settings import per_site, require_defaults, require_read_scales
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import facts_of
from glr_lightning.sampling import Antithetic, Sampler
from glr_lightning.validation import Count, ScalePerLayer


@dataclass(frozen=True)
class Hybrid(Estimator):
    """Gradient of E[L] with noise at and below the last discontinuity only, and exact derivatives above it.

    The layers split at the last piecewise-constant activation (none: below the first layer).

        below   noise; likelihood ratio, as in `LikelihoodRatio` with joint injection
        above   a differentiable loss: no noise, the mean of dL/dtheta over the copies (pathwise, exact given h)
                a loss that jumps: noise at the logits alone, their likelihood ratio sum_k (L_k - b_k) s(z_k) / sigma as
                the cotangent of ONE vector-Jacobian product through the layers above the split

    Unbiased for the gradient of E[L] under that noise: below by the likelihood-ratio identity; above because
    given the noise below, L (or the expectation of L over the logits' noise) is differentiable in theta, and the
    derivative goes under the expectation.

    References. Peng, Xiao, Heidergott, Hong, Lam, INFORMS Journal on Computing 34(1), 2022, on the link between
    infinitesimal perturbation analysis and the likelihood ratio.

    Preconditions. As for `LikelihoodRatio`; something must jump, and a layer must be left that can be differentiated.

    Args and errors as for `LikelihoodRatio`; all copies are held in memory at once.
    """

    noise: Noise = Gaussian()
    sigma: ScalePerLayer = 1.0
    copies: Count = 32
    sampling: Sampler = Antithetic()
    baseline: Baseline = LeaveOneOut()
    score: Score = "auto"

    family: ClassVar[Family] = "likelihood ratio and pathwise"
    needs_derivatives: ClassVar[bool] = True
    objective: ClassVar[Objective] = "discontinuities"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._ratio  # refuses a combination that cannot work

    @property
    def _ratio(self) -> LikelihoodRatio:
        """The estimator of the layers below the split; it also refuses combinations that cannot work."""
        return LikelihoodRatio(self.noise, self.sigma, self.copies, self.sampling, self.baseline, score=self.score)

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Likelihood ratio below the split, derivatives above it."""
        graph = Graph.of(network)
        split, sites = _below(graph), len(graph.sites)
        words = ["likelihood ratio, from loss values"] * split
        if loss.differentiable:
            words += ["pathwise: derivative of the loss, given the noise below"] * (sites - split)
        else:
            words += ["vector-Jacobian product of the logits' likelihood ratio"] * (sites - split - 1)
            words += ["likelihood ratio at the logits, from loss values"]
        return {name: words[graph.layer_of.index(layer)] for layer, name in enumerate(graph.layers)}

    def _require(self, bound: Bound) -> None:
        graph, loss = bound.graph, bound.loss
        self._ratio.require_graph(graph)
        split, sites = _below(graph), len(graph.sites)
        if split == 0 and loss.differentiable:
            raise ConfigurationError(
                f"estimator=hybrid takes likelihood ratios where something jumps, but {type(loss).__name__} and every "
                "activation here have a derivative; use estimator=noisy_backprop or backprop."
            )
        if split >= sites - (not loss.differentiable):
            reason, instead = "there is no hidden layer", "add a hidden layer of smooth units"
            if split:
                reason = "the last threshold is under the logits"
                instead = "loss=cross_entropy, or a smooth activation"
            raise ConfigurationError(
                f"estimator=hybrid has no layer to differentiate here: {reason}, and {type(loss).__name__} jumps as "
                f"well; use estimator=local_expectation or likelihood_ratio, or {instead}."
            )
        both = set(_names(graph, range(split))) & set(_names(graph, range(split, sites)))
        if both:
            raise ConfigurationError(
                f"estimator=hybrid takes the gradient of a parameter from one side of the last jump, and "
                f"'{min(both)}' is used on both; use estimator=likelihood_ratio."
            )
        if not loss.differentiable and not graph.is_exit(sites - 1):
            raise ConfigurationError(
                f"estimator=hybrid with a loss that jumps ({type(loss).__name__}) needs logits of the last layer "
                "alone, and here they read others as well; use estimator=likelihood_ratio, or loss=cross_entropy."
            )

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        noisy = _noisy_sites(bound.graph, bound.loss)
        require_read_scales(bound.graph, self.sigma, noisy)
        require_defaults(self, self._ratio.idle(bound.graph, [noisy], None))

    def _prepare(self, bound: Bound) -> LikelihoodRatio:
        return self._ratio

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Part]:
        sites = _noisy_sites(bound.graph, bound.loss)
        yield Part(noise_at(bound.graph, sites, x, self.noise, self.sampling, self.copies, generator))

    @torch.enable_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Part]) -> Estimate:
        """Run one noisy pass over all copies, and differentiate above the split."""
        graph, loss, (part,) = bound.graph, bound.loss, noise
        sigma = per_site(self.sigma, graph)
        group = self.sampling.group(self.copies, x.device)

        clean = graph.clean(x)
        logits, seen, *_ = graph.noisy(clean, part.z, sigma)
        losses = loss(logits.to(seen[0].v.dtype), of_copies(y, self.copies)).unflatten(0, (self.copies, len(y)))
        with torch.no_grad():
            clean_loss = loss(clean.logits, y) if self.baseline.needs_clean else None
            weight = (losses - self.baseline(losses, group, clean_loss)) / losses.numel()
            signals = [bound.prepared.score_of(graph, at, sigma[at.site]) for at in seen]
            signals = [
                s * (weight / sigma[at.site])[(...,) + (None,) * (s.dim() - 2)]
                for s, at in zip(signals, seen, strict=True)
            ]

        parameters = _parameters(graph, range(_below(graph), len(graph.sites)))  # all of these may be frozen
        if loss.differentiable:
            top, cotangent = losses.mean(), None
        else:
            at = seen.pop()
            top, cotangent = at.v0, signals.pop().sum_to_size(at.v0.shape)
        above = derivatives(top, parameters, cotangent)
        total = Total(losses.detach().mean(), (self.copies + 1) * len(y), above)
        with torch.no_grad():
            for at, signal in zip(seen, signals, strict=True):
                total.add(graph.weight_vjp(at.site, at.x.detach(), signal))
        return Estimate(total.gradients, total.loss, clean.logits.detach(), {"forwards": total.forwards})


def _below(graph: Graph) -> int:
    """The number of sites at and below the last discontinuity of the network."""
    at = [number for number, node in enumerate(graph.nodes) if facts_of(node.module).jumps]
    return sum(number < at[-1] for number in graph.sites) if at else 0


def _noisy_sites(graph: Graph, loss: Loss) -> tuple[int, ...]:
    """The sites at and below the last discontinuity, and the logits where the loss jumps."""
    return tuple(range(_below(graph))) + (() if loss.differentiable else (len(graph.sites) - 1,))


def _names(graph: Graph, sites: range) -> list[str]:
    """The network's names of the parameters of the layers at some sites."""
    return [graph.parameter_name(site, name) for site in sites for name, _ in graph.layer(site).named_parameters()]


def _parameters(graph: Graph, sites: range) -> dict[str, Tensor]:
    """The trainable parameters of the layers at some sites, by the network's names."""
    named = {graph.parameter_name(site, n): p for site in sites for n, p in graph.layer(site).named_parameters()}
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}
