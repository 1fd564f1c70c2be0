"""Configurations: where they lie, their typed root, and how a plain one becomes objects.

A configuration that comes from a run folder is data, not code: `build` instantiates only what this package and
torch define, so a crafted config.yaml cannot name a function to run.
"""

import difflib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, ValidationError

from glr_lightning.errors import ConfigurationError, GLRError
from glr_lightning.validation import Count, NonNegative, checked_arguments

PACKAGED = Path(__file__).parent / "conf"
CONF_DIR = str(PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "conf")
"""The configuration folder: inside the wheel, or beside `src` in a checkout."""

_OWN = ["activations", "baselines", "data", "estimators", "injection", "losses", "networks", "noise", "sampling"]
_OWN += ["schedules", "training.callbacks"]
TRUSTED = (*(f"glr_lightning.{family}." for family in _OWN), "torch.nn.modules.", "torch.optim.")
"""The modules whose classes a configuration read from a run folder may call; of networks, functions too."""

RANGES: dict[str, dict[str, Any]] = {
    "torch.optim.lr_scheduler.": {"T_max": Count, "step_size": Count, "total_iters": Count, "gamma": NonNegative},
    "torch.optim.": {"lr": NonNegative, "weight_decay": NonNegative, "momentum": NonNegative},
}
"""What torch's own hints leave open and torch refuses late or never."""


@dataclass
class TrainConfig:
    """The root of conf/train.yaml; Hydra refuses other keys and other types."""

    seed: int = MISSING
    sigma: Any = MISSING
    copies: Any = MISSING  # a number, which glr-train checks; to glr-diagnose a list
    chunk: int | None = None
    epochs: int = MISSING
    batch_size: int = MISSING
    clip_norm: float | None = None
    device: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int | None = 1
    progress: bool = True
    run_dir: str = MISSING
    resume: str | None = None
    data: Any = MISSING
    network: Any = MISSING
    activation: Any = MISSING
    loss: Any = MISSING
    noise: Any = MISSING
    sampling: Any = MISSING
    baseline: Any = MISSING
    injection: Any = MISSING
    preprocess: Any = MISSING
    estimator: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING


ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def require_seed(seed: int) -> None:
    """Raises ConfigurationError unless every generator takes this seed."""
    if not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed must be from 0 to 2^32 - 1, got {seed}.")


def resolve(config: Any) -> dict[str, Any]:
    """A Hydra configuration as plain dicts, lists and numbers, with every interpolation filled in.

    Raises ConfigurationError for a value that has to be given and is not.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigurationError(f"{error.full_key} must be given: {error.full_key}=VALUE.") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved training configuration for a list of Hydra overrides; also within a Hydra entry point.

    Raises:
        ConfigurationError: Hydra refuses the overrides.
    """
    with composing(overrides) as config:
        return resolve(config)


@contextmanager
def composing(overrides: Sequence[str]) -> Iterator[DictConfig]:
    """As `compose`, with the interpolations in place; within the block they can be resolved."""
    folders = _added_folders()
    state = Singleton.get_state()  # Hydra allows one application at a time; step aside for the one that runs
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
            yield hydra.compose("train", overrides=[*overrides, *folders])
    except HydraException as error:
        raise ConfigurationError(what_to_mend(error)) from None
    finally:
        Singleton.set_state(state)


