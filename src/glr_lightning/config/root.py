"""The roots of configurations: which options a command has, of what types, and which of them it cannot do without."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING as DATACLASS_MISSING
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import MISSING

from glr_lightning.config.groups import Groups
from glr_lightning.config.short_forms import short_name
from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import Count, Positive, Seed, Threads, checked_arguments
from glr_lightning.validation.words import shown

OPTIONAL = {"callbacks", "threat"}
"""The groups of which none need be chosen."""

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
    compile: bool = False
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


_roots: dict[str, type] = {}
_schemas: dict[type, type] = {}  # a root that extends another one has to do so for OmegaConf too


def store_root(command: str, root: type) -> None:
    """Give Hydra the keys of a command's root, as COMMAND_schema; one that is a dataclass is a section with its own.

    Their values may be of any type, except where text is declared: OmegaConf would turn 1.5 into an integer without a
    word, where `checked_root` refuses it.
    """
    _roots[command] = root
    ConfigStore.instance().store(name=f"{command}_schema", node=_schema(root))


def _schema(root: type) -> type:
    keys = [(key.name, key.type if key.type in (str, str | None) else Any, _default(key)) for key in fields(root)]
    bases = tuple(_schemas[base] for base in root.__bases__ if base in _schemas)
    _schemas[root] = make_dataclass(root.__name__, keys, bases=bases)
    return _schemas[root]


def _default(key: Field[Any]) -> Any:
    """The default of a key, or that it has to be given."""
    if isinstance(key.type, type) and is_dataclass(key.type):
        return field(default_factory=_schema(key.type))
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
    sections = {key.name: key.type for key in fields(root) if isinstance(key.type, type) and is_dataclass(key.type)}
    keys = {key: value for key, value in config.items() if key != "experiment" and key not in sections}
    values = {**config, **checked_arguments(root, keys)}
    for name in sections.keys() & config.keys():
        if not isinstance(config[name], Mapping):
            known = ", ".join(f"{name}.{key.name}=VALUE" for key in fields(sections[name]))
            raise ConfigurationError(
                f"{name} must be a section of options, got {shown(config[name])}; give {known}.", option=name
            )
        values[name] = checked_arguments(sections[name], config[name], name)
    return values


def require_options(command: str, overrides: Sequence[str]) -> None:
    """Refuse to leave an option out that a command reads: `~OPTION`.

    What the root does not declare can be left out: an entry of a section that is free, such as ~callbacks.NAME, and an
    option of what a group chose. So can the groups in `OPTIONAL`.

    Args:
        command: its name, such as "train".
        overrides: with their short forms written out.

    Raises:
        ConfigurationError: the first that is refused.
    """
    for override in overrides:
        key = override[1:].partition("=")[0]
        if override.startswith("~") and (hint := _declared(_roots[command], key.split("."))) is not None:
            inner = ".OPTION" if is_dataclass(hint) else ""
            raise ConfigurationError(f"~{key}: {key} cannot be left out; give {key}{inner}=VALUE.", option=key)


def require_names(overrides: Sequence[str]) -> None:
    """Refuse a list of options of a group, also one of a sweep, of which an element is no name, as in callbacks=[3].

    Args:
        overrides: with their short forms written out. What is none is passed over, for Hydra to refuse.

    Raises:
        ConfigurationError: the first that is refused.
    """
    groups = Groups.present()
    for override in overrides:
        key = override.lstrip("+").partition("=")[0].partition("@")[0]
        if "[" not in override or not groups.is_group(key):
            continue
        for element in _elements(override):
            if not isinstance(element, str) or not element:
                name = short_name(key)
                raise ConfigurationError(
                    f"{name}: {shown(element)}, in a list, names no option of the group; choose from "
                    f"{', '.join(groups.options(key))}.",
                    option=name,
                )


def _elements(override: str) -> list[Any]:
    """What is in the list, or the lists of a sweep, that an override gives; nothing where it cannot be read."""
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException:
        return []
    lists = value.list if isinstance(value, ChoiceSweep) else [value]
    return [element for each in lists if isinstance(each, list) for element in each]


def _declared(root: Any, path: Sequence[str]) -> Any:
    """The hint of the option at a path that a root declares and cannot do without, or None."""
    hints = {key.name: key.type for key in fields(root)} if is_dataclass(root) else {}
    name, *inner = path
    if name not in hints or name in OPTIONAL:
        return None
    return _declared(hints[name], inner) if inner else hints[name]


store_root("train", TrainConfig)
