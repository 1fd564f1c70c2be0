"""Threats as columns of the robustness table, and the cells of one run.

A threat is a column: the clean images, an attack at one budget with one source of gradients, the worst case over all
attacks of a budget, a corruption, whose accuracy is the mean over its severities, or a certificate at one radius.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from glr_lightning.errors import CheckpointError
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.worst_case import SHOWN_UP, WORST_CASE
from glr_lightning.runs.trained_run import ROBUSTNESS

KIND_ORDER = {"clean": 0, "attack": 1, WORST_CASE: 2, "corruption": 3, "certificate": 4}


@dataclass(frozen=True)
class Column:
    """A threat as a column of the robustness table; numbers are comparable if they agree in all of this."""

    kind: str
    threat: str
    preset: str = ""
    norm: str = ""
    gradient_source: str = "none"
    surrogate: str = ""
    targeted: bool = False
    noisy_passes: int = 0
    level_name: str = ""
    levels: tuple[float, ...] = ()

    @property
    def words(self) -> list[str]:
        """The heading, by line."""
        level = f"{self.level_name} {_listed(self.levels)}" if self.levels else ""
        if len(self.levels) > 1:
            level = f"mean of {level}"
        bound = f"{level} ({self.norm})" if level and self.norm else level or self.norm
        return [word for word in (self.name, bound, self.preset, *self._means) if word]

    @property
    def name(self) -> str:
        """The name of the threat in words."""
        return "worst case" if self.kind == WORST_CASE else self.threat

    @property
    def way(self) -> str:
        """The threat without its level, in one line."""
        return ", ".join(filter(None, [self.name, self.preset, *self._means]))

    @property
    def _means(self) -> list[str]:
        gradient = ", ".join(filter(None, [f"gradient: {self.gradient_source}", self.surrogate]))
        return [
            gradient if self.kind == "attack" else "",
            "targeted" if self.targeted else "",
            f"noisy passes {self.noisy_passes}" if self.noisy_passes and self.kind != "certificate" else "",
        ]

    @property
    def is_clean(self) -> bool:
        """Whether it is the clean images on the noise-free network."""
        return self.kind == "clean" and not self.noisy_passes


@dataclass(frozen=True)
class Cell:
    """One run under one threat.

    Attributes:
        rows: one row of robustness.csv, or one for each severity.
        images: the largest number of images of any row of the run.
        others: rows of the same threat and level on fewer images.
    """

    rows: tuple[Row, ...]
    images: int
    others: tuple[Row, ...] = ()

    @property
    def accuracy(self) -> float:
        """The accuracy, or its mean over severities."""
        return fmean(row.accuracy for row in self.rows)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy.

        For a mean over severities it is the mean of their bounds, which is too wide rather than too narrow: the
        severities share their images, and a mean never varies more than its terms do on average.
        """
        return fmean(row.wilson_low for row in self.rows), fmean(row.wilson_high for row in self.rows)

    @property
    def warnings(self) -> list[str]:
        """Reasons why the accuracy must not be read as robustness; empty if there are none."""
        return [_warning(row, len(self.rows) > 1) for row in self.rows if is_marked(row)]

    @property
    def remarks(self) -> list[str]:
        """What else is to be known about the accuracy."""
        said = [part for row in self.rows if not is_marked(row) for part in (row.note, *_unsaid(row)) if part]
        counts = sorted({row.n for row in self.rows if row.n < self.images})
        said += [f"of the first {n:,} images" for n in counts]
        for row in self.others if self.rows[0].kind == WORST_CASE else ():  # over other attacks, maybe more of them
            said.append(f"{100 * row.accuracy:.2f} % of the first {row.n:,} images ({row.note})")
        return list(dict.fromkeys(said))


_SHARED = tuple(field.name for field in fields(Column) if field.name != "levels")


def is_marked(row: Row) -> bool:
    """Whether a row must not be read as robustness."""
    return bool(row.unreliable or row.out_of_budget or row.black_box_stronger)


def table_cells(rows: Sequence[Row], path: Path | str = ROBUSTNESS) -> dict[Column, Cell]:
    """Return the rows of one run by column, in their order: severities of a corruption together, other rows alone.

    If two rows have the same threat and level, the one on more images counts.

    Args:
        rows: the rows of robustness.csv.
        path: where they were read, for the message.

    Raises:
        CheckpointError: if two such rows are on equally many images.
    """
    together: dict[tuple[tuple[Any, ...], Any], dict[float | None, Row]] = {}
    others: dict[tuple[tuple[Any, ...], Any], list[Row]] = {}
    for row in rows:
        joint = row.kind == "corruption" and row.level is not None
        which = "all severities" if joint else row.level
        key = (tuple(getattr(row, field) for field in _SHARED), which)
        levels = together.setdefault(key, {})
        other = levels.get(row.level)
        if other is not None and other.n == row.n:
            raise CheckpointError(
                f"{path} has two rows for {row.threat} at {row.level_name or 'level'} {row.level} on "
                f"{row.n} images; remove the file and evaluate the run again."
            )
        if other is not None:
            others.setdefault(key, []).append(min(row, other, key=lambda each: each.n))
        if other is None or other.n < row.n:
            levels[row.level] = row
    images = max((row.n for row in rows), default=0)
    cells = {}
    for key, levels in together.items():
        known = tuple(sorted(level for level in levels if level is not None))
        column = Column(**dict(zip(_SHARED, key[0], strict=True)), levels=known)
        chosen = tuple(levels[level] for level in column.levels or levels)
        cells[column] = Cell(chosen, images, tuple(others.get(key, ())))
    return cells


def _listed(levels: Sequence[float]) -> str:
    """Format levels: 1–5 for neighbours, else 1, 3, 5."""
    neighbours = len(levels) > 2 and all(after - before == 1 for before, after in pairwise(levels))
    return f"{levels[0]:g}–{levels[-1]:g}" if neighbours else ", ".join(f"{level:g}" for level in levels)


def _warning(row: Row, several: bool) -> str:
    """Explain a marked row.

    For masked gradients, the number of images that a black box breaks is left out: no two notes would be alike.
    """
    where = f"{row.level_name} {row.level:g}: " if several else ""
    unreliable = row.unreliable or row.black_box_stronger
    flags = {"unreliable": unreliable, "out of budget": row.out_of_budget}
    flagged = " and ".join(words for words, true in flags.items() if true)
    said = [part for part in row.note.split("; ") if not (row.masked and part.startswith(SHOWN_UP))]
    reasons = "; ".join(filter(None, [*said, *_unsaid(row)]))
    return f"{where}{flagged}" + (f" ({reasons})" if reasons else "")


def _unsaid(row: Row) -> list[str]:
    """Return what the flags of a row say and its note does not."""
    zero, abstained = (100 * (value or 0.0) for value in (row.zero_gradient_fraction, row.abstained))
    facts = {
        "predictions are random": row.randomized and row.kind != "certificate",
        f"{SHOWN_UP} succeeds where this attack fails": (
            row.black_box_stronger and not row.masked and SHOWN_UP not in row.note
        ),
        f"{zero:.3g} % of the input gradients are exactly zero": zero,
        f"abstains on {abstained:.3g} % of the images": abstained,
    }
    return [words for words, true in facts.items() if true and words not in row.note]
