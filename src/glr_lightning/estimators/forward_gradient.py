"""Activity-perturbed forward gradients: derivatives along random directions, without a backward pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.likelihood_ratio import CHUNK_ELEMENTS
from glr_lightning.estimators.passes import Part, of_copies, started
from glr_lightning.estimators.settings import even_parts, require_defaults, require_read_scales, require_small_chunk
from glr_lightning.estimators.straight_through import (
    has_slopes,
    require_cells,
    require_loss_with_derivative,
    sites_with_slopes,
    with_slopes,
)
from glr_lightning.injection import Injection, Joint
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import weight_of
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.propagation.values import CleanPass, Shapes
from glr_lightning.validation import Count, ScalePerLayer


@dataclass(frozen=True)
class ForwardGradient(Estimator):
    """dL/dtheta of the noise-free network from directional derivatives: forward mode only, nothing goes backward.

    Quantity. The gradient of the plain loss, as `Backprop` has it.

    Estimator. For each sample n and copy k, random signs u_l at the pre-activations v_l of the sites of one pass of
    the injection, and the derivative of L along them by one forward-mode (Jacobian-vector) product,

        D_kn = sum_l <dL_n/dv_l, u_l,kn>,    g_l = 1/(K B) sum_{k,n} VJP_{A_l}( D_kn u_l,kn ).

    Unbiased because E[u u^T] = I over all sites of the pass: E[D u_l] = dL_n/dv_l. Signs (Rademacher)
    have the smallest variance among directions with independent components: sum_{j != i} g_j^2 in component i, where
    standard normals add 2 g_i^2. Copies -u repeat u, so there is nothing antithetic to draw.

    Biased through piecewise-constant activations, whose derivative is 0: they get the slope of their mean under noise,
    and the mean of the estimate is `StraightThrough`'s then.

    References. Ren, Kornblith, Liao, Hinton, ICLR 2023 (perturbed activities); Baydin, Pearlmutter, Syme, Wood, Torr,
    arXiv 2202.08587, 2022.

    Preconditions. A loss with a derivative; samples that do not influence each other (no BatchNorm in train mode).

    Args:
        copies: K, the directions per sample.
        injection: which layers are perturbed together; all (joint), or each in a pass of its own, which leaves the
            mean as it is and costs a pass per layer.
        noise: the density of the slopes, as for `StraightThrough`; read only where an activation needs it.
        sigma: the scale of the slopes, likewise.
        chunk: copies held in memory at once, or None to choose by `CHUNK_ELEMENTS`.

    Raises:
        ConfigurationError: any of these is out of range.
    """

    copies: Count = 32
    injection: Injection = Joint()
    noise: Noise = Gaussian()
    sigma: ScalePerLayer = 1.0
    chunk: Count | None = None

    family: ClassVar[Family] = "forward gradient"
    needs_derivatives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_small_chunk(self.chunk, self.copies)

    @property
    def objective(self) -> Objective:
        """The noise-free loss, however the directions are injected."""
        return "noise_free"

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Every layer learns from directional derivatives."""
        return dict.fromkeys(Graph.of(network).layers, "forward gradient, from directional derivatives")

    def bias(self, network: nn.Module) -> str:
        """Biased where a slope replaces a derivative that is 0."""
        if not has_slopes(with_slopes(Graph.of(network), self.noise, self.sigma)):
            return ""
        return "forward-gradient smoothing: straight-through slopes stand in for derivatives that are 0"

    def _require(self, bound: Bound) -> None:
        require_loss_with_derivative(bound.loss)
        require_cells(bound.graph)
        require_separate_samples(with_slopes(bound.graph, self.noise, self.sigma).named_modules)

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        graph = bound.graph
        idle = {} if len(graph.layers) > 1 else {"injection": "the network has one layer with weights"}
        read = sites_with_slopes(graph)
        if not read:
            idle |= dict.fromkeys(("noise", "sigma"), "no activation needs a slope in place of a derivative that is 0")
        require_defaults(self, idle)
        require_read_scales(graph, self.sigma, read)

    def _prepare(self, bound: Bound) -> Graph:
        return with_slopes(bound.graph, self.noise, self.sigma)

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Part]:
        graph = bound.graph
        shapes = graph.shapes(x)
        for layers in self.injection.passes(len(graph.layers)):
            for copies in self.parts(self.copies, self._chunk_for(shapes, len(x))):
                signs = {}
                for site in graph.sites_of(layers):
                    shape, like = (copies, len(x), *shapes.sites[site]), weight_of(graph.layer(site))
                    signs[site] = random_signs(shape, like, generator)
                yield Part(signs)

    @torch.no_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Part]) -> Estimate:
        """Average the directions, each weighted by the derivative along it."""
        clean, total, graph = bound.graph.clean(x), started(y), bound.prepared
        for part in noise:
            slopes = directional_derivatives(graph, clean, part.z, bound.loss, y)
            weight = slopes / (self.copies * len(y))
            for site, u in part.z.items():
                signal = weight[(...,) + (None,) * (u.dim() - 2)] * u
                # the layer's input is common to all copies, so `weight_vjp` sums them first
                total.add(graph.weight_vjp(site, clean.inputs[site], signal))
            total.forwards += part.copies * len(y)
        mean_loss = bound.loss(clean.logits, y).mean()
        return Estimate(total.gradients, mean_loss, clean.logits, {"forwards": total.forwards})

    def parts(self, copies: int, chunk: int) -> list[int]:
        """Split copies into parts of at most `chunk`, as even as can be."""
        return even_parts(copies, chunk)

    def _chunk_for(self, shapes: Shapes, batch: int) -> int:
        """The number of copies to hold at once."""
        return self.chunk or CHUNK_ELEMENTS // (batch * max(shape.numel() for shape in shapes.sites))


def directional_derivatives(graph: Graph, clean: CleanPass, signs: dict[int, Tensor], loss: Loss, y: Tensor) -> Tensor:
    """The derivative of every sample's loss along random signs, [copies, batch].

    The noisy pass with a noise whose value is 0 and whose tangent are the signs: v = v0 + 1 (0 + epsilon u).

    Args:
        graph: the network.
        clean: its noise-free pass over the batch.
        signs: by site, how its pre-activations move, [copies, batch, *site].
        loss: the per-sample loss.
        y: labels, [batch] int64.
    """
    with forward_ad.dual_level():
        noise = {site: forward_ad.make_dual(torch.zeros_like(u), u) for site, u in signs.items()}
        logits, seen, *_ = graph.noisy(clean, noise, (1.0,) * len(graph.sites))
        copies = len(logits) // len(y)
        slopes: Tensor = forward_ad.unpack_dual(loss(logits.to(seen[0].v.dtype), of_copies(y, copies))).tangent
    return slopes.view(copies, len(y))


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent +1 and -1 with even chances, in the dtype and on the device of `like`."""
    return torch.randint(2, shape, generator=generator, dtype=like.dtype, device=like.device).mul_(2).sub_(1)
