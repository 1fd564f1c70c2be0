"""glr-train: train one network and leave a run folder."""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Column, Table

from glr_lightning import terminal
from glr_lightning.config import (
    TrainConfig,
    checked_root,
    config_hash,
    experiment_name,
    keys_of,
    resolve,
    short_name,
    short_overrides,
)
from glr_lightning.errors import ConfigurationError
from glr_lightning.validation.words import shown

RUN_DIR_OF_RANK_0 = "GLR_RUN_DIR"


def _with_place(config: dict[str, Any], composed: DictConfig) -> dict[str, Any]:
    """The configuration of a run to resume, with what may differ from machine to machine taken from the call.

    That is what leaves its identity as it is: one GPU in place of another, but not two in place of one.
    """
    from glr_lightning.runs.trained_run import at_root

    for override in HydraConfig.get().overrides.task:
        (key,) = keys_of([override])
        section, _, option = key.partition(".")
        before = config
        if key == "data.root":
            config = {**config, "data": at_root(config["data"], composed.data.root)}
        elif key in {"progress", "threads"}:
            config = {**config, key: composed[key]}
        elif section == "trainer" and option in composed.trainer:
            value = OmegaConf.to_container(composed.trainer)[option]  # type: ignore[index, call-overload]  # a section is a dict
            config = {**config, "trainer": {**config["trainer"], option: value}}
        elif key not in {"resume", "trusted"}:
            raise ConfigurationError(
                f"resume takes the run's own configuration; leave out {short_overrides(override)}.", option=key
            )
        if config_hash(config) != config_hash(before):
            raise ConfigurationError(
                f"the run to resume has {short_name(key)}={shown(before[section].get(option))}, and another value "
                f"would train another network; leave out {short_overrides(override)}, or train anew.",
                option=key,
            )
    return config


def _show(result: dict[str, Any], run_dir: Path) -> None:
    from glr_lightning.training.callbacks.class_collapse import in_words

    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")  # a long path whole, to be copied
    table.add_row(
        "test accuracy",
        f"[bold]{100 * result['test_accuracy']:.2f} %[/] (epoch {result['best_epoch'] + 1} of {result['epochs']})",
    )
    table.add_row("training", f"{result['train_seconds']:.1f} s, {result['forwards']:,} forward passes of one image")
    if result["dead_classes"]:
        table.add_row("dead", f"{in_words(result['dead_classes'])}, hardly predicted")
    table.add_row("run folder", str(run_dir))
    terminal.console.print(table)


def _train(composed: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Train, and return the run folder and the result, which is empty but in the first process."""
    # before torch is imported
    fresh = checked_root(TrainConfig, resolve(composed)) if composed.resume is None else None
    with terminal.importing():
        from glr_lightning.runs.allocator import keep_freed_memory
        from glr_lightning.runs.environment import cpu_threads
        from glr_lightning.runs.trained_run import read_config
        from glr_lightning.training.fit import train

    if fresh is None:
        run_dir = Path(composed.resume)
        config = _with_place(read_config(run_dir), composed)
    else:
        config = fresh
        hydra_config = HydraConfig.get()
        config["experiment"] = experiment_name(hydra_config.runtime.choices, hydra_config.overrides.task)
        run_dir = Path(HydraConfig.get().runtime.output_dir if terminal.is_multirun() else config["run_dir"])
        if "LOCAL_RANK" in os.environ:  # a process that strategy=ddp started: its own run_dir has a later time
            run_dir = Path(os.environ.get(RUN_DIR_OF_RANK_0, run_dir))
        os.environ[RUN_DIR_OF_RANK_0] = str(run_dir)
    if terminal.is_multirun():
        terminal.console.print(f"job {HydraConfig.get().job.num}: {run_dir.name}", highlight=False)
    keep_freed_memory()
    with cpu_threads(config.get("threads")):
        result = train(config, run_dir, resume=composed.resume is not None, trusted=list(composed.trusted))
    if result:
        _show(result, run_dir)
    return run_dir, result


def _show_sweep(finished: list[tuple[Path, dict[str, Any]]]) -> None:
    table = Table(Column("run", overflow="fold"), "test accuracy / %", title="sweep")
    for run_dir, result in finished:
        table.add_row(run_dir.name, f"{100 * result['test_accuracy']:.2f}")
    terminal.console.print(table)


def main() -> None:
    """Run glr-train; a sweep ends with a table of its runs."""
    trained: list[tuple[Path, dict[str, Any]]] = []
    try:
        terminal.run_command("train", lambda composed: trained.append(_train(composed)), own=())
    finally:
        finished = [(run_dir, result) for run_dir, result in trained if result]
        if len(finished) > 1:
            _show_sweep(finished)


if __name__ == "__main__":
    main()
