"""A report as one HTML page that needs no network and no other file.

Names, notes and settings of runs are text on the page and nothing else, since runs may come from others. They are
escaped, and the page's content security policy lets no script run but its own and loads nothing.
"""

import base64
import hashlib
import re
from html import escape
from importlib.resources import files
from string import Template

from glr_lightning.reporting.document import Document, Picture, Section
from glr_lightning.reporting.tables import Table

LONG = 60
"""Characters from which on a cell gets more room."""


def page(document: Document) -> str:
    """Return the page of a report. Tables sort by a click on a heading; pictures are part of the page."""
    own = files(__name__)
    parts = (own.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    template, style, script = parts
    sections = document.sections
    return Template(template).substitute(
        title=escape(document.title),
        summary=escape(document.summary),
        links="\n".join(f'<a href="#{_name(section)}">{escape(section.title)}</a>' for section in sections),
        sections="\n".join(map(_section, sections)),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(section: Section) -> str:
    parts = "\n".join(map(_part, section.parts))
    return f'<section id="{_name(section)}">\n<h2>{escape(section.title)}</h2>\n{parts}\n</section>'


def _name(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")


def _part(part: str | Table | Picture) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Picture):
        source = f"data:image/png;base64,{base64.b64encode(part.png).decode()}"
        image = f'<img src="{source}" alt="{escape(part.title)}">'
        return f"<figure>{image}<figcaption>{escape(part.caption)}.</figcaption></figure>"
    return f"<p>{escape(part)}</p>"


def _table(table: Table) -> str:
    kinds = [_kind(table, place) for place in range(len(table.heading))]
    head = "".join(_heading(lines, kind) for lines, kind in zip(table.heading, kinds, strict=True))
    rows = []
    for first, *rest in table.rows:
        cells = "".join(_cell(text, kind, table) for text, kind in zip(rest, kinds[1:], strict=True))
        rows.append(f'<tr><th scope="row" class="{kinds[0]}">{escape(first)}</th>{cells}</tr>')
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    body = "\n".join(rows)
    drawn = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    scrolled = f'<div class="scroll" role="region" aria-label="table" tabindex="0">{drawn}</div>'
    return f'{scrolled}\n<div class="notes">{notes}</div>'


def _kind(table: Table, place: int) -> str:
    kind = "word" if place < table.text_columns else "number"
    return f"{kind} headline" if place in table.headline else kind


def _heading(lines: list[str], kind: str) -> str:
    first, *rest = map(escape, lines)
    more = "".join(f"<small>{line}</small>" for line in rest)
    return f'<th scope="col" class="{kind}"><button type="button">{first}{more}</button></th>'


def _cell(text: str, kind: str, table: Table) -> str:
    """Format a cell; the sign of a footnote shows its note where the pointer rests."""

    def sign(found: re.Match[str]) -> str:
        note = next((note for note in table.notes if note.startswith(f"{found[1]} ")), "")
        return f'<sup title="{escape(note)}">{found[1]}</sup>'

    kind += " long" if kind == "word" and len(text) > LONG else ""
    return f'<td class="{kind}">{re.sub(r" (†[0-9]+)", sign, escape(text))}</td>'
