"""Composition: the typed root of a training configuration, and how overrides become plain values."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING as DATACLASS_MISSING
from dataclasses import Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from glr_lightning.config.comments import listing_of_options
from glr_lightning.config.groups import CONF_DIR, Groups, as_url, listing, require_there, user_folders
from glr_lightning.config.messages import group_without_name, in_one_line, is_users, lacks
from glr_lightning.config.short_forms import long_forms, short_name, short_overrides
from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import Count, Positive, Seed, Threads, checked, checked_arguments

SEVERAL = {"callbacks", "logger", "threat"}
"""The groups of which several options can be chosen at once."""

Node = dict[str, Any]
"""What becomes an object, or several by name; `build` checks it."""


@dataclass(kw_only=True)
class TrainConfig:
    """The root of conf/train.yaml. Hydra refuses other keys, `checked_root` other values."""

    seed: Seed
    epochs: Count
    batch_size: Count
    clip_norm: Positive | None = None
    threads: Threads | None = 1
    progress: bool = True
    run_dir: str
    resume: str | None = None
    trusted: list[str] = field(default_factory=list)
    data: Node
    network: Node
    activation: Node
    loss: Node
    preprocess: Node
    estimator: Node
    optimizer: Node
    scheduler: Node
    callbacks: Node
    trainer: Node
    logger: Node


_schemas: dict[type, type] = {}  # a root that extends another one has to do so for OmegaConf too


def store_root(name: str, root: type) -> None:
    """Give Hydra the keys of a root.

    Their values may be of any type, except where text is declared: OmegaConf would turn 1.5 into an integer without a
    word, where `checked_root` refuses it.
    """
    keys = [(key.name, key.type if key.type in (str, str | None) else Any, _missing(key)) for key in fields(root)]
    bases = tuple(_schemas[base] for base in root.__bases__ if base in _schemas)
    _schemas[root] = make_dataclass(root.__name__, keys, bases=bases)
    ConfigStore.instance().store(name=name, node=_schemas[root])


def _missing(key: Field[Any]) -> Any:
    """The default of a key, or that it has to be given."""
    if key.default_factory is not DATACLASS_MISSING:
        return field(default_factory=key.default_factory)
    return MISSING if key.default is DATACLASS_MISSING else key.default


def checked_root(root: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration, its root keys checked against their hints and coerced.

    Args:
        root: the dataclass that declares the keys.
        config: plain values. The key `experiment`, which a command adds, stays as it is.

    Raises:
        ConfigurationError: a key that the root does not have, or a value that it does not accept.
    """
    keys = {key: value for key, value in config.items() if key != "experiment"}
    return {**config, **checked_arguments(root, keys)}


store_root("train_schema", TrainConfig)
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
    folders = [*map(as_url, config_dirs), *user_folders()]
    state = Singleton.get_state()  # Hydra allows one application at a time; step aside for the one that runs
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
            yield hydra.compose(root, overrides=_with_folders(long_forms(overrides), folders))
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
