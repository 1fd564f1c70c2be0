"""The rows that an evaluation will have: every threat at every level, with every source of gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from glr_lightning.errors import ConfigurationError
from glr_lightning.threats import Threat


@final
@dataclass(frozen=True)
class Attempt:
    """A threat at one of its levels, with one of its sources of gradients: one row.

    Attributes:
        name: the threat's name in tables.
        threat: the threat.
        level: the label of the level.
        parameters: the keyword parameters of the level.
        gradient_source: one of the threat's.
        surrogate: the name of the surrogate of a transfer attack.
        remark: what the row's note adds to what is measured.
    """

    name: str
    threat: Threat
    level: float | None
    parameters: Mapping[str, Any]
    gradient_source: str = "none"
    surrogate: str = ""
    remark: str = ""

    @property
    def words(self) -> str:
        """The attempt in a line, for a progress bar."""
        level = "" if self.level is None else f"{self.threat.level_name} {self.level:g}"
        source = "" if self.gradient_source == "none" else f"{self.gradient_source} {self.surrogate}".strip()
        return " ".join([self.name, *filter(None, [level, source and f"({source})"])])

    @property
    def needs_surrogate(self) -> bool:
        """Whether the gradient is another network's, and the images were not made before."""
        return self.gradient_source == "transfer" and not self.threat.recorded


def attempts(threats: Mapping[str, Threat], surrogates: Sequence[str] = ()) -> list[Attempt]:
    """All attempts of some threats, in their order.

    Args:
        threats: by name.
        surrogates: the names of those there are; a transfer attack that names none of its own is run with each.

    Raises:
        ConfigurationError: no threats, or a transfer attack whose surrogate is missing.
    """
    if not threats:
        raise ConfigurationError(
            "no threats were given; give at least one, for example threat=[clean].", option="threat"
        )
    found = []
    for name, threat in threats.items():
        for source in threat.gradient_sources:
            wanted = (threat.surrogates or surrogates) if source == "transfer" else ("",)
            needed = source == "transfer" and not threat.recorded
            missing = [surrogate for surrogate in wanted if needed and surrogate not in surrogates]
            if missing or not wanted:
                raise ConfigurationError(
                    f"the transfer attack {name} needs a surrogate{''.join(f' {each}' for each in missing)}, got "
                    f"{', '.join(surrogates) or 'none'}; give it, or set gradient_source=autograd for a white-box "
                    "attack."
                )
            for surrogate in wanted:
                found += [Attempt(name, threat, *level, source, surrogate) for level in threat.levels]
    return found
