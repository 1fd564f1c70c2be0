"""The rows that an evaluation will have: every threat at every level, with every source of gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glr_lightning.errors import ConfigurationError
from glr_lightning.threats import Threat


@dataclass(frozen=True)
class Trial:
    """A row to be: a threat at one of its levels, with one of its sources of gradients."""

    name: str
    threat: Threat
    level: float | None
    parameters: Mapping[str, Any]
    gradient_source: str = "none"
    surrogate: str = ""

    @property
    def words(self) -> str:
        level = "" if self.level is None else f"{self.threat.level_name} {self.level:g}"
        source = "" if self.gradient_source == "none" else f"{self.gradient_source} {self.surrogate}".strip()
        return " ".join([self.name, *filter(None, [level, source and f"({source})"])])


def trials(threats: Mapping[str, Threat], surrogates: Sequence[str] = ()) -> list[Trial]:
    """All trials of some threats (by name), in their order.

    surrogates: the names of those there are; a transfer attack that names none of its own is run with each.

    Raises ConfigurationError for no threats, and a transfer attack whose surrogate is missing.
    """
    if not threats:
        raise ConfigurationError("no threats were given; give at least one, for example threat=[clean].")
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
                found += [Trial(name, threat, *level, source, surrogate) for level in threat.levels]
    return found
