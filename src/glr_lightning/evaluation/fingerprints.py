"""What a result depends on, as short hashes: equal ones need not be computed again, and can be compared."""

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_hash(network: nn.Module) -> str:
    """The hash of a network's weights, shapes and modules."""
    state = network.state_dict()
    values = (state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for name in state)
    return hash_of(repr(network).encode(), json.dumps(list(state)).encode(), *values)


def identity_of(function: Any) -> str:
    """Of a threat function: a name or a hash; of an object that has neither (functools.partial), all that it shows."""
    named = f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)
    return str(getattr(function, "identity", named))


def hash_of(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:12]
