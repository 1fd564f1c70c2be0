"""The evaluation of a run in the format of RobustBench's model information.

RobustBench (Croce et al., "RobustBench: a standardized adversarial robustness benchmark", NeurIPS Datasets and
Benchmarks 2021) has a JSON file for each model, data set and threat model: accuracies in % as strings, `eps`, and what
must be known to read them. Here is one file for each run, with an entry for each of its threat models. A key that means
the same has RobustBench's name: `clean_acc`, `corruptions_acc`, `reported`, `external`, `unreliable`, `footnote` and
what describes the model. `autoattack_acc` stays null: the ensemble of attacks here is not AutoAttack, and its number is
`worst_case_acc`.
"""

import json
from typing import Any

from glr_lightning.evaluation.worst_case import WORST_CASE
from glr_lightning.reporting.columns import Cell, Column
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.tables.cells import estimator

FOLDER = "robustbench"
THREAT_MODELS = {"linf": "Linf", "l2": "L2"}
EVALUATION = (
    "worst_case_acc is the accuracy under the per-image worst case over the attacks named in the footnote. They are "
    "those of glr_lightning, not AutoAttack, so it must not be ranked beside autoattack_acc."
)


def robustbench_json(run: Run) -> str:
    """Return the file of a run; without an evaluation it has no entries."""
    content = {"name": run.name, "evaluation": EVALUATION, "entries": entries(run)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def entries(run: Run) -> list[dict[str, Any]]:
    """Return an entry for each norm and epsilon of a worst case and one for the corruptions, by noisy passes."""
    found = []
    for column, cell in run.cells.items():
        if column.kind == WORST_CASE:
            own: dict[str, Any] = {"autoattack_acc": None, "worst_case_acc": _percent(cell.accuracy)}
            found.append(_entry(run, column, [cell], THREAT_MODELS.get(column.norm, column.norm), own))
    for passes in dict.fromkeys(column.noisy_passes for column in run.cells):
        corrupted = {c: cell for c, cell in run.cells.items() if c.kind == "corruption" and c.noisy_passes == passes}
        if corrupted:
            accuracy = sum(cell.accuracy for cell in corrupted.values()) / len(corrupted)
            own = {"corruptions_acc": _percent(accuracy), "corruptions": [" ".join(c.words) for c in corrupted]}
            found.append(_entry(run, next(iter(corrupted)), list(corrupted.values()), "corruptions", own))
    return found


def _entry(run: Run, column: Column, cells: list[Cell], threat_model: str, own: dict[str, Any]) -> dict[str, Any]:
    rows = [row for cell in cells for row in cell.rows]
    same = {"kind": "clean", "noisy_passes": column.noisy_passes, "images": rows[0].images}  # of the same images
    clean = [row for row in run.rows if all(getattr(row, field) == value for field, value in same.items())]
    warnings = [words for cell in cells for words in (*cell.warnings, *cell.remarks)]
    return {
        "name": run.name,
        "link": None,
        "authors": None,
        "venue": None,
        "dataset": run.target("data").lower(),
        "threat_model": threat_model,
        "architecture": _architecture(run),
        "additional_data": False,
        "number_forward_passes": column.noisy_passes or 1,
        "eps": f"{column.levels[0]:g}" if column.kind == WORST_CASE else None,
        "clean_acc": _percent(clean[0].accuracy) if clean else None,
        "reported": None,
        "external": None,
        **own,
        "unreliable": any(cell.warnings for cell in cells),
        "randomized": any(row.randomized for row in rows),
        "number_images": min(row.n for row in rows),
        "footnote": "; ".join(dict.fromkeys(warnings)),
    }


def _architecture(run: Run) -> str:
    node = run.config.get("network")
    options = node if isinstance(node, dict) else {}
    widths = [
        f"{', '.join(map(str, counts if isinstance(counts, list) else [counts]))} {what}"
        for what, counts in (("channels", options.get("channels")), ("hidden units", options.get("hidden")))
        if counts
    ]
    inside = f" ({'; '.join(widths)})" if widths else ""
    return f"{run.target('network')}{inside}, {run.target('activation')}, trained by {estimator(run)}"


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"
