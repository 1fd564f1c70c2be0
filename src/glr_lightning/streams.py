"""Random streams of a training step, each a function of what names it, so that a resumed run repeats them."""

import hashlib

import torch


def step_generator(seed: int, step: int, rank: int, device: torch.device, use: str = "") -> torch.Generator:
    """The generator of one use in one step of one process. use: "" for the noise of the estimators."""
    name = f"{seed}/{step}/{rank}" + (f"/{use}" if use else "")
    digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest))
