"""What the files of the configuration say about their options: the comments beside the keys."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from glr_lightning.config.groups import CONF_DIR

HIDDEN = {"defaults", "hydra"}
SHORTEST = 60
"""Characters of a default value that are shown before it is cut."""
_WIDTH, _MEANING = 120, 40
"""Of a help text: characters of a line, and where the meaning of an option begins."""


@dataclass(frozen=True)
class Setting:
    """One key of a configuration file.

    Attributes:
        path: the dotted key, as an override names it.
        default: the value in the file, in YAML.
        comment: what the file says about it.
    """

    path: str
    default: str
    comment: str


def settings(text: str, prefix: str = "") -> list[Setting]:
    """Return the keys of a YAML text, with the comments that stand beside and below them."""
    lines = text.splitlines()
    node = yaml.compose(text)
    found: list[Setting] = []
    if isinstance(node, yaml.MappingNode):
        for path, value, line in _leaves(node, prefix):
            found.append(Setting(path, _shown(value), _comment(lines, line)))
    return found


def _leaves(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node, int]]:
    for key, value in node.value:
        name = f"{prefix}.{key.value}" if prefix else key.value
        if key.value.startswith("_") or (not prefix and key.value in HIDDEN) or key.value == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value, name)
        else:
            yield name, value, key.start_mark.line


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.value else '""'
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:  # entries of which some have a label
        return f"[{', '.join(_label(each) for each in node.value)}]"
    text = node.start_mark.buffer[node.start_mark.index : node.end_mark.index] if node.start_mark.buffer else ""
    text = re.sub(r"#.*", "", text.rstrip("\0"))
    text = " ".join(text.split())
    return text if len(text) <= SHORTEST else f"{text[:SHORTEST].rsplit(' ', 1)[0]} …"


def _label(node: yaml.Node) -> str:
    return node.value[0][0].value if isinstance(node, yaml.MappingNode) and node.value else _shown(node)


def _comment(lines: list[str], line: int) -> str:
    """The comment behind a key, with the comment lines below it that are indented deeper than the key."""
    _, mark, comment = lines[line].partition(" #")
    parts = [comment.strip()] if mark else []
    indent = len(lines[line]) - len(lines[line].lstrip())
    for below in lines[line + 1 :]:
        inner = below.lstrip()
        if not mark or not inner.startswith("#") or len(below) - len(inner) <= indent:
            break
        parts.append(inner[1:].strip())
    return " ".join(parts)


def listing_of_options(*commands: str) -> str:
    """Return the lines of a help text that list the root options of commands: value and meaning."""
    lines = []
    for command in commands:
        text = (Path(CONF_DIR) / f"{command}.yaml").read_text(encoding="utf-8")
        for each in settings(text):
            head = f"  {each.path}={each.default}"
            if each.comment and len(head) >= _MEANING:
                lines += textwrap.wrap(
                    head, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
                )
                head = ""
            wrapped = textwrap.wrap(each.comment, _WIDTH - _MEANING) or [""]
            lines.append(f"{head:{_MEANING}}{wrapped[0]}".rstrip())
            lines += [" " * _MEANING + line for line in wrapped[1:]]
    return "\n".join(lines).replace("$", "$$")  # which Hydra reads as one
