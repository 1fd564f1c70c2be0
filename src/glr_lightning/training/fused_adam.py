"""Steps of torch.optim.Adam on a CPU, without what torch does around its kernel at every step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim import optimizer as hooks

_Lists = tuple[list[Tensor], ...]


def stepping(optimizer: Optimizer) -> Callable[[], Any]:
    """Return what takes an optimizer's steps: its own `step`, or the same step to the bit in half the time.

    That is where the optimizer is a fused Adam on a CPU, in its plain form, and nobody has put hooks on it or replaced
    its `step`. Its options are read at every step, its state is the optimizer's own. Without all gradients, as before
    there is a state, the optimizer steps itself.

    Args:
        optimizer: with all its parameters and hooks; a learning rate's scheduler may have wrapped its `step`.
    """
    return _FusedAdam(optimizer) if _is_plain(optimizer) else optimizer.step


def _is_plain(optimizer: Any) -> bool:
    """Whether its step is one call of the kernel for each group, and nobody watches."""
    own = vars(optimizer).get("step")
    if type(optimizer) is not Adam or not (own is None or hasattr(own, "_wrapped_by_lr_sched")):
        return False
    special = ("amsgrad", "capturable", "differentiable", "decoupled_weight_decay")
    return not any(_hooks(optimizer)) and all(
        group["fused"]
        and not any(group[option] for option in special)
        and all(isinstance(value, float) for value in (group["lr"], *group["betas"]))
        and {(p.device.type, p.dtype) for p in group["params"]} in ({("cpu", torch.float32)}, {("cpu", torch.float64)})
        for group in optimizer.param_groups
    )


def _hooks(optimizer: Any) -> list[Any]:
    """All that may be called before or after its steps."""
    own = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    return [*own, hooks._global_optimizer_pre_hooks, hooks._global_optimizer_post_hooks]


class _FusedAdam:
    """The steps of one plain fused Adam."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer, self._hooks = optimizer, _hooks(optimizer)
        self._groups: list[tuple[dict[str, Any], _Lists]] | None = None
        self._first: Any = None  # the state of the first parameter, whose replacement replaces all

    @torch.no_grad()
    def __call__(self) -> None:
        optimizer = self._optimizer
        groups = optimizer.param_groups
        first = optimizer.state.get(groups[0]["params"][0])
        known = self._groups is not None and first is self._first and len(groups) == len(self._groups)
        if self._groups is None or not known or any(self._hooks):
            optimizer.step()
            self._look_up()
            return
        gradients = [[p.grad for p in group["params"]] for group, _ in self._groups]
        if any(gradient is None for each in gradients for gradient in each):
            optimizer.step()
            return
        optimizer._opt_called = True  # what a scheduler asks for
        for (group, (averages, squares, steps)), each in zip(self._groups, gradients, strict=True):
            torch._foreach_add_(steps, 1)
            beta1, beta2 = group["betas"]
            torch._fused_adam_(
                group["params"],
                each,
                averages,
                squares,
                [],
                steps,
                amsgrad=False,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )

    def _look_up(self) -> None:
        """Look up the state of all parameters, unless some have none yet."""
        groups, state = self._optimizer.param_groups, self._optimizer.state
        self._groups = None
        if all(state.get(p) for group in groups for p in group["params"]):
            names = ("exp_avg", "exp_avg_sq", "step")
            self._groups = [
                (group, tuple([state[p][name] for p in group["params"]] for name in names)) for group in groups
            ]
            self._first = state[groups[0]["params"][0]]
