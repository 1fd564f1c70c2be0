"""Go on with an interrupted run: what its folder must hold, and the metrics that it has already."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger

from glr_lightning.config import load_yaml
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.runs.trained_run import CONFIG, LAST, METRICS, RESULT, load_checkpoint
from glr_lightning.runs.upgrade import upgrade


def require_resumable(folder: Path) -> None:
    """Refuse a folder that a training cannot go on from.

    Raises:
        ConfigurationError: a run that is finished, or that an earlier version began.
        CheckpointError: no usable last checkpoint.
    """
    last = load_checkpoint(folder / LAST)
    if not last.get("optimizer_states") or not last.get("lr_schedulers"):
        raise CheckpointError(f"{folder / LAST} holds no optimizer to go on with; it is damaged.")
    if (folder / RESULT).exists():
        raise ConfigurationError(
            f"the run in {folder} is finished after {last['epoch'] + 1} epochs; there is nothing to resume.",
            option="resume",
        )
    written = load_yaml(folder / CONFIG)
    if upgrade(written) != written:
        raise ConfigurationError(
            f"the run in {folder} was begun by an earlier version of glr-train, whose checkpoints hold another state; "
            "go on with that version, or train anew. glr-evaluate and glr-report take the folder as it is.",
            option="resume",
        )


def restore_metrics(loggers: list[Logger], folder: Path) -> None:
    """Give CSV loggers, which start with an empty file, the rows up to the last checkpoint; later ones come again.

    Raises CheckpointError for a damaged metrics.csv.
    """
    start_metrics(loggers, _read_metrics(folder))


def start_metrics(loggers: list[Logger], rows: Sequence[dict[str, float]] = ()) -> None:
    """Let CSV loggers begin their file with these rows."""
    with warnings.catch_warnings():  # of a folder that is not empty, as one with a config.yaml never is
        warnings.filterwarnings("ignore", "Experiment logs directory .* is not empty")
        for logger in loggers:
            if isinstance(logger, CSVLogger):
                logger.experiment.metrics.extend(rows)


def _read_metrics(folder: Path) -> list[dict[str, float]]:
    path, steps = folder / METRICS, load_checkpoint(folder / LAST)["global_step"]
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: _number(text) for key, text in row.items() if text} for row in csv.DictReader(file)]
        return [row for row in rows if row["step"] < steps]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Remove it to resume without the earlier metrics.") from None


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)
