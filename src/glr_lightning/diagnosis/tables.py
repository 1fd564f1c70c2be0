"""The tables of a diagnosis."""

import math
from collections.abc import Sequence

from glr_lightning.diagnosis.finding import Finding, layer_names
from glr_lightning.reporting.tables import NONE, Table


def by_figure_of_merit(findings: Sequence[Finding]) -> list[Finding]:
    """The findings by variance x time, the smallest first."""
    return sorted(findings, key=lambda f: math.inf if f.variance_time is None else f.variance_time)


def finding_tables(findings: Sequence[Finding], notes: Sequence[str]) -> list[Table]:
    """A table for each layer, the smallest variance x time first; the notes stand below the last."""
    words = ["estimator", "K", "objective", "outcome"]
    numbers = ["largest |z|", "bias / %", "relative variance", "cosine", "alignment", "forwards", "ms", "variance × ms"]
    layers = layer_names(findings)
    tables = []
    for layer in layers:
        rows = [_cells(f) for f in by_figure_of_merit([f for f in findings if f.layer == layer])]
        heading = [[f"{layer or 'network'}: {words[0]}"], *([word] for word in [*words[1:], *numbers])]
        tables.append(Table(heading, rows, list(notes) if layer == layers[-1] else [], text_columns=len(words)))
    return tables


def _cells(f: Finding) -> list[str]:
    bias = NONE
    if f.relative_bias is not None and f.relative_bias_error is not None:
        bias = f"{round(100 * f.relative_bias, 1) + 0.0:+.1f} ± {100 * f.relative_bias_error:.1f}"
    ends = [_number(f.relative_variance), _number(f.cosine, ".3f"), _number(f.alignment, ".3f")]
    cost = [NONE if f.forwards is None else f"{f.forwards:,}", _number(f.milliseconds), _number(f.variance_time)]
    copies = NONE if f.copies is None else str(f.copies)
    return [f.estimator, copies, f.objective, f.outcome, _number(f.z, ".1f"), bias, *ends, *cost]


def _number(value: float | None, form: str = "#.3g") -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if form == "#.3g" and value >= 1000 else f"{value:{form}}".rstrip(".")
