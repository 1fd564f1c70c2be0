"""Short hashes of bytes and of networks."""

import hashlib
import json

import torch
from torch import nn


def weights_hash(network: nn.Module) -> str:
    """The hash of a network's weights, shapes and modules."""
    state = network.state_dict()
    values = (state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for name in state)
    return hash_of(repr(network).encode(), json.dumps(list(state)).encode(), *values)


def hash_of(*parts: bytes) -> str:
    """12 hex digits of the parts and of where one ends and the next begins."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:12]
