"""The machine that a run is on: its devices, its threads, the versions of what computes there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glr_lightning.errors import ConfigurationError

PACKAGES = ("glr-lightning", "torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy")
"""Packages whose versions are written into results."""


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Set the number of CPU threads of torch within the block; None leaves it as it is."""
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_device(name: str) -> torch.device:
    """auto, cpu, gpu, or a device of torch. Raises ConfigurationError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device="cuda" if name == "gpu" else name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device={name} cannot be used: {str(error).splitlines()[0]}; use device=cpu.", option="device"
        ) from None
