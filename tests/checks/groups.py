"""The options of conf/: tests enumerate them, so that a YAML file is all it takes to be tested with its family."""

from pathlib import Path
from typing import Any

from glr_lightning.config import CONF_DIR, build, compose, load_yaml


def options(group: str) -> list[str]:
    """The names of a group's options, such as gaussian, laplace, ... for noise."""
    return sorted(path.stem for path in (Path(CONF_DIR) / group).glob("*.yaml"))


def member(group: str, option: str) -> Any:
    """What an option builds."""
    return build(load_yaml(Path(CONF_DIR) / group / f"{option}.yaml"))


def configured(estimator: str) -> Any:
    """The estimator of a name, with the settings of conf/ and few copies where it has them."""
    return build(compose([f"estimator={estimator}"])["estimator"])
