"""A report before it has a form (sections of text, tables and pictures), and its Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from glr_lightning.reporting.tables import Table, escape


@dataclass(frozen=True)
class Picture:
    """A PNG file.

    Attributes:
        name: its path below the report.
        caption: a sentence without its full stop.
        png: its content.
    """

    name: str
    caption: str
    png: bytes

    @property
    def title(self) -> str:
        """The name without folder and suffix, in words."""
        return PurePosixPath(self.name).stem.replace("_", " ")


@dataclass(frozen=True)
class Section:
    """A heading, and paragraphs, tables and pictures in their order."""

    title: str
    parts: Sequence[str | Table | Picture]


@dataclass(frozen=True)
class Document:
    """A title, a paragraph that sums up, and sections."""

    title: str
    summary: str
    sections: Sequence[Section]


def markdown(document: Document) -> str:
    """Return a document as Markdown. Pictures are links by name; nothing in a text is taken for markup."""
    blocks = [f"# {escape(document.title)}", escape(document.summary)]
    for section in document.sections:
        blocks += [f"## {section.title}", *map(_markdown, section.parts)]
    return "\n\n".join(blocks) + "\n"


def _markdown(part: str | Table | Picture) -> str:
    if isinstance(part, Table):
        return part.markdown()
    if isinstance(part, Picture):
        return f"![{escape(part.title)}]({part.name})\n\n{escape(part.caption)}."
    return escape(part)
