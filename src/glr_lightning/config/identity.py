"""The identity of what a configuration trains."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from glr_lightning.config.building import build, known_target
from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import Parameter, parameters

PLACE = {"experiment", "run_dir", "resume", "trusted", "logger", "progress", "threads", "compile"}
"""Keys that say where a run is written, how it is shown, on how many CPU threads it computes and whether compiled."""
REPEATED = {"activation", "preprocess", "batch_size"}
"""Keys that the sections `network` and `data` repeat where they read them."""
PLACE_OF = {
    "data": {"root", "download", "cache"},
    "optimizer": {"foreach", "fused", "capturable", "differentiable"},
    "trainer": {"accelerator", "strategy", "deterministic", "benchmark", "profiler", "detect_anomaly"}
    | {"enable_autolog_hparams", "model_registry"},
}
"""By section, the options that say where and how fast the same is computed, and what is noted of it."""
NUMBERS = ("glr_lightning.", "torch.")
"""Where 1 and 1.0 are one number. For an option of Lightning's, 1 may be a count and 1.0 a share."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that identify the trained network of a resolved configuration.

    A setting counts if another value of it may give another network, other seeds aside:

    - Every section that is built counts with all that it repeats: data, network, loss, estimator, optimizer, scheduler,
      callbacks. The root keys that these sections repeat do not count once more (`REPEATED`), so a value that no
      section reads changes nothing.
    - Where the data lie and the run is written, what is logged and shown, do not count (`PLACE`, `PLACE_OF`).
    - Of Lightning's Trainer only what changes the numbers counts: how many devices there are on all nodes, since each
      draws noise of its own; with several, whether they normalise batches together; the precision; the share of the
      batches; plugins. The kind of device, the strategy, other bits of the same algorithm and speed do not count, nor
      do profiles, checks and bookkeeping. An option that is not known counts.
    - An estimator's `chunk` counts by the parts into which it splits the copies, unless they may change from epoch to
      epoch. That it is left out counts: the parts are then chosen by the size of the network and of each batch.
    - A callback counts unless it declares that it changes nothing with its options (`changes_training`); its name
      never does, since it is the user's to choose.

    What this package and torch build is compared by what it computes (`TRUSTED`): an option at its default is as good
    as left out; one that its declaration says is not read (`ReadIf`) does not count; a list that repeats one value is
    that value, where one stands for all layers.

    Spelling does not count: a list and a tuple are the same, and so are 1 and 1.0 but for what neither this package nor
    torch builds (`NUMBERS`).
    """
    what = {key: value for key, value in config.items() if key not in PLACE | REPEATED}
    for section, place in PLACE_OF.items():
        if isinstance(what.get(section), Mapping):
            what[section] = {key: value for key, value in what[section].items() if key not in place}
    if isinstance(what.get("trainer"), Mapping):
        what["trainer"] = _trainer(what["trainer"])
    if isinstance(what.get("estimator"), Mapping) and what["estimator"].get("chunk") is not None:
        what["estimator"] = _split(what["estimator"], what.get("callbacks") or {})
    if isinstance(what.get("callbacks"), Mapping):
        what["callbacks"] = _callbacks(list(what["callbacks"].values()))
    return hashlib.sha256(_text(_canonical(what)).encode()).hexdigest()[:12]


def experiment_hash(config: Mapping[str, Any]) -> str:
    """Return the identity of an experiment: `config_hash` of a configuration without its seeds."""
    what = {key: value for key, value in config.items() if key != "seed"}
    if isinstance(what.get("data"), Mapping):
        what["data"] = {key: value for key, value in what["data"].items() if key != "seed"}
    return config_hash(what)


def _trainer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning's options, without those that are not set or have no effect."""
    own = {key: value for key, value in options.items() if value is not None}
    devices, nodes = own.pop("devices", 1), own.pop("num_nodes", 1)
    devices = len(devices) if isinstance(devices, list | tuple) else devices  # which ones is a matter of place
    both = type(devices) is int and type(nodes) is int
    own["devices"] = devices * nodes if both else [devices, nodes]
    if own["devices"] == 1 or own.get("sync_batchnorm") is False:
        own.pop("sync_batchnorm", None)
    if own.get("precision") == "32-true":
        del own["precision"]
    share = own.get("limit_train_batches")
    if isinstance(share, float) and share == 1.0:
        del own["limit_train_batches"]  # all of them, where 1 is a single batch
    return own


def _split(node: Mapping[str, Any], callbacks: Mapping[str, Any]) -> Mapping[str, Any]:
    """An estimator with the parts of its copies, if it knows them and they stay, in place of `chunk`."""
    changing = [each for each in callbacks.values() if known_target(each) is None or each.get("copies") is not None]
    if changing or not hasattr(known_target(node), "parts"):
        return node
    try:
        estimator = build(node)
    except ConfigurationError:  # it names a class that is not trusted, or cannot work
        return node
    counts = estimator.copies if isinstance(estimator.copies, tuple) else (estimator.copies,)
    parts = {copies: estimator.parts(copies, estimator.chunk) for copies in counts}
    return {**node, "chunk": [parts[copies] for copies in sorted(parts)]}


def _callbacks(nodes: list[Any]) -> list[Any]:
    """Those that change the training; those of this package in any order, after the others in theirs."""
    own, others = [], []
    for node in nodes:
        target = known_target(node)
        changes: Callable[[Mapping[str, Any]], bool] | None = getattr(target, "changes_training", None)
        if changes is None:
            others.append(node)
        elif changes(_with_defaults(node, parameters(target))):
            own.append(node)
    return [*others, *sorted(own, key=lambda node: _text(_canonical(node)))]


def _canonical(value: Any, numbers: bool = True) -> Any:
    if isinstance(value, Mapping):
        target = known_target(value)
        numbers = str(value.get("_target_", NUMBERS[0])).startswith(NUMBERS) and numbers
        if target is not None:
            return _what_it_reads(value, target, parameters(target))
        return {str(key): _canonical(child, numbers) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(child, numbers) for child in value]
    if numbers and isinstance(value, float) and value.is_integer():
        return int(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a default
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _what_it_reads(fields, type(value), parameters(type(value)))
    return value


def _what_it_reads(node: Mapping[str, Any], target: Any, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """A node's options in canonical form, without those that are not read or have their default."""
    options, defaults = _with_defaults(node, known), _with_defaults({}, known)
    read = {str(key): value for key, value in options.items() if key not in known}
    for name, parameter in known.items():
        is_read = name in options and all(options.get(other) for other in parameter.read_if)
        if is_read and not (name in defaults and _text(options[name]) == _text(defaults[name])):
            read[name] = options[name]
    family = ".".join(str(target.__module__).split(".")[:2])
    return read | {"_target_": f"{family}.{target.__qualname__}"}


def _with_defaults(node: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """A node's options in canonical form, and the defaults of those that it leaves out."""
    defaults = {name: each.default for name, each in known.items() if _is_value(each.default)}
    options = {key: _canonical(value) for key, value in (defaults | dict(node)).items() if key != "_target_"}
    return {key: _one_for_all(value, known[key]) if key in known else value for key, value in options.items()}


def _is_value(default: Any) -> bool:
    """Whether a default can be written in a configuration; one that is missing cannot."""
    if isinstance(default, type):
        return False
    return default is None or isinstance(default, str | int | float | tuple) or dataclasses.is_dataclass(default)


def _one_for_all(value: Any, parameter: Parameter) -> Any:
    repeats = isinstance(value, list) and value and all(_text(each) == _text(value[0]) for each in value)
    return value[0] if repeats and parameter.takes_one_for_all else value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
