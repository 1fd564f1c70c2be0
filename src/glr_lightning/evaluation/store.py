"""The results of a run that are kept: its table, and beside it what the rows were counted from.

It is written again after each row, so that an interruption loses at most one, and a row whose fingerprint is there
already need not be computed again.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, final

from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.per_image import PerImage, read_per_image, write_per_image
from glr_lightning.evaluation.row import Row, read_rows, write_rows
from glr_lightning.evaluation.runner import Result
from glr_lightning.evaluation.worst_case import WORST_CASE, cross_check
from glr_lightning.runs.trained_run import PER_IMAGE, ROBUSTNESS
from glr_lightning.storage import damaged

SAME = ["threat", "preset", "norm", "level_name", "level", "gradient_source", "surrogate", "targeted"]
SAME += ["noisy_passes", "n"]
"""The fields in which a row agrees with the one that it replaces."""


@final
class Store:
    """The rows of one run folder, and what each was counted from.

    Raises:
        CheckpointError: files that cannot be read or do not fit each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / ROBUSTNESS
        rows = read_rows(path) if path.exists() else []
        self.rows: list[Row] = [row for row in rows if row.kind != WORST_CASE]
        self.per_image: dict[str, PerImage] = read_per_image(folder / PER_IMAGE) if self.rows else {}
        for row in self.rows:
            known = self.per_image.get(row.fingerprint)
            if known is not None and (len(known.correct), known.correct.sum()) != (row.n, row.correct):
                raise damaged(folder / PER_IMAGE, f"it does not fit the row of {row.threat} in {ROBUSTNESS}")

    def require_weights(self, weights: str, forget: bool) -> None:
        """Let one table be about one network: rows of other weights are forgotten, or refused.

        Raises:
            ConfigurationError: rows of other weights, unless they may be forgotten.
        """
        others = {row.checkpoint for row in self.rows if row.weights != weights}
        if others and forget:
            self.rows, self.per_image = [], {}
        elif others:
            raise ConfigurationError(
                f"{self.folder / ROBUSTNESS} is about other weights (checkpoint={', '.join(sorted(others))}) than the "
                "ones to be tested; use again=true to replace it, or keep a copy of it elsewhere first."
            )

    def has(self, fingerprints: Iterable[str]) -> bool:
        """Whether all of these rows are there, with what they were counted from."""
        known = {row.fingerprint for row in self.rows} & self.per_image.keys()
        return known.issuperset(fingerprints)

    def rows_of(self, fingerprints: Collection[str]) -> list[Row]:
        """The rows with these fingerprints."""
        return [row for row in self.rows if row.fingerprint in fingerprints]

    def add(self, result: Result) -> None:
        """Put a row in the place of the one that it replaces, or at the end, and write both files."""
        new = result.row
        # another test set of the same size takes the old one's place: the two have no worst case in common
        self.rows = [row for row in self.rows if row.n != new.n or row.images == new.images]
        places = [place for place, row in enumerate(self.rows) if _identity(row) == _identity(new)]
        if places:
            self.rows[places[0]] = new
        else:
            self.rows.append(new)
        known = {row.fingerprint for row in self.rows}
        self.per_image[new.fingerprint] = result.per_image
        self.per_image = {key: each for key, each in self.per_image.items() if key in known}
        write_per_image(self.folder / PER_IMAGE, self.per_image)
        write_rows(self.folder / ROBUSTNESS, self.compared())

    def compared(self) -> list[Row]:
        """All rows, compared with each other, and the worst cases."""
        return cross_check(self.rows, {key: each.correct for key, each in self.per_image.items()})


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, field) for field in SAME)
