"""The record of a run's evaluation: its table, and beside it what the rows were counted from.

It is written again after each row, so that an interruption loses at most one, and a row whose fingerprint is there
already need not be computed again.
"""

from pathlib import Path
from typing import Any

from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.harness import Judged
from glr_lightning.evaluation.per_image import Evidence, read_evidence, write_evidence
from glr_lightning.evaluation.row import Row, read_rows, write_rows
from glr_lightning.evaluation.worst_case import WORST_CASE, cross_check
from glr_lightning.runs.trained_run import EVIDENCE, ROBUSTNESS
from glr_lightning.storage import damaged

SAME = ["threat", "preset", "norm", "level_name", "level", "gradient_source", "surrogate", "targeted"]
SAME += ["noisy_passes", "n"]
"""The fields in which a row agrees with the one that it replaces."""


class Record:
    """What is known of one run.

    Raises CheckpointError for files that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / ROBUSTNESS
        rows = read_rows(path) if path.exists() else []
        self.rows: list[Row] = [row for row in rows if row.kind != WORST_CASE]
        self.evidence: dict[str, Evidence] = read_evidence(folder / EVIDENCE) if self.rows else {}
        for row in self.rows:
            known = self.evidence.get(row.fingerprint)
            if known is not None and (len(known.correct), known.correct.sum()) != (row.n, row.correct):
                raise damaged(folder / EVIDENCE, f"it does not fit the row of {row.threat} in {ROBUSTNESS}")

    def require_weights(self, weights: str, forget: bool) -> None:
        """Let one table be about one network: rows of other weights are forgotten, or refused.

        Raises ConfigurationError for rows of other weights, unless they may be forgotten.
        """
        others = {row.checkpoint for row in self.rows if row.weights != weights}
        if others and forget:
            self.rows, self.evidence = [], {}
        elif others:
            raise ConfigurationError(
                f"{self.folder / ROBUSTNESS} is about other weights (checkpoint={', '.join(sorted(others))}) than the "
                "ones to be tested; use again=true to replace it, or keep a copy of it elsewhere first."
            )

    def has(self, fingerprint: str) -> bool:
        """Is the row there, with what it was counted from?"""
        return fingerprint in self.evidence and any(row.fingerprint == fingerprint for row in self.rows)

    def add(self, judged: Judged) -> None:
        """Put a row in the place of the one that it replaces, or at the end, and write both files."""
        new = judged.row
        # another test set of so many images takes the old one's place: the two have no worst case in common
        self.rows = [row for row in self.rows if row.n != new.n or row.images == new.images]
        identity = _identity(new)
        places = [place for place, row in enumerate(self.rows) if _identity(row) == identity]
        if places:
            self.rows[places[0]] = judged.row
        else:
            self.rows.append(judged.row)
        self.evidence[judged.row.fingerprint] = judged.evidence
        known = {row.fingerprint for row in self.rows}
        self.evidence = {key: evidence for key, evidence in self.evidence.items() if key in known}
        write_evidence(self.folder / EVIDENCE, self.evidence)
        write_rows(self.folder / ROBUSTNESS, self.checked())

    def checked(self) -> list[Row]:
        """All rows, compared with each other, and the worst cases."""
        return cross_check(self.rows, {key: evidence.correct for key, evidence in self.evidence.items()})


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, field) for field in SAME)
