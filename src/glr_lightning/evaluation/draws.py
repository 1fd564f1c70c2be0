"""Random numbers that the levels of one threat share, drawn once."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, final

from torch import Tensor

from glr_lightning.randomness import Recall

MOST_BYTES = 2**28
"""How much is kept, 256 MiB: all of 10,000 images of MNIST, a part of larger ones."""


@final
class KeptDraws:
    """What `ImageRandom.once` computed for the batches of an evaluation, until another threat's turn comes.

    Args:
        most: bytes that are kept; what is beyond is drawn again at every level.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._known: dict[Hashable, Tensor] = {}
        self._owner: Any = None

    def keep_for(self, owner: Any) -> None:
        """Forget what was kept for another owner than this one."""
        if owner != self._owner:
            self._owner = owner
            self._known.clear()

    def of(self, batch: Hashable) -> Recall:
        """Keep and return what belongs to one batch."""
        return partial(self._recall, batch)

    def _recall(self, batch: Hashable, key: Hashable, draw: Callable[[], Tensor]) -> Tensor:
        known = self._known.get((batch, key))
        if known is None:
            known = draw()
            if sum(each.nbytes for each in self._known.values()) + known.nbytes <= self._most:
                self._known[batch, key] = known
        return known
