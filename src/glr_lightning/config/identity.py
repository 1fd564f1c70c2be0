"""The identity of what a configuration trains."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

PLACE = {"experiment", "run_dir", "resume", "trusted", "logger", "progress", "threads"}
"""Keys that say where a run is written, how it is shown, and on how many CPU threads it computes."""
REPEATED = {"activation", "preprocess", "batch_size"}
"""Keys that the sections `network` and `data` repeat where they read them."""
OBSERVERS = {"gradient_quality"}
"""Callbacks that only watch."""
PLACE_OF_DATA = {"root", "download", "cache"}
PLACE_OF_TRAINER = {"accelerator", "strategy", "deterministic", "benchmark", "profiler", "detect_anomaly"}


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that identify the trained network of a resolved configuration.

    A setting counts if another value of it may give another network, other seeds aside:

    - Every section that is built counts with all that it repeats: data, network, loss, estimator, optimizer, scheduler,
      callbacks.
    - The root keys that these sections repeat do not count once more (`REPEATED`), so a value that no section reads
      changes nothing.
    - Where the data lie and the run is written, what is logged and shown, do not count (`PLACE`, `PLACE_OF_DATA`,
      `OBSERVERS`).
    - The kind of device, the strategy and the number of threads decide where the same computation runs, and do not
      count. The number of devices does, since each draws noise of its own and the batch of a step grows with it, and
      so does the precision.

    Spelling does not count: 1 and 1.0, a list and a tuple are the same.
    """
    what = {key: value for key, value in config.items() if key not in PLACE | REPEATED}
    trainer = what.get("trainer")
    if isinstance(trainer, Mapping) and isinstance(trainer.get("devices"), list | tuple):
        what["trainer"] = {**trainer, "devices": len(trainer["devices"])}  # which ones is a matter of place
    for section, place in (("data", PLACE_OF_DATA), ("trainer", PLACE_OF_TRAINER), ("callbacks", OBSERVERS)):
        if isinstance(what.get(section), Mapping):
            what[section] = {key: value for key, value in what[section].items() if key not in place}
    return hashlib.sha256(json.dumps(_canonical(what), sort_keys=True).encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(child) for child in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
