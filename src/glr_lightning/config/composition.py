"""Composition: how overrides become plain values."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from glr_lightning.config.comments import listing_of_options
from glr_lightning.config.groups import CONF_DIR, Groups, as_url, listing, require_there, user_folders
from glr_lightning.config.messages import group_without_name, in_one_line, is_users, lacks
from glr_lightning.config.root import TrainConfig, checked_root, require_names, require_options
from glr_lightning.config.short_forms import long_forms, short_name, short_overrides
from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import checked

SEVERAL = {"callbacks", "logger", "threat"}
"""The groups of which several options can be chosen at once."""

OmegaConf.register_new_resolver("short_forms", short_overrides, replace=True)
OmegaConf.register_new_resolver("options", listing_of_options, replace=True)
OmegaConf.register_new_resolver("groups", lambda *roots: listing(roots), replace=True)


def resolve(config: Any, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a Hydra configuration as plain dicts, lists and numbers, with every interpolation filled in.

    Args:
        config: what Hydra composed.
        overrides: those that it was composed with, in their long forms; None: those of the running application.

    Raises:
        ConfigurationError: a value that has to be given and is not, or a setting that the estimator does not have.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        name = short_name(str(error.full_key))
        raise ConfigurationError(f"{name} must be given: {name}=VALUE.", option=name) from None
    except OmegaConfBaseException as error:
        raise ConfigurationError(in_one_line(error)) from None
    assert isinstance(plain, dict)
    if overrides is None:
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    _require_one_description(overrides)
    _require_one_option(overrides)
    if isinstance(plain.get("estimator"), dict):
        _require_settings(plain["estimator"], overrides)
    return {str(key): value for key, value in plain.items()}


@checked
def compose(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Return the resolved training configuration for a list of Hydra overrides; also within a Hydra entry point.

    Args:
        overrides: as on the command line of glr-train, short forms included.
        config_dirs: folders, or packages as `pkg://my_package.conf`, with groups and options of the user's own. Those
            of the Hydra application that runs are searched too.

    Raises:
        ConfigurationError: Hydra refuses the overrides, or a root key its value.
    """
    overrides = long_forms(overrides)
    with composing(overrides, config_dirs) as config:
        return checked_root(TrainConfig, resolve(config, overrides))


@contextmanager
def composing(
    overrides: Sequence[str], config_dirs: Sequence[str | Path] = (), root: str | None = "train"
) -> Iterator[DictConfig]:
    """Compose as `compose` does, with the interpolations in place; within the block they can be resolved.

    root: the configuration of CONF_DIR to start from; None for an empty one, to which overrides add groups.
    """
    overrides = long_forms(overrides)
    if root is not None:
        require_options(root, overrides)
    require_names(overrides)
    folders = [*map(as_url, config_dirs), *user_folders()]
    state = Singleton.get_state()  # Hydra allows one application at a time; step aside for the one that runs
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
            yield hydra.compose(root, overrides=_with_folders(overrides, folders))
    except (HydraException, YAMLError) as error:
        raise ConfigurationError(in_one_line(error)) from None
    except ValueError as error:
        if not is_users(error):
            raise
        group = group_without_name(error)
        option = None if group is None else short_name(group[0]) or None
        raise ConfigurationError(in_one_line(error), option=option) from None
    finally:
        Singleton.set_state(state)


def _with_folders(overrides: list[str], folders: Sequence[str]) -> list[str]:
    """Add folders to Hydra's search path, before those that the overrides name themselves."""
    own = [override for override in overrides if override.startswith("hydra.searchpath=")]
    if not folders and not own:
        return overrides
    named = [folder for each in OverridesParser.create().parse_overrides(own) for folder in as_list(each.value())]
    require_there(map(str, [*named, *folders]))
    quoted = ",".join(repr(folder) for folder in dict.fromkeys([*named, *folders]))
    return [f"hydra.searchpath=[{quoted}]", *(override for override in overrides if override not in own)]


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and any other value as a list of one."""
    return list(value) if isinstance(value, list) else [value]


def keys_of(overrides: Sequence[str]) -> list[str]:
    """Return the names that overrides set, without signs, packages and values."""
    return [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]


def experiment_name(choices: Mapping[str, Any], overrides: Sequence[str]) -> str | None:
    """Return the name under which a run is known: its experiment, or `SETTING/METHOD` where these are given by hand."""
    keys = keys_of(overrides)
    if "method" not in keys and "setting" not in keys:
        name = choices.get("experiment")
        return None if name is None else str(name)
    parts = [choices.get("setting"), choices.get("method")]
    return "/".join(str(part) for part in parts if part is not None) or None


def _require_one_description(overrides: Sequence[str]) -> None:
    keys = keys_of([override for override in overrides if not override.startswith("~")])
    parts = [key for key in ("method", "setting") if key in keys]
    if "experiment" in keys and parts:
        raise ConfigurationError(
            f"experiment=NAME stands for a method, a setting and what suits the two; leave out {' and '.join(parts)}, "
            "or in place of the experiment give method=NAME setting=NAME."
        )


def _require_one_option(overrides: Sequence[str]) -> None:
    """Raise ConfigurationError for a list of options of a group of which one is chosen; Hydra would merge them."""
    groups = Groups.present()
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if value.startswith("[") and key not in SEVERAL and groups.is_group(key):
            raise ConfigurationError(
                f"{short_name(key)}={value} are several options of a group that takes one; choose one of them, or try "
                f"each in a sweep: --multirun {short_name(key)}={value.strip('[]')}.",
                option=short_name(key),
            )


def _require_settings(node: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise ConfigurationError for a setting that no option of conf/estimator with this target declares."""
    groups = Groups.present()
    option = groups.option_of("estimator", str(node.get("_target_")))
    if option is None:  # a target that was given by hand; its signature is checked when it is built
        return
    extra = [str(key) for key in node if key not in groups.settings("estimator", option) and key != "_target_"]
    if not extra:
        return
    given = [key for key in extra if f"estimator.{key}" in {".".join(k.split(".")[:2]) for k in keys_of(overrides)}]
    if given:
        raise ConfigurationError(lacks(option, given[0], "", groups), option=f"estimator.{given[0]}")
    having = {name for key in extra for name in groups.having("estimator", key)}
    if not having:
        raise ConfigurationError(f"{lacks(option, extra[0], '', groups)}", option=f"estimator.{extra[0]}")
    left_out = " ".join(f"~{short_name(f'estimator.{key}')}" for key in extra)
    raise ConfigurationError(
        f"estimator={option} has no {', '.join(extra)}, which the experiment or the method sets; leave that out "
        f"with {left_out}, or choose another method or estimator. These have it: {', '.join(sorted(having))}."
    )
