"""Estimators relative to a configuration: what a few overrides name, everything else as the configuration has it."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from glr_lightning.config import CONF_DIR, composing, load_yaml, resolve
from glr_lightning.errors import ConfigurationError
from glr_lightning.reporting.results import FOR_ESTIMATORS

REFERENCE = re.compile(r"\$\{(\w+)\}")


def keys_of(overrides: Sequence[str]) -> list[str]:
    """The keys that overrides set, such as `estimator` and `estimator.score`.

    Raises:
        ConfigurationError: not KEY=VALUE, or a key that is not the estimator's.
    """
    keys = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or key.split(".")[0] not in {"estimator", *FOR_ESTIMATORS}:
            raise ConfigurationError(
                f"an estimator is described by overrides of {', '.join(sorted({'estimator', *FOR_ESTIMATORS}))}, such "
                f"as 'estimator=likelihood_ratio sampling=antithetic estimator.score=plain'; got {override!r}."
            )
        keys.append(key)
    return keys


def estimator_node(base: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The `estimator` section that a configuration has after some overrides.

    Args:
        base: a resolved training configuration, such as that of a run. Its values are only copied, never interpolated.
        overrides: of `glr-train`, for the estimator's part of the configuration. An estimator other than the base's
            takes its own options from conf/, and its noise, sigma and so on from the base.

    Raises:
        ConfigurationError: Hydra refuses the overrides, or they are not the estimator's.
    """
    keys = keys_of(overrides)
    if "estimator" not in keys:
        overrides = [f"estimator={_option(base['estimator'])}", *overrides]
    with composing(overrides) as config:
        raw: Any = OmegaConf.to_container(config.estimator, resolve=False)
        resolved = resolve(config)["estimator"]
    touched = {key.split(".")[0] for key in keys} - {"estimator"}
    node = _filled(raw, resolved, {name: value for name, value in base.items() if name not in touched})
    own = base["estimator"]
    if own["_target_"] == node["_target_"]:
        set_here = {key.split(".")[1] for key in keys if key.startswith("estimator.")}
        kept = [key for key, value in raw.items() if key not in set_here and not _mentions(value, touched)]
        node |= {key: own[key] for key in kept if key in own}
    return node


def _filled(raw: Any, resolved: Any, base: Mapping[str, Any]) -> Any:
    """A composed node in which ${name} is the base's value, if the base has one."""
    if isinstance(raw, dict):
        return {key: _filled(value, resolved[key], base) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_filled(value, known, base) for value, known in zip(raw, resolved, strict=True)]
    match = REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
    return base[match[1]] if match and match[1] in base else resolved


def _mentions(raw: Any, names: Collection[str]) -> bool:
    return any(name in names for name in REFERENCE.findall(str(raw)))


def _option(node: Mapping[str, Any]) -> str:
    """The name in conf/estimator of what a node builds."""
    for path in sorted((Path(CONF_DIR) / "estimator").glob("*.yaml")):
        if load_yaml(path).get("_target_") == node["_target_"]:
            return path.stem
    raise ConfigurationError(f"{node['_target_']} is not in conf/estimator; name an estimator, as estimator=NAME.")
