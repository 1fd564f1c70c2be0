"""Stochastic gradient descent with momentum, as torch has it, without torch's compiler."""

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor

OPTIONS = ("lr", "momentum", "weight_decay")


@final
class Momentum:
    """The steps of torch.optim.SGD, to the bit.

    An optimizer of torch.optim imports torch's compiler at its first step, which takes as long as three epochs of a
    small network on MNIST.

    Args:
        parameters: what is trained.
        lr: the learning rate, constant.
        momentum: the share of the last step that the next one has.
        weight_decay: what is added to a gradient, times the parameter.
    """

    def __init__(self, parameters: list[Tensor], *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        self._parameters = parameters
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._velocities = [torch.zeros_like(parameter) for parameter in parameters]

    @classmethod
    def of(cls, optimizer: Mapping[str, Any], scheduler: Any, parameters: list[Tensor]) -> Self | None:
        """Return the optimizer of a configuration's sections, or None if it has other options or another rate."""
        options = {key: value for key, value in optimizer.items() if not key.startswith("_")}
        known = all(key in OPTIONS and isinstance(value, int | float) and value >= 0 for key, value in options.items())
        constant = scheduler is None or (
            scheduler.get("_target_") == "torch.optim.lr_scheduler.ConstantLR" and scheduler.get("factor") == 1.0
        )
        if optimizer.get("_target_") != "torch.optim.SGD" or "lr" not in options or not (known and constant):
            return None
        return cls(parameters, **options)

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """Take a step down the gradients, in the order of the parameters."""
        if self._weight_decay:
            gradients = list(torch._foreach_add(gradients, self._parameters, alpha=self._weight_decay))
        torch._foreach_mul_(self._velocities, self._momentum)
        torch._foreach_add_(self._velocities, gradients)
        torch._foreach_add_(self._parameters, self._velocities, alpha=-self._lr)
