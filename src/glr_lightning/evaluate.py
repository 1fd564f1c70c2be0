"""glr-evaluate: reload trained runs, test them under threats, leave a table in each run folder."""

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig
from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from glr_lightning import cli
from glr_lightning.config import CONF_DIR, TRUSTED, build, compose, config_hash, cpu_threads, resolve
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.noisy import noise_averaged, require_noise
from glr_lightning.progress import progress_bar
from glr_lightning.results import all_columns, read_runs
from glr_lightning.robustness import evaluate
from glr_lightning.rows import Row, read_rows, write_rows
from glr_lightning.runs import BEST, CONFIG, LAST, ROBUSTNESS, TrainedRun, find_runs, load_run
from glr_lightning.tables import robustness_table, show
from glr_lightning.threats import Threat
from glr_lightning.threats.clean import clean
from glr_lightning.train import train

NOISY = "noisy passes"
CHECKPOINTS = {"best": BEST, "last": LAST}


@dataclass
class EvaluateConfig:
    """The root of conf/evaluate.yaml; Hydra refuses other keys and other types."""

    run: Any = MISSING
    checkpoint: str = "best"
    seed: int = 0
    limit: int | None = None
    noisy_passes: int | None = None
    batch_size: int = 1000
    device: str = "auto"
    threads: int | None = 1
    progress: bool = True
    trusted: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    surrogate: dict[str, Any] = field(default_factory=dict)
    threat: Any = None


ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)


def evaluate_runs(config: dict[str, Any]) -> list[Row]:
    """Evaluate every run that a resolved configuration names and write `<run>/robustness.csv`, row by row.

    Rows of earlier evaluations stay unless the same threat at the same level is evaluated again. With noisy_passes=S
    the clean images are also judged by the mean of S noisy predictions, in a row of its own beside the noise-free one.

    Raises:
        ConfigurationError, CheckpointError, DataError: nothing to evaluate, or something that cannot be used.
    """
    folders = find_runs(config["run"])
    threats: dict[str, Threat] = {name: build(node, trusted=None) for name, node in (config["threat"] or {}).items()}
    device = torch_device(config["device"])
    trusted = (*TRUSTED, *(f"{package}." for package in config["trusted"]))
    runs = [
        load_run(folder, trusted=trusted, root=config["data"]["root"], checkpoint=checkpoint_path(config["checkpoint"]))
        for folder in folders
    ]
    passes = config["noisy_passes"]
    noisy = {str(run.folder): noise_averaged(run, passes, trusted) for run in runs} if passes is not None else {}
    require_noise(noisy)
    noisily = {"clean": Threat(clean, "clean", levels=((passes, {}),), level_name=NOISY)}
    if noisy and not any(threat.kind == "clean" for threat in threats.values()):
        threats = {"clean": Threat(clean, "clean"), **threats}  # which the noisy figure stands beside
    levels = sum(len(threat.levels) for threat in threats.values()) + bool(noisy)
    test_sets: dict[str, tuple[Tensor, Tensor]] = {}
    surrogates: dict[str, nn.Module] = {}
    results: list[Row] = []
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with progress_bar(*columns, enabled=config["progress"]) as bar:
        task = bar.add_task("", total=len(runs) * levels)
        for run in runs:

            def describe(words: str, name: str = run.folder.name) -> None:
                bar.update(task, description=f"{name}: {words}")

            key = _data_key(run)
            if key not in test_sets:
                test_sets[key] = _limited(run, config["limit"])
            if key not in surrogates and any(t.gradient_source == "transfer" for t in threats.values()):
                describe("surrogate")
                surrogates[key] = load_surrogate(run, config["surrogate"], trusted=trusted).to(device)
            common = {"seed": config["seed"], "batch_size": config["batch_size"], "run": str(run.folder)}
            common |= {"checkpoint": config["checkpoint"], "progress": describe}
            network, surrogate = run.network.to(device), surrogates.get(key)
            rows = evaluate(network, *test_sets[key], threats, surrogate=surrogate, **common)
            averaged = noisy.get(str(run.folder))
            if averaged is not None:
                rows = itertools.chain(rows, evaluate(averaged, *test_sets[key], noisily, **common))
            results += _write_as_they_come(run.folder / ROBUSTNESS, rows, lambda: bar.advance(task))
    return results


