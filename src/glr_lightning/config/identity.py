"""The identity of what a configuration trains."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

PLACE = {"experiment", "run_dir", "resume", "trusted", "logger", "progress", "threads"}
"""Keys that say where a run is written, how it is shown, and on how many CPU threads it computes."""
REPEATED = {"activation", "preprocess", "batch_size"}
"""Keys that the sections `network` and `data` repeat where they read them."""
OBSERVERS = {"glr_lightning.training.callbacks.GradientQuality"}
"""Callbacks that only watch, by `_target_`: a name is the user's to choose."""
NUMBERS = ("glr_lightning.", "torch.")
"""Where 1 and 1.0 are one number. For an option of Lightning's, 1 may be a count and 1.0 a share."""
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

    Spelling does not count: a list and a tuple are the same, and so are 1 and 1.0 but for what neither this package nor
    torch builds (`NUMBERS`).
    """
    what = {key: value for key, value in config.items() if key not in PLACE | REPEATED}
    for section, place in (("data", PLACE_OF_DATA), ("trainer", PLACE_OF_TRAINER)):
        if isinstance(what.get(section), Mapping):
            what[section] = {key: value for key, value in what[section].items() if key not in place}
    if isinstance(what.get("data"), Mapping) and not what["data"].get("validation"):
        what["data"].pop("split_seed", None)  # it chooses which images are held out, and none are
    if isinstance(what.get("trainer"), Mapping):
        what["trainer"] = _trainer(what["trainer"])
    if isinstance(what.get("callbacks"), Mapping):
        what["callbacks"] = {name: node for name, node in what["callbacks"].items() if not _observes(node)}
    return hashlib.sha256(json.dumps(_canonical(what), sort_keys=True).encode()).hexdigest()[:12]


def _trainer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning's options, without those that are not set."""
    own = {key: value for key, value in options.items() if value is not None}
    if isinstance(own.get("devices"), list | tuple):
        own["devices"] = len(own["devices"])  # which ones is a matter of place
    share = own.get("limit_train_batches")
    if isinstance(share, float) and share == 1.0:
        del own["limit_train_batches"]  # all of them, where 1 is a single batch
    return own


def _observes(node: Any) -> bool:
    return isinstance(node, Mapping) and node.get("_target_") in OBSERVERS


def _canonical(value: Any, numbers: bool = True) -> Any:
    if isinstance(value, Mapping):
        numbers = str(value.get("_target_", NUMBERS[0])).startswith(NUMBERS) and numbers
        return {str(key): _canonical(child, numbers) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(child, numbers) for child in value]
    if numbers and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
