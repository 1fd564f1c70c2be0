"""Short forms of options: on a command line `sigma=1` stands for `estimator.sigma=1`."""

import re
from collections.abc import Collection, Sequence

SHORT_FORMS = {
    "sigma": "estimator.sigma",
    "copies": "estimator.copies",
    "chunk": "estimator.chunk",
    "noise": "estimator/noise",
    "sampling": "estimator/sampling",
    "baseline": "estimator/baseline",
    "injection": "estimator/injection",
    "device": "trainer.accelerator",
    "devices": "trainer.devices",
    "strategy": "trainer.strategy",
    "precision": "trainer.precision",
}
"""By short form, the option (with dots) or the group (with slashes) that it stands for."""

_OVERRIDE = re.compile(r"(?P<sign>~|\+{0,2})(?P<name>[A-Za-z_]\w*)(?P<rest>[.=@].*)?", re.DOTALL)
_LONG_FORMS = {long.replace("/", "."): short for short, long in SHORT_FORMS.items()}


def long_form(override: str, own: Collection[str] = ()) -> str:
    """Return a Hydra override with a short form written out; any other text is returned as it is.

    Args:
        override: for example `sigma=1`, `noise=laplace,gaussian`, `noise.nu=3`, `+chunk=8` or `~baseline`.
        own: options of the command itself, which therefore are no short forms there.
    """
    match = _OVERRIDE.fullmatch(override)
    if match is None or match["name"] in own or match["name"] not in SHORT_FORMS:
        return override
    if match["rest"] is None and match["sign"] != "~":
        return override
    name, rest = SHORT_FORMS[match["name"]], match["rest"] or ""
    return f"{match['sign']}{name.replace('/', '.') if rest.startswith('.') else name}{rest}"


def long_forms(overrides: Sequence[str], own: Collection[str] = ()) -> list[str]:
    """Apply `long_form` to each override."""
    return [long_form(override, own) for override in overrides]


def short_name(name: str) -> str:
    """Return the shortest name of an option: `sigma` for `estimator.sigma`, `noise.nu` for `estimator.noise.nu`."""
    head, separator, rest = name.replace("/", ".").partition(".")
    second, dot, last = rest.partition(".")
    short = _LONG_FORMS.get(f"{head}{separator}{second}")
    return name if short is None else f"{short}{dot}{last}"


def short_overrides(text: str, separator: str = "_") -> str:
    """Shorten the names in overrides that are joined as in the name of a sweep's folder: `sigma-0.5_seed-1`."""
    for long, short in _LONG_FORMS.items():
        words = "[./]".join(map(re.escape, long.split(".")))
        text = re.sub(rf"(^|[~+ {separator}]){words}(?=[-.=]|$)", rf"\g<1>{short}", text)
    return text
