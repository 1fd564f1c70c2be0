"""The options of conf/: tests enumerate them, so that a YAML file is all it takes to be tested with its family."""

import functools
from pathlib import Path
from typing import Any

from glr_lightning.config import CONF_DIR, SHORT_FORMS, build, compose, load_yaml


def options(group: str) -> list[str]:
    """The names of a group's options, such as gaussian, laplace, ... for noise; short forms of groups will do."""
    return sorted(path.stem for path in folder(group).glob("*.yaml"))


def member(group: str, option: str) -> Any:
    """What an option builds."""
    return build(load_yaml(folder(group) / f"{option}.yaml"))


def folder(group: str) -> Path:
    """Where the options of a group lie."""
    return Path(CONF_DIR) / SHORT_FORMS.get(group, group)


@functools.cache
def configured(estimator: str) -> Any:
    """The estimator of a name, with the settings of conf/: a frozen value, composed once."""
    return build(compose(["~experiment", f"estimator={estimator}"])["estimator"])
