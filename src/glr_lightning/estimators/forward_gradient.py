"""Activity-perturbed forward gradients: derivatives along random directions, without a backward pass."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from glr_lightning.estimators.base import (
    Estimate,
    Estimator,
    Family,
    Objective,
    accumulate,
    even_parts,
    require_defaults,
    require_read_scales,
    require_small_chunk,
)
from glr_lightning.estimators.likelihood_ratio import CHUNK_ELEMENTS
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
from glr_lightning.propagation.chain import Chain, CleanPass
from glr_lightning.propagation.requirements import require_separate_samples
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
        return dict.fromkeys(Chain.of(network).site_names, "forward gradient, from directional derivatives")

    def bias(self, network: nn.Module) -> str:
        """Biased where a slope replaces a derivative that is 0."""
        if not has_slopes(with_slopes(Chain.of(network), self.noise, self.sigma)):
            return ""
        return "forward-gradient smoothing: straight-through slopes stand in for derivatives that are 0"

    def check(self, network: nn.Module, loss: Loss, x: Tensor | None = None) -> None:
        """Refuse what the method cannot train, and settings without effect."""
        chain = Chain.of(network, x)
        self.check_chain(chain, loss)
        idle = {} if len(chain.sites) > 1 else {"injection": "the network has one layer with weights"}
        read = sites_with_slopes(chain)
        if not read:
            idle |= dict.fromkeys(("noise", "sigma"), "no activation needs a slope in place of a derivative that is 0")
        require_defaults(self, idle)
        require_read_scales(chain, self.sigma, read)

    def check_chain(self, chain: Chain, loss: Loss) -> None:
        """Refuse what cannot be trained, as `check` does. Raises ConfigurationError."""
        require_loss_with_derivative(loss)
        require_cells(chain)
        require_separate_samples(with_slopes(chain, self.noise, self.sigma).named_modules)

    @torch.no_grad()
    def _estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Average directional derivatives times their directions over the copies."""
        plain = Chain.of(network, x)
        self.check_chain(plain, loss)
        clean = plain.clean(x)
        chain = with_slopes(plain, self.noise, self.sigma)
        passes = self.injection.passes(len(chain.sites))
        gradients: dict[str, Tensor] = {}
        for sites in passes:
            for copies in self.parts(self.copies, self._chunk_for(clean)):
                slopes, directions = directional_derivatives(chain, clean, sites, copies, loss, y, generator)
                weight = slopes / (self.copies * len(y))
                for site, u in directions.items():
                    signal = weight[(...,) + (None,) * (u.dim() - 2)] * u
                    # the layer's input is common to all copies, so `weight_vjp` sums them first
                    accumulate(gradients, chain.weight_vjp(site, clean.inputs[site], signal))
        forwards = (len(passes) * self.copies + 1) * len(y)
        return Estimate(gradients, loss(clean.logits, y).mean(), clean.logits, {"forwards": forwards})

    def parts(self, copies: int, chunk: int) -> list[int]:
        """Split copies into parts of at most `chunk`, as even as can be."""
        return even_parts(copies, chunk)

    def _chunk_for(self, clean: CleanPass) -> int:
        return self.chunk or CHUNK_ELEMENTS // max(v.numel() for v in clean.preactivations)


def directional_derivatives(
    chain: Chain,
    clean: CleanPass,
    sites: tuple[int, ...],
    copies: int,
    loss: Loss,
    y: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, dict[int, Tensor]]:
    """The derivatives [copies, batch] of each sample's loss along random signs, and the signs by site.

    The noisy pass with a noise whose value is 0 and whose tangent are the signs: v = v0 + 1 (0 + epsilon u).

    Args:
        chain: the network.
        clean: its noise-free pass over the batch.
        sites: the layers whose pre-activations move.
        copies: directions per sample.
        loss: the per-sample loss.
        y: labels, [batch] int64.
        generator: for the signs.
    """
    with forward_ad.dual_level():

        def draw(v0: Tensor) -> Tensor:
            value = forward_ad.unpack_dual(v0).primal
            u = random_signs((copies, *v0.shape[1:]), value, generator)
            dual: Tensor = forward_ad.make_dual(torch.zeros_like(u), u)
            return dual

        logits, seen, _ = chain.noisy(clean, sites, (1.0,) * len(chain.sites), draw)
        slopes = forward_ad.unpack_dual(loss(logits.to(seen[0].v.dtype), y.repeat(copies))).tangent
        directions = {at.site: forward_ad.unpack_dual(at.z).tangent for at in seen}
    return slopes.unflatten(0, (copies, len(y))), directions


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent +1 and -1 with even chances, in the dtype and on the device of `like`."""
    return torch.randint(2, shape, generator=generator, dtype=like.dtype, device=like.device).mul_(2).sub_(1)
