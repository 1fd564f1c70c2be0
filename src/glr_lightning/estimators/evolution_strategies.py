"""Evolution strategies: noise on the weights instead of the neurons."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.estimators.likelihood_ratio import CHUNK_ELEMENTS
from glr_lightning.estimators.settings import even_parts, require_small_chunk
from glr_lightning.losses import Loss
from glr_lightning.noise import Gaussian, Noise, require_admissible
from glr_lightning.propagation.requirements import require_no_draws
from glr_lightning.validation import Count, Scale


@dataclass(frozen=True)
class EvolutionStrategies(Estimator):
    """Gradient of J(theta) = E[L(theta + sigma eps)] from loss values, for any network and any loss.

    Quantity. With L the mean loss of the batch and eps independent draws of the density, one for each weight,
    the derivative of E[L(theta + sigma eps)] with respect to theta.

    Estimator. From K / 2 mirrored pairs of perturbed networks,

        g = 2/K sum_p  (L(theta + sigma eps_p) - L(theta - sigma eps_p)) / 2 * s(eps_p) / sigma.

    Unbiased because theta + sigma eps has density f((w - theta) / sigma) / sigma in every weight w, so that
    dJ/dtheta = E[L(theta + sigma eps) s(eps)] / sigma; for a symmetric density s is odd, and the mirrored draw gives
    the same with -L(theta - sigma eps). The variance grows with the number of weights, where noise on the
    neurons has it grow with the number of neurons.

    References. Salimans, Ho, Chen, Sidor, Sutskever, arXiv 1703.03864, 2017; Nesterov, Spokoiny, Foundations of
    Computational Mathematics 17, 2017 (Gaussian smoothing).

    Preconditions. An admissible, symmetric density; no layer that draws noise of its own. L is a function of the
    batch, so layers that couple samples are welcome. (In train mode they renew their running statistics once
    a step, from the unperturbed network.)

    Args:
        noise: the standardised density.
        sigma: its scale in units of the WEIGHTS, one value, and small: 0.02, where neurons stand 1.0.
        copies: K, the perturbed networks, an even number.
        chunk: copies held in memory at once, at least 2, or None to choose by `CHUNK_ELEMENTS`.

    Raises:
        ConfigurationError: any of these is out of range.
    """

    noise: Noise = Gaussian()
    sigma: Scale = 0.02
    copies: Count = 32
    chunk: Count | None = None

    family: ClassVar[Family] = "evolution strategies"
    needs_derivatives: ClassVar[bool] = False
    objective: ClassVar[Objective] = "weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_admissible(self.noise)
        if self.copies % 2:
            raise ConfigurationError(
                f"evolution strategies perturb in mirrored pairs, got copies={self.copies}; "
                f"use copies={self.copies + 1}.",
                option="copies",
            )
        if not self.noise.symmetric:
            raise ConfigurationError(
                f"evolution strategies perturb in mirrored pairs, which needs a symmetric density; "
                f"{type(self.noise).__name__} is not. Use noise=gaussian, laplace, logistic or student_t.",
                option="noise",
            )
        if self.chunk == 1:
            raise ConfigurationError("chunk=1 is smaller than one mirrored pair; use chunk=2 or more.", option="chunk")
        require_small_chunk(self.chunk, self.copies)

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Every layer learns from loss values under noise on the weights."""
        owners = (name.rpartition(".")[0] for name, _ in network.named_parameters())
        return dict.fromkeys(owners, "evolution strategies, from loss values under noise on the weights")

    def _require(self, bound: Bound) -> None:
        require_no_draws(bound.network.named_modules())

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        parameters = _trainable(bound.network)
        for copies in self.parts(self.copies, self._chunk_for(parameters, x)):
            yield {
                name: self.noise.sample((copies // 2, *p.shape), generator=generator, dtype=p.dtype)
                for name, p in parameters.items()
            }

    @torch.no_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[dict[str, Tensor]]) -> Estimate:
        """Compare the mirrored networks of each pair."""
        network, loss = bound.network, bound.loss
        parameters = _trainable(network)
        logits = network(x)
        gradients = {name: torch.zeros_like(p) for name, p in parameters.items()}
        total = torch.zeros((), dtype=logits.dtype, device=x.device)
        for eps in noise:
            above, below = (
                batch_losses(network, {name: p + step * eps[name] for name, p in parameters.items()}, loss, x, y)
                for step in (self.sigma, -self.sigma)
            )
            weight = (above - below) / (self.copies * self.sigma)  # 2/K * (L+ - L-)/2 / sigma
            for name, draws in eps.items():
                product = torch.tensordot(weight.to(draws.dtype), self.noise.score(draws), dims=1)
                gradients[name] = gradients[name] + product
            total = total + above.sum() + below.sum()
        return Estimate(gradients, total / self.copies, logits, {"forwards": (self.copies + 1) * len(y)})

    def parts(self, copies: int, chunk: int) -> list[int]:
        """Split copies into parts of at most `chunk`, whole pairs together, as even as can be."""
        return even_parts(copies, chunk, group=2)

    def _chunk_for(self, parameters: dict[str, Tensor], x: Tensor) -> int:
        """The number of copies to hold at once; the inputs stand for activations, whose size is not known here."""
        return self.chunk or CHUNK_ELEMENTS // max(sum(p.numel() for p in parameters.values()), x.numel())


def _trainable(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


def batch_losses(network: nn.Module, parameters: dict[str, Tensor], loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """The mean loss of the batch for each of the stacked parameters [networks, *parameter]: [networks]."""
    number = len(next(iter(parameters.values())))
    # layers that write to their buffers write to copies
    buffers = {name: b.expand(number, *b.shape).clone() for name, b in network.named_buffers()}
    logits = vmap(lambda weights: functional_call(network, weights, (x,)))(parameters | buffers)
    # autocast may have lowered the logits; the difference of two losses needs the full precision
    logits = logits.to(next(iter(parameters.values())).dtype)
    losses: Tensor = loss(logits.flatten(0, 1), y.repeat(number)).unflatten(0, (number, len(y)))
    return losses.mean(1)
