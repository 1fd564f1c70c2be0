"""The generated parts of the documentation: commands, configuration and the pages of the API.

Everything here is read from `conf/` and `src/`, so that nothing has to be typed twice. `hooks.py` puts the pages into
the site; the tests read them too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from glr_lightning.config import SHORT_FORMS
from glr_lightning.config.comments import Setting, settings

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PACKAGE = ROOT / "src" / "glr_lightning"
COMMANDS = {name: f"glr-{name}" for name in ("train", "evaluate", "report", "diagnose")}
"""The configuration of each command, and its name."""

SORTED_INTO = ("experiment", "method", "setting")
"""Groups whose subfolders only sort their options, as in experiment=paper/lrt; other subfolders are groups."""


@dataclass(frozen=True)
class Option:
    """One file of a group.

    Attributes:
        name: as in GROUP=NAME.
        comment: the comment lines at the top of the file.
        target: the Python object that the option builds, "" if there is none.
        settings: its keys.
        choices: the entries of its defaults list, as overrides.
    """

    name: str
    comment: str
    target: str
    settings: list[Setting]
    choices: list[str]


def groups(conf: Path = CONF) -> list[str]:
    """Every folder of `conf` that holds options, by its path."""
    found = {path.parent.relative_to(conf).as_posix() for path in conf.rglob("*.yaml")}
    return sorted(group for group in found - {"."} if group in SORTED_INTO or group.split("/")[0] not in SORTED_INTO)


def options(group: str, conf: Path = CONF) -> list[Option]:
    """The options of a group, by name."""
    folder = conf / group
    files = folder.rglob("*.yaml") if group in SORTED_INTO else folder.glob("*.yaml")
    return [read_option(path, group, conf) for path in sorted(files)]


def read_option(path: Path, group: str, conf: Path = CONF) -> Option:
    """Read one file of a group with its comments."""
    text = path.read_text(encoding="utf-8")
    package = re.search(r"^# @package (\S+)", text, flags=re.MULTILINE)
    prefix = group.replace("/", ".") if package is None else package[1].replace("_global_", "")
    top = [line[1:].strip() for line in _leading_comments(text) if "@package" not in line]
    content: dict[str, Any] = yaml.safe_load(text) or {}
    target = content.get("_target_", "")
    inner = [value for value in content.values() if isinstance(value, dict) and "_target_" in value]
    if not target and len(inner) == 1:
        target = inner[0]["_target_"]
    name = path.relative_to(conf / group).with_suffix("").as_posix()
    return Option(name, " ".join(top), str(target), settings(text, prefix), [*_choices(content)])


def _leading_comments(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return lines


def _choices(content: dict[str, Any]) -> Iterator[str]:
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            yield f"{group.removeprefix('override ').lstrip('/')}={option}"
        elif entry != "_self_":
            yield str(entry).lstrip("/")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return "`{}`".format(text.replace("|", "\\|")) if text else ""


def _reference(target: str) -> str:
    """A link to the API page of an object of this package; the name alone for others."""
    name = target.removeprefix("glr_lightning.")
    if name == target:
        return f"`{target}`"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'


def settings_table(found: list[Setting]) -> str:
    """A Markdown table of settings."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [f"| {_code(each.path)} | {_code(each.default)} | {_cell(each.comment)} |" for each in found]
    return "\n".join(lines)


def group_table(conf: Path = CONF) -> str:
    """A Markdown table of all groups with their options, linked to the configuration reference."""
    what = _group_comments(conf)
    lines = ["| group | options | what it chooses |", "|---|---|---|"]
    for group in groups(conf):
        names = " ".join(f"`{option.name}`" for option in options(group, conf))
        lines.append(f"| [`{group}`](configuration.md#{_anchor(group)}) | {names} | {_cell(what.get(group, ''))} |")
    return "\n".join(lines)


def _anchor(group: str) -> str:
    return f"group-{group.replace('/', '-')}"


