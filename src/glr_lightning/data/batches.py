"""Batches: samplers that yield index tensors of whole batches, and a data set that gathers each at once."""

from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from glr_lightning.errors import ConfigurationError

GATHERED = 2**20
"""Bytes of images that are gathered at a time, unless one batch has more: they stay in a processor's cache."""


@final
class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels; an item is a whole batch, not one image.

    Args:
        images: [N, C, H, W] uint8. They are not copied, so that they may be mapped from a file larger than memory.
        labels: [N] int64.
        rows: [n] int64, the images that belong to the set; None: all.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.images if self.rows is None else self.rows)

    @property
    def device(self) -> torch.device:
        """Where images and labels are, and index tensors have to be."""
        return self.images.device

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [batch, C, H, W] and labels [batch] for an index tensor [batch] int64."""
        # index_select: the same as images[index], several times as fast
        rows = index if self.rows is None else self.rows.index_select(0, index)
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


@final
class InOrder(SequentialSampler):
    """Index tensors [batch] from first to last.

    It is a SequentialSampler so that Lightning sees that nothing is shuffled, and keeps it under `overfit_batches`.
    """

    data_source: ImageSet

    def __init__(self, data: ImageSet, batch_size: int) -> None:
        super().__init__(data)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.data_source) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        index = torch.arange(len(self.data_source), device=self.data_source.device)
        yield from torch.split(index, self.batch_size)


@final
class Shuffled(Sampler[Tensor]):
    """Index tensors of one epoch's training batches: a pure function of (seed, epoch, rank, world_size).

    Each epoch is one permutation, cut into batches of `batch_size`; the last one may be smaller. Each of the
    `world_size` processes takes an equal share of every batch, so the mean over processes of their mean gradients is
    the mean over the batch, and the batches do not depend on the number of processes. To keep the shares equal, the
    last batch is filled up with at most `world_size - 1` images from the start of the permutation.

    The permutation is drawn on the CPU and brought to `device` once an epoch.

    Raises:
        ConfigurationError: if `batch_size` is not a multiple of `world_size`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ConfigurationError(
                f"batch_size={batch_size} cannot be shared equally by {world_size} processes. "
                f"Choose a multiple of {world_size}, or another number of devices.",
                option="data.batch_size",
            )
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.epoch = 0
        self._taken = 0  # batches taken of the present epoch
        self._resumed: int | None = None  # batches per epoch of the run to resume at the next iteration

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; Lightning calls this before every epoch."""
        if epoch != self.epoch:
            self.epoch, self._taken = epoch, 0

    def __iter__(self) -> Iterator[Tensor]:
        # A generator, so that nothing is read before the first batch: on resuming, Lightning asks for the iterator
        # first and calls set_epoch afterwards.
        for index in self.begin():
            self.take()
            yield index

    def begin(self) -> tuple[Tensor, ...]:
        """Begin an iteration, and return the index tensors of the batches that are left of the epoch."""
        self._taken = self._start()
        return self._shares()[self._taken :]

    def take(self) -> None:
        """Count a batch as taken."""
        self._taken += 1

    def _shares(self) -> tuple[Tensor, ...]:
        """Return this process's part of every batch of the epoch, each [batch_size / world_size] int64."""
        entropy = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(int(entropy[0])))
        if missing := -self.size % self.world_size:
            order = order[torch.arange(self.size + missing) % self.size]
        share = order[self.rank :: self.world_size].to(self.device)
        return torch.split(share, self.batch_size // self.world_size)

    def state_dict(self) -> dict[str, int]:
        """Return the place in the epoch, for a checkpoint written in the middle of one."""
        return {"epoch": self.epoch, "taken": self._taken, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that place in the next iteration, unless another epoch is chosen first."""
        self.epoch, self._taken, self._resumed = state["epoch"], state["taken"], state["batches"]

    def _start(self) -> int:
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return 0
        if self._taken and resumed != len(self):
            raise ConfigurationError(
                f"The checkpoint was written after batch {self._taken} of {resumed} of epoch {self.epoch}, but now an "
                f"epoch has {len(self)} batches. Resume with the batch_size and data.validation of that run, or "
                "from a checkpoint written at the end of an epoch."
            )
        return self._taken


class _Loader(DataLoader[tuple[Tensor, Tensor]]):
    """Batches of images [batch, C, H, W] uint8 and labels [batch] int64, gathered in this process."""

    dataset: ImageSet

    def __init__(self, data: ImageSet, sampler: Sampler[Any]) -> None:
        # batch_size=None: the sampler yields whole batches
        super().__init__(data, batch_size=None, sampler=sampler, num_workers=0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # DataLoader's own has workers
        """Yield the batches. DataLoader's iterator would cost a third as much as a small network's step."""
        return map(self.dataset.__getitem__, self.sampler)


@final
class OrderedLoader(_Loader):
    """The same batches in the same order, every time."""

    def __init__(self, data: ImageSet, batch_size: int) -> None:
        super().__init__(data, InOrder(data, batch_size))


@final
class ShuffledLoader(_Loader):
    """Training batches; the state is kept in checkpoints, so that a run resumes in the middle of an epoch."""

    def __init__(self, data: ImageSet, shuffled: Shuffled) -> None:
        super().__init__(data, shuffled)
        self.shuffled = shuffled

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # as above
        """Yield the batches, gathered several at a time: a step then waits for no gathering of its own."""
        indices = self.shuffled.begin()
        pixels = self.dataset.images[0].numel() * len(indices[0]) if indices else 1
        for start in range(0, len(indices), together := max(1, GATHERED // pixels)):
            part = indices[start : start + together]
            images, labels = self.dataset[torch.cat(part)]
            sizes = [len(index) for index in part]
            for batch in zip(images.split(sizes), labels.split(sizes), strict=True):
                self.shuffled.take()
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the state of the sampler, see `Shuffled`."""
        return self.shuffled.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the state of the sampler."""
        self.shuffled.load_state_dict(state)
