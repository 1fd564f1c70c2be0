"""The table of runs: settings, test accuracy, cost of training."""

from collections.abc import Sequence

from glr_lightning.reporting.results import accuracy_interval, differences
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.tables.cells import estimator, percent
from glr_lightning.reporting.tables.table import NONE, Table


def runs_table(runs: Sequence[Run]) -> Table:
    """Return a table with a row for each run."""
    differs = differences(runs)
    words = ["run", "data", "network", "activation", "loss", "estimator", "also differs in"]
    numbers = ["test accuracy / %", "95 % interval", "best epoch", "train seconds", "forwards", "parameters"]
    rows = []
    for run in runs:
        targets = [run.target(section) for section in ("data", "network", "activation", "loss")]
        rows.append([run.name, *targets, estimator(run), differs[run.name], *_training(run)])
    notes = [
        "Epochs count from 1; forwards are forward passes of one image. The interval is Wilson's; it is there if the "
        "clean test images were evaluated and gave the same accuracy."
    ]
    unfinished = [run.name for run in runs if not run.result]
    if unfinished:
        notes.append(f"Without result.json, so training has not ended: {', '.join(unfinished)}.")
    heading = [[word] for word in words + numbers]
    return Table(heading, rows, notes, text_columns=len(words))


def _training(run: Run) -> list[str]:
    if not run.result:
        return [NONE] * 6
    r, interval = run.result, accuracy_interval(run)
    bounds = " – ".join(map(percent, interval)) if interval else NONE
    numbers = [f"{r['train_seconds']:.1f}", f"{r['forwards']:,}", f"{r['parameters']:,}"]
    return [percent(r["test_accuracy"]), bounds, str(r["best_epoch"] + 1), *numbers]
