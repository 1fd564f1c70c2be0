"""Straight-through backpropagation, the usual control for networks with hard activations."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.backprop import differentiate
from glr_lightning.estimators.base import Estimate, Estimator, Family, Objective, per_site, require_read_scales
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.chain import Chain
from glr_lightning.propagation.module_facts import facts_of, named
from glr_lightning.propagation.probing import ModuleFacts
from glr_lightning.validation import ScalePerLayer


@dataclass(frozen=True)
class StraightThrough(Estimator):
    """Backpropagation with hard activations forward, and the slopes of their means under noise backward.

    Quantity. The gradient of the jointly smoothed objective, as `LikelihoodRatio` with joint injection has it,
    for networks with piecewise-constant activations and a loss with a derivative.

    Estimator. One noise-free forward pass with the hard phi, and one backward pass in which its derivative is

        phi_bar'(v) = d/dv E[phi(v + sigma z)] = sum_i (level_{i+1} - level_i) f((cut_i - v) / sigma) / sigma.

    Biased, without variance. phi_bar' is the right derivative of each unit's own mean, but L is differentiated at the
    hard state and as if it were linear in every unit: E[L(h)] is replaced by L(phi_bar) for the slopes, and
    phi_bar by phi for the states. Needs no draws, so the density need not be admissible: uniform noise
    gives the classical clipped slope, 1[|v| < sigma] / (2 sigma) for a threshold.

    References. Bengio, Leonard, Courville, arXiv 1308.3432, 2013; Hubara et al., NIPS 2016 (the clipped slope).

    Preconditions. An nn.Sequential whose every piecewise-constant activation stands in the chain itself; its scale
    is that of the layer before it.

    Args:
        noise: the standardised density.
        sigma: its scale, one value or one per layer, in units of the pre-activation.

    Raises:
        ConfigurationError: a scale out of range.
    """

    noise: Noise = Gaussian()
    sigma: ScalePerLayer = 1.0

    family: ClassVar[Family] = "straight-through"
    needs_derivatives: ClassVar[bool] = True
    objective: ClassVar[Objective] = "joint"

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Every layer is backpropagated through, with slopes at hard activations."""
        return dict.fromkeys(Chain.of(network).site_names, "backpropagation with straight-through slopes")

    def bias(self, network: nn.Module) -> str:
        """Always biased: the loss is not linear in the units."""
        return (
            "straight-through: the slopes of the activations' means are multiplied along the hard path, as if "
            "the loss were linear in every unit"
        )

    def check(self, network: nn.Module, loss: Loss, x: Tensor | None = None) -> None:
        """Refuse what the method cannot train, and settings without effect."""
        plain = Chain.of(network, x)
        self.check_chain(plain, loss)
        require_read_scales(plain, self.sigma, sites_with_slopes(plain))

    def check_chain(self, plain: Chain, loss: Loss) -> None:
        """Refuse what cannot be trained, as `check` does. Raises ConfigurationError."""
        chain = with_slopes(plain, self.noise, self.sigma)
        if not has_slopes(chain):
            exact = "backprop, which is exact here" if loss.differentiable else "local_expectation or hybrid"
            raise ConfigurationError(
                "straight-through needs a piecewise-constant activation (activation=threshold or sign), this network "
                f"has none; use estimator={exact}."
            )
        require_cells(plain)
        require_loss_with_derivative(loss)

    @torch.enable_grad()
    def _estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Differentiate the mean loss of the noise-free network with slopes."""
        chain = Chain.of(network, x)
        self.check_chain(chain, loss)
        logits = with_slopes(chain, self.noise, self.sigma).clean(x).logits
        return differentiate(network, loss(logits, y).mean(), logits, forwards=len(y))


class WithSlope(nn.Module):
    """phi(v) with the derivative phi_bar'(v), in reverse and in forward mode."""

    facts = ModuleFacts(elementwise=True)

    def __init__(self, activation: PiecewiseConstant, noise: Noise, sigma: float | Tensor) -> None:
        super().__init__()
        self.activation = activation
        self.noise = noise
        self.sigma = sigma

    def forward(self, v: Tensor) -> Tensor:
        """Map v to phi(v), with the slope phi_bar'(v)."""
        at = v.detach()
        # the value is phi(v) exactly, since v - at is 0; both modes of differentiation see only that difference
        value: Tensor = self.activation(at)
        return value + smoothed_slope(self.activation, self.noise, self.sigma, at) * (v - at)


