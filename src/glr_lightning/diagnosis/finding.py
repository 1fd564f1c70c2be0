"""The rows of a diagnosis, one for each estimator, number of copies and layer, and their CSV file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from glr_lightning.errors import CheckpointError

UNBIASED, UNCLEAR, DECLARED, BIASED, NO_REFERENCE, REFUSED = (
    "unbiased",
    "too noisy to tell",
    "biased (declared)",
    "BIASED",
    "no reference",
    "refused",
)


@dataclass(frozen=True)
class Finding:
    """One estimator at one number of copies on one layer; `statistics.py` defines the numbers.

    None is a number that does not exist, as the copies of an estimator that has none. Where layers have copies of their
    own, they are the layer's. A refusal has no layer.
    """

    layer: str
    estimator: str
    copies: int | None
    outcome: str  # of the test for bias
    objective: str = ""
    source: str = ""  # where the layer's gradient comes from
    z: float | None = None
    critical: float | None = None
    relative_bias: float | None = None
    relative_bias_error: float | None = None
    relative_variance: float | None = None
    cosine: float | None = None
    alignment: float | None = None
    forwards: int | None = None
    milliseconds: float | None = None
    variance_time: float | None = None
    note: str = ""  # the bias that is declared, why there is no reference, the refusal

    @property
    def refusal(self) -> str:
        """The refusal in words."""
        return f"{self.estimator}{_at(self.copies)} refused: {self.note}"


FIELDS = tuple(field.name for field in fields(Finding))


def findings_csv(findings: Sequence[Finding]) -> str:
    """The findings as CSV, every number unrounded."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(asdict(finding) for finding in findings)
    return text.getvalue()


def read_findings(path: Path) -> list[Finding]:
    """The findings of a diagnosis.csv, with their types. Raises CheckpointError if it is missing or malformed."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Finding(**{f.name: _parsed(f.type, row[f.name]) for f in fields(Finding)})
                for row in map(_renamed, csv.DictReader(file))
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no table of a diagnosis ({error!r}); diagnose again.") from None


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row under the present names; version 0.4 named the outcome `verdict`."""
    return {"outcome" if name == "verdict" else name: value for name, value in row.items()}


def _parsed(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    return get_args(kind)[0](text) if text else None


def layer_names(findings: Sequence[Finding]) -> list[str]:
    """The layers that were measured, in order."""
    return list(dict.fromkeys(f.layer for f in findings if f.outcome != REFUSED))


def _at(copies: int | None) -> str:
    return "" if copies is None else f" at K = {copies}"
