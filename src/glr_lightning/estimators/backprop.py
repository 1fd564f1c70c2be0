"""Backpropagation, the control."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.base import Estimator, Family, Objective
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.losses import Loss
from glr_lightning.propagation.module_facts import named, without_derivative


def require_derivatives(network: nn.Module, loss: Loss) -> None:
    """Refuse a network or loss whose derivative is zero almost everywhere. Raises ConfigurationError."""
    obstacles, remedies = [], []
    if not loss.differentiable:
        obstacles.append(f"needs a loss with a derivative, {type(loss).__name__} has none")
        remedies.append("loss=cross_entropy")
    hard = [named(name, module) for name, module in without_derivative(network).items()]
    if hard:
        obstacles.append(f"cannot train through {', '.join(hard)}: its derivative is 0, or misses the jumps")
        remedies.append("activation=sigmoid, tanh or relu")
    if obstacles:
        raise ConfigurationError(
            f"backpropagation {', and it '.join(obstacles)}; "
            f"use {' with '.join(remedies)}, or estimator=local_expectation."
        )


@dataclass(frozen=True)
class Backprop(Estimator):
    """dL/dtheta of the noise-free network by reverse-mode differentiation (one forward, one backward)."""

    family: ClassVar[Family] = "backpropagation"
    needs_derivatives: ClassVar[bool] = True
    objective: ClassVar[Objective] = "noise_free"

    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Every layer is backpropagated through."""
        owners = (name.rpartition(".")[0] for name, _ in network.named_parameters())
        return dict.fromkeys(owners, "backpropagation")

    def _require(self, bound: Bound) -> None:
        require_derivatives(bound.network, bound.loss)

    @torch.enable_grad()
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Any]) -> Estimate:
        """Differentiate the mean loss of one noise-free pass."""
        logits = bound.network(x)
        return differentiate(bound.network, bound.loss(logits, y).mean(), logits, forwards=len(y))


def differentiate(network: nn.Module, mean_loss: Tensor, logits: Tensor, forwards: int) -> Estimate:
    """Reverse-mode derivatives of a scalar loss with respect to every trainable parameter."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = derivatives(mean_loss, parameters)
    return Estimate(gradients, mean_loss.detach(), logits.detach(), {"forwards": forwards})


def derivatives(value: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor | None = None) -> dict[str, Tensor]:
    """Reverse-mode derivatives by name. Raises ConfigurationError: none reaches some parameter."""
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if value.requires_grad and parameters:
        found = torch.autograd.grad(value, list(parameters.values()), cotangent, allow_unused=True)
    reached = {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}
    if len(reached) < len(parameters):
        missed = ", ".join(f"'{name}'" for name in parameters if name not in reached)
        raise ConfigurationError(
            f"no derivative of the loss reaches {missed}: the network cuts the path, as h.detach() does; remove "
            "that, freeze these (requires_grad=False), or use estimator=likelihood_ratio, which needs no path."
        )
    return reached
