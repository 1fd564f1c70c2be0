"""What a result depends on, as short hashes: equal ones need not be computed again, and can be compared."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from glr_lightning import __version__
from glr_lightning.evaluation.attempts import Attempt
from glr_lightning.evaluation.hashes import hash_of, weights_hash
from glr_lightning.evaluation.inputs import Inputs


def row_fingerprint(inputs: Inputs, attempt: Attempt, surrogate: nn.Module | None) -> str:
    """The hash of all that an attempt's row depends on, its names included: two presets may share a level."""
    names = [attempt.name, attempt.threat.preset, attempt.surrogate]
    return fingerprint_with(inputs, {"attack": attack_fingerprint(inputs, attempt, surrogate), "names": names})


def attack_fingerprint(inputs: Inputs, attempt: Attempt, surrogate: nn.Module | None) -> str:
    """The hash of all that the images of a transfer attack depend on; the tested network is no part of it."""
    threat = attempt.threat
    parts = {
        "version": __version__,
        "images": inputs.images_hash,
        "seed": inputs.seed,
        "threat": _name_of(threat.function),
        "kind": [threat.kind, threat.norm, threat.targeted],
        "level": [attempt.level, dict(attempt.parameters)],
        "gradient": [attempt.gradient_source, asdict(threat.options)],
        "surrogate": None if surrogate is None else weights_hash(surrogate),
    }
    return hash_of(json.dumps(parts, sort_keys=True, default=str).encode())


def fingerprint_with(inputs: Inputs, parts: Mapping[str, Any]) -> str:
    """The hash of inputs together with what else a row depends on, plain values by name."""
    sigma = [s.tolist() if isinstance(s, Tensor) else s for s in getattr(inputs.network, "sigma", ())]
    shared = {
        "version": __version__,
        "weights": inputs.network_hash,
        "images": inputs.images_hash,
        "seed": inputs.seed,
        "noise": [inputs.noisy_passes, repr(getattr(inputs.network, "noise", None)), sigma],
    }
    return hash_of(json.dumps(shared | dict(parts), sort_keys=True, default=str).encode())


def _name_of(function: Callable[..., Tensor]) -> str:
    """The name of a function, or the hash that an object bears; of another object (functools.partial) its repr."""
    named = f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)
    return str(getattr(function, "identity", named))