def _group_comments(conf: Path) -> dict[str, str]:
    """What a file says of a group behind its entry in a defaults list, or behind the group's key at its root.

    Where several do, the commands' files come first.
    """
    found: dict[str, str] = {}
    for path in sorted(conf.rglob("*.yaml"), key=lambda path: (path.parent != conf, path)):
        text = path.read_text(encoding="utf-8")
        within = "" if path.parent == conf else f"{path.parent.relative_to(conf).as_posix()}/"
        for group, comment in re.findall(r"^  - ([a-z_]+): \S+ +# (.+)$", text, flags=re.MULTILINE):
            found.setdefault(f"{within}{group}", comment)
        for group, comment in re.findall(r"^([a-z_]+): +# (.+)$", text, flags=re.MULTILINE) if not within else ():
            found.setdefault(group, comment)
    return found


def short_form_table() -> str:
    """A Markdown table of the short forms of options."""
    lines = ["| short form | stands for |", "|---|---|"]
    return "\n".join(lines + [f"| `{short}` | `{long}` |" for short, long in SHORT_FORMS.items()])


def configuration_page(conf: Path = CONF) -> str:
    """The reference of every group and every option."""
    what = _group_comments(conf)
    parts = [
        "# Configuration",
        "This page is generated from the files and comments of `conf/`. A group is chosen by `GROUP=OPTION`, a setting "
        "by `SETTING=VALUE`, both on the command line of [the commands](commands.md) or in an experiment file.",
        "## All groups",
        group_table(conf),
        "## Short forms",
        "On a command line a short form stands for the longer name.",
        short_form_table(),
    ]
    for group in groups(conf):
        parts.append(f"## {group} {{ #{_anchor(group)} }}")
        if group in what:
            parts.append(f"{what[group][:1].upper()}{what[group][1:].rstrip('.')}.")
        for option in options(group, conf):
            parts.append(f"#### `{group}={option.name}` {{ #{_anchor(group)}-{option.name.replace('/', '-')} }}")
            parts += _option_parts(option)
    return "\n\n".join(parts) + "\n"


def _option_parts(option: Option) -> Iterator[str]:
    if option.comment:
        yield option.comment
    if option.target:
        yield f"Builds {_reference(option.target)}."
    if option.choices:
        yield f"Chooses {', '.join(f'`{choice}`' for choice in option.choices)}."
    if option.settings:
        yield settings_table(option.settings)


def help_examples(command: str, conf: Path = CONF) -> str:
    """What a command's --help says before it lists the groups."""
    config = yaml.safe_load((conf / f"{command}.yaml").read_text(encoding="utf-8"))
    return str(config["hydra"]["help"]["template"].split("== ")[0].strip())


def commands_page(conf: Path = CONF) -> str:
    """The reference of the commands: examples and the settings at the root of each."""
    parts = [
        "# Commands",
        "This page is generated from `conf/`. Every command is a Hydra application: `--help` lists all choices, "
        "`--cfg job` prints the composed configuration, `--multirun` runs every combination of comma-separated values. "
        "Exit codes: 0 done, 2 a mistake in the call (answered in one line), 130 interrupted. Groups and their "
        "settings are in the [configuration reference](configuration.md).",
    ]
    for command, name in COMMANDS.items():
        text = (conf / f"{command}.yaml").read_text(encoding="utf-8")
        parts += [f"## {name}", f"```text\n{help_examples(command, conf)}\n```", settings_table(settings(text))]
    return "\n\n".join(parts) + "\n"


def modules(package: Path = PACKAGE) -> list[str]:
    """Every public module of the package, dotted, packages before what is in them."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            found.append(".".join(part for part in parts if part != "__init__"))
    return sorted(found)


def api_pages(package: Path = PACKAGE) -> dict[str, str]:
    """The API pages by file name: one for the top, one for each subpackage and each module of the root."""
    pages: dict[str, list[str]] = {}
    for module in modules(package):
        family = ".".join(module.split(".")[:2])
        pages.setdefault(family, []).append(module)
    return {f"{family}.md": _api_page(family, found) for family, found in pages.items()}


def _api_page(family: str, found: list[str]) -> str:
    parts = [f"# {family}"]
    for module in found:
        parts.append(f"::: {module}" + ("\n    options:\n      show_root_heading: true" if module != family else ""))
    return "\n\n".join(parts) + "\n"


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, and its code in blocks."""
    notebook = nbformat.read(path, as_version=4)
    cells = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in notebook.cells
    ]
    return "\n\n".join(cells) + "\n"
