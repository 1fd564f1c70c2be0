"""glr-evaluate: reload trained runs, test them under threats, leave a table in each run folder."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import DictConfig

from glr_lightning import terminal
from glr_lightning.config import checked_root, resolve, store_root
from glr_lightning.errors import CheckpointError
from glr_lightning.evaluation.surrogate_options import SurrogateOptions
from glr_lightning.validation import Count, Seed, Threads


@dataclass(kw_only=True)
class DataOptions:
    """Of a run's data set, what may differ from machine to machine."""

    root: str | None = None


@dataclass(kw_only=True)
class EvaluateConfig:
    """The root of conf/evaluate.yaml. Hydra refuses other keys, `checked_root` other values."""

    run: Any
    checkpoint: Literal["best", "last"] = "best"
    seed: Seed = 0
    limit: Count | None = None
    again: bool = False
    noisy_passes: Count | None = None
    inference_noise: bool = False
    batch_size: Count = 1000
    device: str = "auto"
    threads: Threads | None = 1
    progress: bool = True
    trusted: list[str] = field(default_factory=list)
    data: DataOptions = field(default_factory=DataOptions)
    surrogate: SurrogateOptions = field(default_factory=SurrogateOptions)
    threat: dict[str, Any] | None = None


store_root("evaluate", EvaluateConfig)


def _evaluate(composed: DictConfig) -> None:
    if "run" not in composed:
        raise CheckpointError('which run? Give run=FOLDER, a glob such as "run=runs/*", or a list.')
    config = checked_root(EvaluateConfig, resolve(composed))
    with terminal.importing():
        from glr_lightning.evaluation.evaluate import evaluate_runs
        from glr_lightning.reporting.results import all_columns
        from glr_lightning.reporting.runs import read_runs
        from glr_lightning.reporting.tables import show
        from glr_lightning.reporting.tables.robustness import robustness_tables
        from glr_lightning.runs.allocator import keep_freed_memory
        from glr_lightning.runs.environment import cpu_threads
        from glr_lightning.runs.trained_run import find_runs

    keep_freed_memory()
    try:
        with cpu_threads(config["threads"]):
            evaluate_runs(config)
    except KeyboardInterrupt as interrupt:
        kept = "The rows so far are kept; the same command goes on from there."
        raise KeyboardInterrupt(" ".join(filter(None, [str(interrupt), kept]))) from None
    runs = read_runs(find_runs(config["run"]))
    show(robustness_tables(runs, all_columns(runs)))


def main() -> None:
    """Run glr-evaluate with the arguments of the command line."""
    terminal.run_command("evaluate", _evaluate)


if __name__ == "__main__":
    main()