def load_surrogate(run: TrainedRun, options: dict[str, Any], trusted: tuple[str, ...] = TRUSTED) -> nn.Module:
    """The network that transfer attacks take their gradient from, for the data of a run.

    It is trained by `train` from its own experiment, once, and kept in `<dir>/<experiment>-<config hash>`; an
    interrupted training leaves nothing behind.

    Args:
        run: names the data, and where they lie.
        options: `experiment`, a training experiment; `dir`; and `epochs`, a number, or one by name of the data set,
            where not the experiment's own.
        trusted: as for `load_run`.
    """
    overrides = [f"data={run.data.name}", f"experiment={options['experiment']}", "progress=false"]
    epochs = options.get("epochs", {})
    epochs = epochs.get(run.data.name) if isinstance(epochs, dict) else epochs  # one number: of all data sets
    config = compose(overrides + ([] if epochs is None else [f"epochs={epochs}"]))
    own = {name: config["data"][name] for name in ("batch_size", "validation", "seed")}
    config["data"] = run.config["data"] | own | {"root": None if run.data.root is None else str(run.data.root)}
    parent = Path(options["dir"])
    folder = parent / f"{options['experiment'].replace('/', '-')}-{config_hash(config)}"
    if not (folder / CONFIG).exists():
        cli.console.print(f"training the surrogate {folder} (once)")
        parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=".training-", dir=parent))
        try:
            train(config, workplace / "run")
            with contextlib.suppress(OSError):  # another process may have put the same one there meanwhile
                (workplace / "run").rename(folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("The surrogate will be trained again.") from None
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    return load_run(folder, trusted=trusted, root=config["data"]["root"]).network


def _data_key(run: TrainedRun) -> str:
    """What two runs share if they are tested on the same images: the data set and how it is loaded."""
    test_set = {k: v for k, v in run.config["data"].items() if k not in {"batch_size", "seed", "validation"}}
    return json.dumps(test_set, sort_keys=True)


def _limited(run: TrainedRun, limit: int | None) -> tuple[Tensor, Tensor]:
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit must be at least 1 image, or null for all, got {limit}.")
    x, y = run.data.split("test")
    return x[:limit], y[:limit]


def _write_as_they_come(path: Path, rows: Iterable[Row], advance: Callable[[], None]) -> list[Row]:
    """Write the table again after each new row, so that an interruption loses at most one."""
    kept = read_rows(path) if path.exists() else []
    new: list[Row] = []
    for row in rows:
        new.append(row)
        kept = [old for old in kept if _identity(old) != _identity(row)]
        write_rows(path, kept + new)
        advance()
    return new


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("threat", "preset", "level_name", "level", "gradient_source"))


def checkpoint_path(name: str) -> Path:
    """`best` or `last`, relative to a run folder. Raises ConfigurationError."""
    if name not in CHECKPOINTS:
        raise ConfigurationError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {name!r}.")
    return CHECKPOINTS[name]


def torch_device(name: str) -> torch.device:
    """auto, cpu, gpu, or a device of torch. Raises ConfigurationError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device="cuda" if name == "gpu" else name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device={name} cannot be used: {str(error).splitlines()[0]}; use device=cpu."
        ) from None


@hydra.main(config_path=CONF_DIR, config_name="evaluate", version_base="1.3")
def _main(composed: DictConfig) -> None:
    def job() -> None:
        if "run" not in composed:
            raise CheckpointError('which run? Give run=FOLDER, a glob such as "run=runs/*", or a list.')
        config = resolve(composed)
        with cpu_threads(config["threads"]):
            evaluate_runs(config)
        runs = read_runs(find_runs(config["run"]))
        show([robustness_table(runs, all_columns(runs))])

    cli.run_job(job)


def main() -> None:
    cli.run_main(_main)


if __name__ == "__main__":
    main()
