"""Straight-through backpropagation, the usual control for networks with hard activations."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.backprop import differentiate
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.settings import per_site, require_read_scales
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import facts_of, named
from glr_lightning.propagation.probing import ModuleFacts
from glr_lightning.propagation.traced_nodes import Node
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

    Preconditions. Every piecewise-constant activation is called where the network's trace sees it; its scale is that of
    the last layer before it.

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
        return dict.fromkeys(Graph.of(network).layers, "backpropagation with straight-through slopes")

    def bias(self, network: nn.Module) -> str:
        """Always biased: the loss is not linear in the units."""
        return (
            "straight-through: the slopes of the activations' means are multiplied along the hard path, as if "
            "the loss were linear in every unit"
        )

    def _require(self, bound: Bound) -> None:
        loss = bound.loss
        if not has_slopes(with_slopes(bound.graph, self.noise, self.sigma)):
            exact = "backprop, which is exact here" if loss.differentiable else "local_expectation or hybrid"
            raise ConfigurationError(
                "straight-through needs a piecewise-constant activation (activation=threshold or sign), this network "
                f"has none; use estimator={exact}."
            )
        require_cells(bound.graph)
        require_loss_with_derivative(loss)

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        require_read_scales(bound.graph, self.sigma, sites_with_slopes(bound.graph))

    def _prepare(self, bound: Bound) -> Graph:
        return with_slopes(bound.graph, self.noise, self.sigma)

    @torch.enable_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Any]) -> Estimate:
        """Differentiate the mean loss of the noise-free network with slopes."""
        logits = bound.prepared.clean(x).logits
        return differentiate(bound.network, bound.loss(logits, y).mean(), logits, forwards=len(y))


class Smoothed(nn.Module):
    """What takes the place of an activation phi, given the density and the scale of the noise before it."""

    facts = ModuleFacts(elementwise=True)

    def __init__(self, activation: PiecewiseConstant, noise: Noise, sigma: float | Tensor) -> None:
        super().__init__()
        self.activation = activation
        self.noise = noise
        self.sigma = sigma


class WithSlope(Smoothed):
    """phi(v) with the derivative phi_bar'(v), in reverse and in forward mode."""

    def forward(self, v: Tensor) -> Tensor:
        """Map v to phi(v), with the slope phi_bar'(v)."""
        at = v.detach()
        # the value is phi(v) exactly, since v - at is 0; both modes of differentiation see only that difference
        value: Tensor = self.activation(at)
        return value + smoothed_slope(self.activation, self.noise, self.sigma, at) * (v - at)


class Mean(Smoothed):
    """phi_bar(v) = E phi(v + sigma z), the activation's mean under noise, forwards and backwards."""

    def forward(self, v: Tensor) -> Tensor:
        """Map v to level_0 + sum_i (level_{i+1} - level_i) F((v - cut_i) / sigma), F of a symmetric density."""
        value = torch.full_like(v, self.activation.levels[0])
        for cut, (below, above) in zip(self.activation.cuts, itertools.pairwise(self.activation.levels), strict=True):
            value = value + (above - below) * self.noise.cdf((v - cut) / self.sigma)
        return value


def smoothed_slope(activation: PiecewiseConstant, noise: Noise, sigma: float | Tensor, v: Tensor) -> Tensor:
    """phi_bar'(v) = sum_i (level_{i+1} - level_i) f((cut_i - v) / sigma) / sigma, like v."""
    slope = torch.zeros_like(v)
    for cut, (below, above) in zip(activation.cuts, itertools.pairwise(activation.levels), strict=True):
        slope += (above - below) / sigma * noise.log_prob((cut - v) / sigma).exp()
    return slope


def with_slopes(
    graph: Graph, noise: Noise, sigma: float | Sequence[float | Tensor], kind: type[Smoothed] = WithSlope
) -> Graph:
    """The graph with a slope at every piecewise-constant activation; an input that is thresholded needs none.

    Args:
        graph: the network.
        noise: the density that smooths.
        sigma: its scale, one or one per layer.
        kind: what takes the activations' place.

    Raises:
        ConfigurationError: a list of scales that is not one per layer; an activation inside another module, or a module
            that is piecewise constant and declares no cells, where the derivative would silently stay 0.
    """
    scales: tuple[float | Tensor, ...] = per_site(sigma, graph)
    slopes: dict[int, nn.Module] = {}
    for number, node in enumerate(graph.nodes):
        if isinstance(node.module, PiecewiseConstant):
            site = _last_site_before(graph, number)
            if site is not None:
                slopes[number] = kind(node.module, noise, scales[site])
        elif any(isinstance(inner, PiecewiseConstant) for inner in node.module.modules()):
            raise ConfigurationError(
                f"module {node.what} holds a piecewise-constant activation inside, where no slope can be given to it; "
                "call it in the code of the network itself, or use estimator=local_expectation."
            )
        elif number and facts_of(node.module).flat:
            _refuse_without_cells(node)
    return graph.with_modules(slopes)


def _last_site_before(graph: Graph, number: int) -> int | None:
    """The last site whose value a node rests on, None if there is none."""
    before = set(graph.ancestors(number))
    return max((site for site, at in enumerate(graph.sites) if at in before), default=None)


def sites_with_slopes(graph: Graph) -> list[int]:
    """The sites whose noise scale a slope reads: those before a piecewise-constant activation."""
    at = [number for number, node in enumerate(graph.nodes) if isinstance(node.module, PiecewiseConstant)]
    before = {_last_site_before(graph, number) for number in at}
    return sorted(site for site in before if site is not None)


def require_cells(graph: Graph) -> None:
    """Refuse a module that jumps and declares no cells, for it cannot be given a slope. Raises ConfigurationError."""
    for node in graph.nodes:
        holds_cells = any(isinstance(inner, PiecewiseConstant) for inner in node.module.modules())
        if facts_of(node.module).jumps and not holds_cells:
            _refuse_without_cells(node)


def _refuse_without_cells(node: Node) -> None:
    what = node.what if isinstance(node.module, FunctionCall) else f"module {named(node.name, node.module)}"
    raise ConfigurationError(
        f"{what} has a derivative that is 0 or misses its jumps, and declares no cells by which it could be given a "
        "slope; derive it from glr_lightning.activations.PiecewiseConstant, or use estimator=local_expectation."
    )


def has_slopes(graph: Graph) -> bool:
    """Whether `with_slopes` found an activation that needs one."""
    return any(isinstance(node.module, WithSlope) for node in graph.nodes)


def require_loss_with_derivative(loss: Loss) -> None:
    """Refuse a loss whose derivative is zero almost everywhere. Raises ConfigurationError."""
    if not loss.differentiable:
        raise ConfigurationError(
            f"this estimator differentiates the loss, {type(loss).__name__} has no derivative; "
            "use loss=cross_entropy, or estimator=local_expectation."
        )
