"""The tables of a report: one module and one function each, and what they share.

`table` has the form (headings, rows, notes; Markdown and the screen), `cells` the text of cells and footnotes.
"""

from glr_lightning.reporting.tables.table import NONE, Table, escape, show

__all__ = ["NONE", "Table", "escape", "show"]
