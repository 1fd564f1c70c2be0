"""Building: how a plain configuration becomes objects.

A configuration that comes from a run folder is data, not code: `build` instantiates only what this package and
torch define, so a crafted config.yaml cannot name a function to run.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml

from glr_lightning.errors import ConfigurationError, GLRError, words_of
from glr_lightning.validation import Count, NonNegative, checked_arguments
from glr_lightning.validation.words import describe, shown

_OWN = ["activations", "baselines", "data", "estimators", "injection", "losses", "networks", "noise", "sampling"]
_OWN += ["schedules", "training.callbacks"]
TRUSTED = (*(f"glr_lightning.{family}." for family in _OWN), "torch.nn.modules.", "torch.optim.")
"""Modules whose classes, and for networks functions, a configuration read from a run folder may call."""


def trusted_prefixes(packages: Sequence[str]) -> tuple[str, ...]:
    """TRUSTED, and the prefixes of the names in some packages: "mine." of "mine"."""
    return tuple(dict.fromkeys([*TRUSTED, *(f"{package.removesuffix('.')}." for package in packages)]))


RANGES: dict[str, dict[str, Any]] = {
    "pytorch_lightning.loggers.": {"flush_logs_every_n_steps": Count},
    "torch.optim.lr_scheduler.": {"T_max": Count, "step_size": Count, "total_iters": Count, "gamma": NonNegative},
    "torch.optim.": {"lr": NonNegative, "weight_decay": NonNegative, "momentum": NonNegative},
}
"""Ranges of options of torch and Lightning that their type hints do not state, checked here before a run starts."""


def build(
    node: Any, *, where: str = "", trusted: Sequence[str] | None = TRUSTED, kind: type = object, **keywords: Any
) -> Any:
    """Instantiate a plain configuration node: a mapping with a `_target_` is a call, or a partial with `_partial_`.

    Every argument is checked against the hints of its target before the call (see `glr_lightning.validation`).

    Args:
        node: a mapping with a `_target_`, nested ones included.
        where: the dotted path of the node in the configuration, which errors name.
        trusted: prefixes of the names that may be called; None allows all (a configuration the user just composed).
        kind: the class that the result must be an instance of.
        keywords: further arguments for the outermost target.

    Raises:
        ConfigurationError: a target outside `trusted`, an argument that its target does not take or accept, what the
            target itself refuses, or a result of another kind.
    """
    if trusted is not None:
        _require_trusted(node, tuple(trusted))
    built = _built(node, where, keywords)
    if not isinstance(built, kind):
        raise ConfigurationError(
            f"{where} must be {describe(kind)}, which {shown(built)} is not; choose another {where}, or a _target_ "
            "that makes one.",
            option=where or None,
        )
    return built


def target_of(node: Mapping[str, Any], trusted: Sequence[str] | None = TRUSTED) -> Any:
    """The class or function that a node's `_target_` names, not called. Raises ConfigurationError as `build`."""
    name = str(node["_target_"])
    if trusted is not None:
        _require_trusted({"_target_": name}, tuple(trusted))
    return _found(name)


def known_target(node: Any) -> Any:
    """The class or function of this package or torch that a node calls, or None, as of another version's."""
    return _known(str(node["_target_"])) if isinstance(node, Mapping) and "_target_" in node else None


@functools.cache
def _known(name: str) -> Any:
    try:
        return trusted_target(name, TRUSTED)
    except ConfigurationError:
        return None


def _built(node: Any, where: str, keywords: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_built(child, f"{where}[{number}]", {}) for number, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    built = {key: _built(child, f"{where}.{key}" if where else str(key), {}) for key, child in node.items()}
    if "_target_" not in built:
        return built
    options = {str(key): value for key, value in built.items()}
    _require_free(options, keywords, where)
    name, partial = str(options.pop("_target_")), options.pop("_partial_", False)
    target = _found(name, where)
    if not callable(target):
        raise ConfigurationError(
            f"_target_ {name!r} is no class or function; {where or name} has to name one.", option=where or None
        )
    if not isinstance(partial, bool):
        raise ConfigurationError(
            f"{where or name}: _partial_ must be true or false, got {partial!r}.", option=where or None
        )
    ranges = next((ranges for module, ranges in RANGES.items() if name.startswith(module)), {})
    arguments = checked_arguments(target, options | keywords, where, hints=ranges, complete=not partial)
    if partial:
        return functools.partial(target, **arguments)
    try:
        return target(**arguments)
    except ConfigurationError as error:
        if error.option is not None and where and not error.option.startswith(f"{where}."):
            error.option = f"{where}.{error.option}"
        raise
    except GLRError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"{where or name} is refused by {name}: {words_of(error)}", option=where or None
        ) from error


def _require_free(options: Mapping[str, Any], keywords: Mapping[str, Any], where: str) -> None:
    """Refuse an option that is worked out from others: its value would have no effect."""
    for name in options.keys() & keywords.keys():
        option = f"{where}.{name}" if where else name
        raise ConfigurationError(
            f"{option} cannot be set: it follows from the rest of the configuration; leave it out.", option=option
        )


def _require_trusted(node: Any, trusted: tuple[str, ...]) -> None:
    """Refuse a node that would call anything but a trusted target, or that Hydra would interpolate."""
    if isinstance(node, str) and "${" in node:
        raise ConfigurationError(f"{node!r} is refused: a run's configuration is resolved and holds no interpolation.")
    if isinstance(node, list):
        for child in node:
            _require_trusted(child, trusted)
    if isinstance(node, dict):
        for key, child in node.items():
            _require_trusted(key, trusted)
            _require_trusted(child, trusted)
            if str(key).startswith("_") and key not in {"_target_", "_partial_"}:
                raise ConfigurationError(f"{key!r} is refused in a run's configuration.")
        if "_target_" in node and trusted_target(str(node["_target_"]), trusted) is None:
            raise ConfigurationError(
                f"_target_ {node['_target_']!r} is refused: a run's configuration may only name this package's and "
                "torch's own building blocks. If you trust it, add its package with trusted=[PACKAGE]."
            )


def _found(target: str, where: str = "") -> Any:
    """Return the object that the `_target_` of an option names. Raises ConfigurationError if it cannot be imported."""
    try:
        return hydra.utils.get_object(target)
    except Exception as error:
        raise ConfigurationError(
            f"_target_ {target!r} does not exist: {words_of(error)}", option=where or None
        ) from error


def trusted_target(name: str, trusted: tuple[str, ...]) -> Any:
    """Return the class or function that a `_target_` names, or None unless a trusted module defines it.

    A module's imports are not its own, so the object is asked for its module.
    """
    packages = tuple({f"{prefix.split('.')[0]}." for prefix in trusted})
    if not name.startswith(packages):  # do not even import it
        return None
    found = _found(name)
    home = f"{getattr(found, '__module__', '')}."
    kind = isinstance(found, type) or home.startswith("glr_lightning.networks.") or not home.startswith(TRUSTED)
    return found if kind and home.startswith(trusted) else None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a resolved configuration; nothing in it is interpolated or run.

    Raises:
        ConfigurationError: not there, not YAML, or not a mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no {path}; name a run folder that glr-train left: it holds {path.name}."
        ) from None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} does not hold a mapping; it is damaged.")
    return config
