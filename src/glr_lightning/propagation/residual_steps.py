"""A residual block as steps of a chain, in which a second tensor waits.

`Fork` keeps what the block was given, `Swap` turns to it for the modules of the shortcut, `Merge` adds the two. What
travels along a chain is a `State`, so that every position of it can be a start or an end of a pass.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.probing import ModuleFacts

State = tuple[Tensor, ...]
"""The present tensor, and behind it those that wait for the end of a residual block, the innermost first."""


class Step(nn.Module, ABC):
    """A step of a residual block; it acts on the state, not on a tensor."""

    facts = ModuleFacts()

    @abstractmethod
    def step(self, state: State) -> State:
        """Return the state after this step."""


class Fork(Step):
    """Enter a block: its input waits."""

    def step(self, state: State) -> State:
        """The input becomes a waiting tensor as well."""
        return (state[0], *state)


class Swap(Step):
    """Turn from the body to the shortcut."""

    def step(self, state: State) -> State:
        """The shortcut works on what waited; the body's output waits."""
        return (state[1], state[0], *state[2:])


class Merge(Step):
    """Leave a block: add body and shortcut. One that has no noise yet is common to all copies (Law 5)."""

    def step(self, state: State) -> State:
        """Add the two. Raises ConfigurationError if their shapes differ."""
        a, b = state[:2]
        if a.shape[1:] != b.shape[1:]:
            raise ConfigurationError(
                f"a residual block adds tensors of one shape, got {list(a.shape[1:])} and {list(b.shape[1:])} of a "
                "sample; give it a shortcut whose output is shaped like the body's, such as a 1 x 1 convolution."
            )
        return (plus(a, b), *state[2:])


def plus(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b, copy-major, where the rows of one may be common to all copies in the other."""
    few, many = sorted((a, b), key=len)
    total: Tensor = many.unflatten(0, (-1, len(few))) + few
    return total.flatten(0, 1)