def _added_folders() -> list[str]:
    """The folders of options that the running entry point was given by --config-dir, as an override."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    added = [f"file://{source.path}" for source in sources if source.provider == "command-line"]
    return [f"hydra.searchpath=[{','.join(added)}]"] if added else []


def what_to_mend(error: Exception) -> str:
    """An error of Hydra's in one line: what does not exist and what comes close to it, or the error's own words.

    (Hydra advises a plus sign before an option that does not exist, which would add it for nobody to read.)
    """
    cause: Any = error.__cause__ or error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent, (*above, name) = cause.parent_node, str(cause.full_key or cause.key).split(".")
        known = [str(key) for key in parent] if isinstance(parent, Mapping) else []
        known += [] if above else [path.name for path in Path(CONF_DIR).iterdir() if path.is_dir()]  # groups
        where = f" in {'.'.join(above)}" if above else ""
        return f"there is no option {name!r}{where}.{_closest(name, known)} --cfg job lists all of them."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.partition("/")
        folder = Path(CONF_DIR, group)  # the error itself names options of another folder, if there are several
        known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        choices = f"Choose from {', '.join(known)}." if known else "--help lists the groups."
        return f"there is no {group}={name}.{_closest(name, known)} {choices}"
    if isinstance(cause, ValidationError):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}."
    if "No match in the defaults list" in str(error):
        return f"there is no group {str(error).split(chr(39))[1]!r} here. --help lists those that there are."
    return " ".join(str(error).split())


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=2)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def config_hash(config: dict[str, Any]) -> str:
    """12 hex digits that identify what is trained: everything but where it is written and shown."""
    place = {"experiment", "run_dir", "resume", "logger", "progress", "device", "devices", "strategy", "threads"}
    what = {key: value for key, value in config.items() if key not in place}
    if isinstance(what.get("callbacks"), dict):
        what["callbacks"] = {key: value for key, value in what["callbacks"].items() if key != "gradient_quality"}
    if isinstance(what.get("data"), dict):
        what["data"] = {key: value for key, value in what["data"].items() if key not in {"root", "download", "cache"}}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def build(node: Any, *, where: str = "", trusted: Sequence[str] | None = TRUSTED, **keywords: Any) -> Any:
    """Instantiate a plain configuration node: a mapping with a `_target_` is a call, or a partial with `_partial_`.

    Every argument is checked against the hints of its target before the call (see `glr_lightning.validation`).

    Args:
        node: a mapping with a `_target_`, nested ones included.
        where: the dotted path of the node in the configuration, which errors name.
        trusted: prefixes of the names that may be called; None allows all (a configuration the user just composed).
        keywords: further arguments for the outermost target.

    Raises:
        ConfigurationError: a target outside `trusted`, an argument that its target does not take or accept, or what
            the target itself refuses.
    """
    if trusted is not None:
        _require_trusted(node, tuple(trusted))
    return _built(node, where, keywords)


def _built(node: Any, where: str, keywords: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_built(child, f"{where}[{number}]", {}) for number, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    options = {str(key): _built(child, f"{where}.{key}" if where else str(key), {}) for key, child in node.items()}
    if "_target_" not in options:
        return options
    name, partial = str(options.pop("_target_")), options.pop("_partial_", False)
    try:
        target = hydra.utils.get_object(name)
    except Exception as error:
        raise ConfigurationError(f"_target_ {name!r} does not exist: {error}") from error
    ranges = next((ranges for module, ranges in RANGES.items() if name.startswith(module)), {})
    arguments = checked_arguments(target, options | keywords, where, hints=ranges, complete=not partial)
    if partial:
        return functools.partial(target, **arguments)
    try:
        return target(**arguments)
    except ConfigurationError as error:
        if error.option is not None and where:
            error.option = f"{where}.{error.option}"
        raise
    except GLRError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        raise ConfigurationError(f"{where or name} is refused by {name}: {words}", option=where or None) from error


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
        if "_target_" in node and not _is_trusted(str(node["_target_"]), trusted):
            raise ConfigurationError(
                f"_target_ {node['_target_']!r} is refused: a run's configuration may only name this package's and "
                "torch's own building blocks. If you trust it, add its package with trusted=[PACKAGE]."
            )


def _is_trusted(target: str, trusted: tuple[str, ...]) -> bool:
    """Is the target defined in a trusted module? A module's imports are not its own, so the object is asked."""
    packages = tuple({f"{prefix.split('.')[0]}." for prefix in trusted})
    if not target.startswith(packages):  # do not even import it
        return False
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:
        raise ConfigurationError(f"_target_ {target!r} does not exist: {error}") from error
    home = f"{getattr(found, '__module__', '')}."
    kind = isinstance(found, type) or home.startswith("glr_lightning.networks.") or not home.startswith(TRUSTED)
    return kind and home.startswith(trusted)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a resolved configuration; nothing in it is interpolated or run.

    Raises:
        ConfigurationError: not there, not YAML, or not a mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"there is no {path}; a run folder holds the config.yaml of its training.") from None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} does not hold a mapping; it is damaged.")
    return config
