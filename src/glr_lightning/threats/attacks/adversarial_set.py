"""Adversarial images that were made before: one file, many networks tested on the same samples.

What a transfer attack returns depends on its surrogate and the images alone, so it is made once. A file is an .npz of
plain arrays, never unpickled; it knows which images it was made from and is refused for others.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.randomness import ImageRandom
from glr_lightning.storage import REMOVE, damaged, read_arrays, write_arrays
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.base import Attack

FACTS: dict[str, Any] = {
    "name": str,
    "surrogate": str,
    "norm": str,
    "epsilon": (float, int, type(None)),
    "targeted": bool,
}


@final
@dataclass(frozen=True, eq=False)
class AdversarialSet:
    """images: float32 [n, C, H, W], what became of the images at positions 0 .. n - 1 of a data set.

    checksums: int64 [n], of the clean images and their labels, see `image_checksums`. zero_gradient: float32 [n], as
    in `QueryCount`. facts: the name, surrogate, norm, epsilon and targeted of the attack.

    A threat function: called with images of the data set, it looks them up.
    Raises ConfigurationError when called with images that it was not made from.
    """

    images: Tensor
    checksums: Tensor
    zero_gradient: Tensor
    facts: Mapping[str, Any]
    origin: str = "the adversarial set"

    @cached_property
    def identity(self) -> str:
        """The hash of the images."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, random: ImageRandom, **_: Any) -> Tensor:
        """Look the images up, by their positions in the data set."""
        index = random.index.cpu()
        inside = bool((index < len(self.images)).all())
        if not inside or not torch.equal(self.checksums[index], image_checksums(x, y)):
            more = f" and holds {len(self.images)} of them" if not inside else ""
            raise ConfigurationError(
                f"{self.origin} was made from other images than this run is tested on{more}; take a set that was made "
                "for this data set, or leave it out and let threat=fgsm or threat=lbfgs make one."
            )
        if isinstance(model, Query):
            model.note_first_gradient(self.zero_gradient[index].to(x.device))
        return self.images[index].to(x)


def image_checksums(x: Tensor, y: Tensor) -> Tensor:
    """An int64 for each image and its label, on the CPU: pixels' float32 bits times odd numbers, summed modulo 2^64."""
    odd = (torch.arange(1, x[:1].numel() + 1) * 0x9E3779B97F4A7C1).bitwise_or_(1)
    sums = []
    for part in x.detach().cpu().to(torch.float32).flatten(1).split(1000):  # int64 takes twice the room
        sums.append((part.contiguous().view(torch.int32).to(torch.int64) * odd).sum(1))
    return torch.cat(sums) * 31 + y.cpu()


def save_set(path: Path, adversarial: AdversarialSet) -> None:
    """Write a set, whole or not at all."""
    tensors = {key: getattr(adversarial, key) for key in ("images", "checksums", "zero_gradient")}
    arrays = {key: value.cpu().numpy() for key, value in tensors.items()}
    write_arrays(path, arrays | {"facts": np.frombuffer(json.dumps(dict(adversarial.facts)).encode(), np.uint8)})


def load_set(path: Path) -> AdversarialSet:
    """Read a set. Raises CheckpointError if it is not there, damaged, or something else."""
    arrays = read_arrays(path)
    types = {
        "images": ("float32", 4),
        "checksums": ("int64", 1),
        "zero_gradient": ("float32", 1),
        "facts": ("uint8", 1),
    }
    if {key: (array.dtype.name, array.ndim) for key, array in arrays.items()} != types:
        raise damaged(path, "it is no adversarial set")
    images, checksums, zero = (torch.from_numpy(arrays[key]) for key in ("images", "checksums", "zero_gradient"))
    try:
        facts = json.loads(arrays["facts"].tobytes().decode())
        valid = all(isinstance(facts[key], kind) for key, kind in FACTS.items())
        valid &= facts["epsilon"] is None or 0 < facts["epsilon"] < math.inf
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid or not len(images) == len(checksums) == len(zero):
        raise damaged(path, "its parts do not fit each other")
    return AdversarialSet(images, checksums, zero, facts, origin=f"the adversarial set {path}")


def adversarial_set(path: str) -> Attack:
    """The threat of a saved set; `glr-evaluate` leaves them in the folders of the surrogates.

    Raises CheckpointError if it cannot be read.
    """
    try:
        made = load_set(Path(path).expanduser())
    except CheckpointError as error:
        why = str(error).removesuffix(REMOVE)  # it may be anything, and nobody should remove it
        raise CheckpointError(f"{why} Name a file that glr-evaluate left in SURROGATE/adversarial.") from None
    return replayed(made)


def replayed(made: AdversarialSet) -> Attack:
    """The threat that looks the images up."""
    epsilon, norm = made.facts["epsilon"], made.facts["norm"]
    bounded = epsilon is not None and bool(norm)
    return Attack(
        function=made,
        levels=((float(epsilon), {"epsilon": float(epsilon)}) if bounded else (None, {}),),
        level_name="epsilon" if bounded else "",
        norm=norm if bounded else "",
        gradient_sources=("transfer",),
        surrogates=(made.facts["surrogate"],),
        recorded=True,
    )
