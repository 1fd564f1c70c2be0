"""glr-diagnose: bias, variance and cost of gradient estimators on one batch of one network.

diagnosis.md      the tables, what they are measured on, the figure
diagnosis.csv     every number, unrounded
diagnosis.png     relative variance against milliseconds
environment.json  versions, device, threads, command
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig

from glr_lightning import terminal
from glr_lightning.config import TrainConfig, checked_root, experiment_name, keys_of, resolve, short_name, store_root
from glr_lightning.errors import ConfigurationError
from glr_lightning.validation import Count, CountPerLayer

Repetitions = Annotated[int, Interval(ge=20)]
"""Fewer than 20 estimates say too little of their own spread."""


@dataclass
class ReferenceConfig:
    """How the reference gradient is estimated for an objective without an exact one."""

    copies: Count = MISSING
    repetitions: Repetitions = MISSING
    estimator: dict[str, str] = field(default_factory=dict)


OWN: list[tuple[str, Any, Any]] = [
    ("run", Any, None),
    ("checkpoint", Literal["best", "last"], MISSING),
    ("estimators", Any, MISSING),
    ("copies", CountPerLayer, MISSING),
    ("device", str, MISSING),
    ("repetitions", Repetitions, MISSING),
    ("reference", ReferenceConfig, field(default_factory=ReferenceConfig)),
    ("out", str, MISSING),
]
SHARED = {"batch_size", "seed", "threads", "progress", "trusted", "data.root"}
"""Options of glr-train that have a meaning of their own here, so that they may stand beside run=FOLDER."""

# The root of conf/diagnose.yaml: what glr-train takes, and `OWN`. It comes after conf/train.yaml and the experiment,
# so it has no values that could replace theirs.
DiagnoseConfig = make_dataclass(
    "DiagnoseConfig", [*((f.name, f.type, MISSING) for f in fields(TrainConfig)), *OWN], bases=(TrainConfig,)
)
store_root("diagnose", DiagnoseConfig)


def _require_one_subject(run: Any, overrides: Sequence[str]) -> None:
    """Either a run or an experiment. Raises ConfigurationError."""
    keys = keys_of(overrides)
    own = {name for name, _, _ in OWN}
    training = [key for key in keys if key.split(".")[0] not in own and key not in SHARED]
    names = ", ".join(map(short_name, training))
    if run is not None and training:
        raise ConfigurationError(
            f"run={run} brings its own configuration; leave out {names}, or leave out run to diagnose an "
            "untrained network, with experiment=NAME."
        )
    if run is None and not {"experiment", "method", "setting"} & set(keys):
        raise ConfigurationError(
            "what is to be diagnosed? Give run=FOLDER, a trained run, or experiment=NAME (or method=NAME "
            "setting=NAME), the untrained network of that experiment."
        )


def _diagnose(typed: Sequence[str], composed: DictConfig) -> None:
    _require_one_subject(composed.run, HydraConfig.get().overrides.task)
    config = resolve(composed)
    checked_root(DiagnoseConfig, config)  # before anything is loaded
    config["experiment"] = experiment_name(HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task)
    out = Path(config["out"]).expanduser()
    with terminal.importing():
        from glr_lightning.diagnosis.diagnose import TEXT, write_diagnosis
        from glr_lightning.reporting.tables import show
        from glr_lightning.runs.allocator import keep_freed_memory
        from glr_lightning.runs.environment import cpu_threads

    keep_freed_memory()
    with cpu_threads(config["threads"]):
        tables = write_diagnosis(config, out, ["glr-diagnose", *typed])
    show(tables)
    print(f"\ndiagnosis: {out / TEXT}")


def main() -> None:
    """Run glr-diagnose."""
    typed = sys.argv[1:]  # before short forms are written out
    terminal.run_command("diagnose", functools.partial(_diagnose, typed), own={name for name, _, _ in OWN})


if __name__ == "__main__":
    main()
