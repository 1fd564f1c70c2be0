"""A table before it has a form, and its forms: Markdown and the screen."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

NONE = "—"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        heading: of each column, by line.
        rows: the cells.
        notes: what stands below.
        text_columns: how many columns, from the left, hold words; the others hold numbers.
        headline: places of the columns that matter most.
    """

    heading: list[list[str]]
    rows: list[list[str]]
    notes: list[str]
    text_columns: int = 1
    headline: frozenset[int] = frozenset()

    def markdown(self) -> str:
        """Return the table as Markdown, with its notes below."""
        marks = [":--" if place < self.text_columns else "--:" for place in range(len(self.heading))]
        head = ["<br>".join(escape(line) for line in lines) for lines in self.heading]
        lines = [head, marks]
        for row in self.rows:
            cells = (escape(cell) for cell in row)
            lines.append([f"**{cell}**" if place in self.headline else cell for place, cell in enumerate(cells)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *(escape(note) for note in self.notes)])

    def transposed(self) -> "Table":
        """Exchange rows and columns, for a screen that is too narrow."""
        heading = [self.heading[0], *([row[0]] for row in self.rows)]
        rows = [
            [", ".join(words), *(row[place] for row in self.rows)]
            for place, words in enumerate(self.heading)
            if place > 0
        ]
        return Table(heading, rows, self.notes)

    def rich(self) -> rich.table.Table:
        """Return the table for the screen, without its notes."""
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for place, lines in enumerate(self.heading):
            width = max(len(text) for text in [*" ".join(lines).split(), *(row[place] for row in self.rows)])
            heading = Text("\n".join(part for line in lines for part in textwrap.wrap(line, width)))
            justify: Literal["left", "right"] = "left" if place < self.text_columns else "right"
            style = "bold" if place in self.headline else None
            table.add_column(heading, justify=justify, no_wrap=True, style=style)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def show(tables: Sequence[Table]) -> None:
    """Print tables to stdout, as wide as they need: a number that is cut off would be another number."""
    console = Console(highlight=False)
    for table in tables:
        wide, narrow = ((t.rich(), _width(t, console)) for t in (table, table.transposed()))
        drawn, needed = wide if wide[1] <= console.width else min(wide, narrow, key=lambda form: form[1])
        console.width = max(console.width, needed)
        console.print(drawn)
        for note in table.notes:
            console.print(Text(note), soft_wrap=True)


def _width(table: Table, console: Console) -> int:
    """Return the width of a table that is not cut off, in characters."""
    return console.measure(table.rich(), options=console.options.update(max_width=10**6)).maximum


def escape(text: str) -> str:
    """Return text in which nothing is taken for Markdown or HTML: names and notes come from files."""
    for sign in "\\`*|<[":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
