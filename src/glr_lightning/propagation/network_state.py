"""What the trace of a network depends on, and a guard that leaves a network as it was while it is traced."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError

State = list[tuple[Any, Any]]
"""What a graph depends on: modules with their train mode, parameters with whether they are trained, and the numbers,
words and tensors that the modules of one's own hold as attributes."""


def state_of(network: nn.Module) -> State:
    """Return what a graph depends on; no reference to the network itself, which would keep it alive."""
    state: State = [(None if module is network else module, module.training) for module in network.modules()]
    state += [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    for module in network.modules():
        if module._modules and not type(module).__module__.startswith("torch."):  # its own code is traced
            for name, value in vars(module).items():
                if isinstance(value, bool | int | float | str):
                    state.append((None, (name, value)))
                elif isinstance(value, Tensor):
                    state.append((value, name))
    return state


def is_same(a: State, b: State) -> bool:
    """Whether a network is as it was when it was traced."""
    return len(a) == len(b) and all(p is q and f == g for (p, f), (q, g) in zip(a, b, strict=True))


@contextlib.contextmanager
def unchanged(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Leave the network's attributes and the random generators as they were.

    Yields:
        afterwards, the tensors that the network made by itself, without its input, by the names the tracer gave them.

    Raises:
        ConfigurationError: the network wrote a buffer, or drew random numbers, which would be the same in every pass.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in network.modules()]
    states = torch.get_rng_state(), random.getstate()
    made: dict[str, Any] = {}
    try:
        yield made
        drew = not torch.equal(states[0], torch.get_rng_state()) or states[1] != random.getstate()
    finally:
        made.update({name: value for name, value in vars(network).items() if name not in before[0][1]})
        written = [name for module, _, own in before for name in own if module._buffers[name] is not own[name]]
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.update(buffers)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
    if written:
        raise ConfigurationError(
            f"{type(network).__name__} writes its buffer '{written[0]}' in its forward pass, and a pass with noise "
            "would write it for every copy; update it outside forward.",
            option="network",
        )
    if drew:
        raise ConfigurationError(
            f"{type(network).__name__}.forward draws random numbers of its own, which would be the same in every pass; "
            "remove that: the injected noise already regularises.",
            option="network",
        )
