"""Threats by the names of their files in conf/threat."""

from collections.abc import Mapping, Sequence
from typing import Any

from glr_lightning.config import build, composing, resolve
from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.certification import Certification
from glr_lightning.threats import Threat

Tested = Threat | Certification


def named_threats(threats: Sequence[str]) -> dict[str, Tested]:
    """Build threats from names, with overrides among them.

    Args:
        threats: names of files in conf/threat, single threats and presets ("clean", "pgd_linf", "honest"); and
            overrides of their options ("pgd_linf.epsilon=0.1").

    Raises:
        ConfigurationError: a name or an option that does not exist, or a value that is refused.
    """
    names = [word for word in threats if "=" not in word]
    overrides = [f"threat.{word.removeprefix('threat.')}" for word in threats if "=" in word]
    with composing([f"+threat=[{','.join(names)}]", *overrides], root=None) as config:
        nodes = resolve(config, overrides).get("threat")
    return built_threats(nodes)


def built_threats(nodes: Mapping[str, Any] | None) -> dict[str, Tested]:
    """Build the threats of a composed configuration's section `threat`.

    Raises:
        ConfigurationError: an option that is refused; it is named by its path.
    """
    return {name: _built(f"threat.{name}", node) for name, node in (nodes or {}).items()}


def _built(where: str, node: Any) -> Tested:
    try:
        threat = build(node, where=where, trusted=None)
    except ConfigurationError as error:
        option = (error.option or "").removeprefix(f"{where}.")
        if option and str(error).startswith(option):  # it names the option without its path
            raise ConfigurationError(f"{where}.{error}", option=f"{where}.{option}") from None
        raise
    if not isinstance(threat, Threat | Certification):
        raise ConfigurationError(f"{where} is no threat: its _target_ returned a {type(threat).__name__}.")
    return threat