def smoothed_slope(activation: PiecewiseConstant, noise: Noise, sigma: float | Tensor, v: Tensor) -> Tensor:
    """phi_bar'(v) = sum_i (level_{i+1} - level_i) f((cut_i - v) / sigma) / sigma, like v."""
    slope = torch.zeros_like(v)
    for cut, (below, above) in zip(activation.cuts, itertools.pairwise(activation.levels), strict=True):
        slope += (above - below) / sigma * noise.log_prob((cut - v) / sigma).exp()
    return slope


def with_slopes(chain: Chain, noise: Noise, sigma: float | Sequence[float | Tensor]) -> Chain:
    """The chain with a slope at every piecewise-constant activation; an input that is thresholded needs none.

    Raises:
        ConfigurationError: a list of scales that is not one per layer; an activation inside another module, or a module
            that is piecewise constant and declares no cells, where the derivative would silently stay 0.
    """
    scales: tuple[float | Tensor, ...] = per_site(sigma, len(chain.sites))
    modules = list(chain.modules)
    for position, (name, module) in enumerate(zip(chain.names, chain.modules, strict=True)):
        layers_before = sum(at < position for at in chain.sites)
        if isinstance(module, PiecewiseConstant):
            if layers_before:
                modules[position] = WithSlope(module, noise, scales[layers_before - 1])
        elif any(isinstance(inner, PiecewiseConstant) for inner in module.modules()):
            raise ConfigurationError(
                f"module '{name}' ({type(module).__name__}) holds a piecewise-constant activation inside, where no "
                "slope can be given to it; make it an element of the nn.Sequential, or use estimator=local_expectation."
            )
        elif facts_of(module).flat:
            _refuse_without_cells(name, module)
    return replace(chain, modules=tuple(modules))


def sites_with_slopes(chain: Chain) -> list[int]:
    """The layers whose noise scale a slope reads: those before a piecewise-constant activation."""
    at = [position for position, module in enumerate(chain.modules) if isinstance(module, PiecewiseConstant)]
    before = {sum(site < position for site in chain.sites) - 1 for position in at}
    return sorted(before - {-1})


def require_cells(chain: Chain) -> None:
    """Refuse a module that jumps and declares no cells, for it cannot be given a slope. Raises ConfigurationError."""
    for name, module in zip(chain.names, chain.modules, strict=True):
        if facts_of(module).jumps and not any(isinstance(inner, PiecewiseConstant) for inner in module.modules()):
            _refuse_without_cells(name, module)


def _refuse_without_cells(name: str, module: nn.Module) -> None:
    raise ConfigurationError(
        f"module {named(name, module)} has a derivative that is 0 or misses its jumps, and declares no cells by which "
        "it could be given a slope; derive it from glr_lightning.activations.PiecewiseConstant, or use "
        "estimator=local_expectation."
    )


def has_slopes(chain: Chain) -> bool:
    """Whether `with_slopes` found an activation that needs one."""
    return any(isinstance(module, WithSlope) for module in chain.modules)


def require_loss_with_derivative(loss: Loss) -> None:
    """Refuse a loss whose derivative is zero almost everywhere. Raises ConfigurationError."""
    if not loss.differentiable:
        raise ConfigurationError(
            f"this estimator differentiates the loss, {type(loss).__name__} has no derivative; "
            "use loss=cross_entropy, or estimator=local_expectation."
        )
