"""Estimators relative to a configuration: a few overrides, and everything else as the configuration has it."""

from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from glr_lightning.config import SHORT_FORMS, Groups, composing, in_one_line, long_forms, resolve
from glr_lightning.errors import ConfigurationError

SHARED = tuple(short for short, long in SHORT_FORMS.items() if long.startswith("estimator"))
"""Settings that mean the same to all estimators, but for `sigma` (see `_same_units`)."""


def keys_of(overrides: Sequence[str]) -> list[str]:
    """Return the names that overrides set, written out: `estimator`, `estimator/noise`, `estimator.score`.

    Raises:
        ConfigurationError: not KEY=VALUE, or a key that is not the estimator's.
    """
    keys = []
    for override in long_forms(overrides):
        key, equals, _ = override.partition("=")
        if not equals or key.replace("/", ".").split(".")[0] != "estimator":
            raise ConfigurationError(
                f"an estimator is described by overrides of {', '.join(sorted({'estimator', *SHARED}))}, such as "
                f"'estimator=likelihood_ratio sampling=antithetic estimator.score=plain'; got {override!r}."
            )
        keys.append(key)
    return keys


def estimator_node(base: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the `estimator` section that a configuration has after some overrides.

    Args:
        base: a resolved training configuration, such as that of a run. Its values are only copied, never interpolated.
        overrides: of `glr-train`, for the estimator alone. One that is not the base's takes what all estimators share
            (noise, sigma and so on) from the base as far as both have it, and the rest from conf/.

    Raises:
        ConfigurationError: Hydra refuses the overrides, or they are not the estimator's.
    """
    keys, written_out = keys_of(overrides), long_forms(overrides)
    choices = [override for key, override in zip(keys, written_out, strict=True) if "." not in key]
    values = [override for key, override in zip(keys, written_out, strict=True) if "." in key]
    own, target = base["estimator"], str(base["estimator"]["_target_"])
    if "estimator" not in keys:
        option = Groups.present().option_of("estimator", target)
        if option is None:
            raise ConfigurationError(f"{target} is not in conf/estimator; name an estimator, as estimator=NAME.")
        choices.insert(0, f"estimator={option}")
    with composing(["~experiment", *choices]) as config:
        node: dict[str, Any] = resolve(config, choices)["estimator"]
    chosen = {key.partition("/")[2] for key in keys}
    same = node["_target_"] == target
    kept = [key for key in node if key in own and key not in chosen and (same or key in SHARED)]
    if not same and not _same_units(node["_target_"], target):
        kept = [key for key in kept if key != "sigma"]
    return _with_values(node | {key: own[key] for key in kept}, values)


def _same_units(target: str, other: str) -> bool:
    """Return whether sigma has the same units: those of the pre-activations, or those of the weights."""
    known = Groups.present().option_of("estimator", other) is not None  # else it must not be imported here
    objectives = [getattr(hydra.utils.get_class(name), "objective", None) for name in (target, other) if known]
    return known and (objectives[0] == "weights") == (objectives[1] == "weights")


def _with_values(node: dict[str, Any], values: Sequence[str]) -> dict[str, Any]:
    """Return a node after overrides of single values, which must be there already; nothing is interpolated."""
    config = OmegaConf.create({"estimator": node})
    OmegaConf.set_struct(config, True)
    try:
        for override in OverridesParser.create().parse_overrides(list(values)):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigurationError(in_one_line(error)) from None
    changed: Any = OmegaConf.to_container(config, resolve=False)
    return dict(changed["estimator"])
