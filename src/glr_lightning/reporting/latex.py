"""A table as a plain LaTeX tabular, which needs no package."""

from glr_lightning.reporting.tables import Table

SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"\dag{}",
    "—": "---",
    "–": "--",
}
_TRANSLATION = str.maketrans(SIGNS)


def latex(table: Table) -> str:
    """Return a table as LaTeX, with its notes below it across all columns."""
    marks = "".join("l" if place < table.text_columns else "r" for place in range(len(table.heading)))
    rows = [[" ".join(lines) for lines in table.heading], *table.rows]
    head, *body = (" & ".join(map(escape, row)) + r" \\" for row in rows)
    across = rf"\multicolumn{{{len(marks)}}}{{p{{\linewidth}}}}"
    notes = [rf"{across}{{\footnotesize {escape(note)}}} \\" for note in table.notes]
    lines = [rf"\begin{{tabular}}{{{marks}}}", r"\hline", head, r"\hline", *body, r"\hline", *notes, r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return text in which no sign is taken for LaTeX."""
    return " ".join(text.split()).translate(_TRANSLATION)
