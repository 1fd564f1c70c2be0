"""Backpropagation, the control: exact through a plain network, pathwise through a noisy one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.chain import Chain
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.base import Estimate, Estimator, per_site, validated_count, validated_sigma
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.sampling import Independent, Sampler


def require_derivatives(network: nn.Module, loss: Loss) -> None:
    """Refuse a network or loss whose derivative is zero almost everywhere. Raises ConfigurationError."""
    if not loss.differentiable:
        raise ConfigurationError(
            f"backpropagation needs a loss with a derivative, {type(loss).__name__} has none; "
            "use loss=cross_entropy, or estimator=likelihood_ratio."
        )
    for name, module in network.named_modules():
        if isinstance(module, PiecewiseConstant):
            raise ConfigurationError(
                f"backpropagation cannot train through '{name}' ({type(module).__name__}): its derivative is 0; "
                "use activation=sigmoid, tanh or relu, or estimator=likelihood_ratio."
            )


@dataclass(frozen=True)
class Backprop(Estimator):
    """dL/dtheta of the noise-free network by reverse-mode differentiation (one forward, one backward)."""

    def check(self, network: nn.Module, loss: Loss) -> None:
        require_derivatives(network, loss)

    @torch.enable_grad()
    def estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Estimate:
        logits = network(x)
        return differentiate(network, loss(logits, y).mean(), logits, forwards=len(y))


@dataclass(frozen=True)
class NoisyBackprop(Estimator):
    """Infinitesimal perturbation analysis: dE[L]/dtheta by differentiating L along each noisy path.

    Quantity. The gradient of the jointly smoothed objective, as `LikelihoodRatio` with joint injection has it.
    Estimator. The mean over K copies of dL(z_k)/dtheta with the noise held fixed; unbiased when L and phi are
    Lipschitz continuous, so that derivative and expectation may be exchanged. With K = 1 this is the papers'
    "BP+". Reference: Peng et al., INFORMS Journal on Computing 34(1), 2022, on the link between the two.

    Args and errors as for `LikelihoodRatio`.
    """

    noise: Noise = Gaussian()
    sigma: float | tuple[float, ...] = 1.0
    copies: int = 1
    sampling: Sampler = Independent()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", validated_sigma(self.sigma))
        validated_count("copies", self.copies)
        self.sampling.check(self.noise, self.copies)

    def check(self, network: nn.Module, loss: Loss) -> None:
        require_derivatives(network, loss)
        per_site(self.sigma, len(Chain.of(network).sites))

    @torch.enable_grad()
    def estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Estimate:
        chain = Chain.of(network)
        sites = tuple(range(len(chain.sites)))

        def draw(v0: Tensor) -> Tensor:
            return self.sampling(self.noise, self.copies, v0.shape[1:], generator=generator, dtype=v0.dtype).z

        clean = chain.clean(x)
        logits, _ = chain.noisy(clean, sites, per_site(self.sigma, len(sites)), draw)
        mean_loss = loss(logits, y.repeat(self.copies)).mean()
        return differentiate(network, mean_loss, clean.logits, forwards=(self.copies + 1) * len(y))


def differentiate(network: nn.Module, mean_loss: Tensor, logits: Tensor, forwards: int) -> Estimate:
    """Reverse-mode derivatives of a scalar loss with respect to every trainable parameter."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(mean_loss, list(parameters.values()))
    named = dict(zip(parameters, gradients, strict=True))
    return Estimate(named, mean_loss.detach(), logits.detach(), {"forwards": forwards})
