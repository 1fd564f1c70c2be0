"""A data set as Lightning's Trainer takes it."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from glr_lightning.data import ImageDataModule
from glr_lightning.data.base import scaled
from glr_lightning.data.batches import ImageSet, OrderedLoader, Shuffled, ShuffledLoader
from glr_lightning.data.resident import Resident
from glr_lightning.randomness import step_generator


class LightningImages(pl.LightningDataModule):
    """Hands a data set to a Trainer: batches on its device, scaled and for training augmented.

    The images are copied once to the Trainer's accelerator, where batches are then gathered, if they have at most 2 GiB
    and its memory holds them. Otherwise each batch is copied.

    With several processes each takes an equal share of every training batch, and every process evaluates all validation
    and test images, so that no image counts twice. Use `Trainer(use_distributed_sampler=False)`.

    Args:
        data: the data set.
    """

    def __init__(self, data: ImageDataModule) -> None:
        super().__init__()
        self.data = data
        self._resident = Resident()

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Read what a stage needs, once."""
        self.data.setup(stage)

    def train_dataloader(self) -> ShuffledLoader | OrderedLoader:
        """Return this process's share of the training batches, in an order that follows from (seed, epoch)."""
        data, trainer, size = self._on_device(self.data.part("train")), self.trainer, self.data.batch_size
        # the same few batches every epoch
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]  # Lightning sets it
            return OrderedLoader(data, size)
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return ShuffledLoader(data, Shuffled(len(data), size, self.data.seed, rank, world_size, data.device))

    def val_dataloader(self) -> OrderedLoader | list[Any]:
        """Return the validation images in order; no loader if none are held out."""
        return self.data.in_order(self._on_device(self.data.part("val"))) if self.data.validation else []

    def test_dataloader(self) -> OrderedLoader:
        """Return the test images in order."""
        return self.data.in_order(self._on_device(self.data.part("test")))

    def transfer_batch_to_device(
        self, batch: tuple[Tensor, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Copy a batch that is not there yet; Lightning's own looks for tensors in whatever a batch may be."""
        images, labels = batch
        return images.to(device), labels.to(device)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Scale uint8 pixels to float32 in [0, 1] on the batch's device.

        Training batches are augmented first; what is drawn follows from (seed, global step, rank).
        """
        images, labels = batch
        data, trainer = self.data, self.trainer
        if data.augmentation and trainer is not None and trainer.training:
            place = trainer.global_step, trainer.global_rank, images.device
            images = data.augmentation(images, generator=step_generator(data.seed, *place, use="augmentation"))
        return (scaled(images) if images.dtype == torch.uint8 else images), labels

    def teardown(self, stage: str) -> None:
        """Drop the copy on the Trainer's device."""
        self._resident = Resident()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without that copy."""
        return self.__dict__ | {"_resident": Resident()}

    def _on_device(self, data: ImageSet) -> ImageSet:
        return data if self.trainer is None else self._resident.on(self.trainer.strategy.root_device, data)
