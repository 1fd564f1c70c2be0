"""glr-evaluate: reload trained runs, test them under threats, leave a table in each run folder."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from glr_lightning import cli
from glr_lightning.config import CONF_DIR, TRUSTED, build, cpu_threads, resolve
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.noisy import noise_averaged, require_noise
from glr_lightning.progress import progress_bar
from glr_lightning.record import Record
from glr_lightning.results import all_columns, read_runs
from glr_lightning.robustness import Examination, Judged, Trial, trials, weights_hash
from glr_lightning.rows import Row
from glr_lightning.runs import BEST, LAST, TrainedRun, find_runs, load_run
from glr_lightning.surrogates import load_surrogate, wanted, with_kept_images
from glr_lightning.tables import robustness_table, show
from glr_lightning.threats import Threat
from glr_lightning.threats.clean import clean

CLEAN = Threat(clean, "clean")
CHECKPOINTS = {"best": BEST, "last": LAST}


@dataclass
class EvaluateConfig:
    """The root of conf/evaluate.yaml; Hydra refuses other keys and other types."""

    run: Any = MISSING
    checkpoint: str = "best"
    seed: int = 0
    limit: int | None = None
    again: bool = False
    noisy_passes: int | None = None
    inference_noise: bool = False
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

    Rows of earlier evaluations stay, and those that would come out the same are not computed again unless `again`. With
    noisy_passes=S the clean images are also judged by the mean of S noisy predictions, in a row of its own beside the
    noise-free one; with inference_noise that noisy network is the one that all threats are run against.

    Returns:
        The rows that were asked for.

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
    noisy = _noisy_networks(runs, config, trusted)
    if noisy and not any(threat.kind == "clean" for threat in threats.values()):
        threats = {"clean": CLEAN, **threats}  # which the noisy figure stands beside
    experiments = wanted(threats, config["surrogate"])
    found = trials(threats, experiments)
    records = [Record(run.folder) for run in runs]
    for run, record in zip(runs, records, strict=True):
        record.require_weights(weights_hash(run.network), forget=config["again"])
    test_sets: dict[str, tuple[Tensor, Tensor]] = {}
    surrogates: dict[str, dict[str, TrainedRun]] = {}
    results: list[Row] = []
    kept = 0
    columns = (BarColumn(bar_width=20), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with progress_bar(*columns, enabled=config["progress"]) as bar:
        beside = bool(noisy) and not config["inference_noise"]
        task = bar.add_task("", total=len(runs) * (len(found) + beside))
        for place, (run, record) in enumerate(zip(runs, records, strict=True)):
            before = place * (len(found) + beside)

            def describe(words: str, done: float, name: str = run.folder.name, before: int = before) -> None:
                bar.update(task, completed=before + done, description=f"{name}: {words}")

            key = _data_key(run)
            if key not in test_sets:
                test_sets[key] = _limited(run, config["limit"])
                surrogates[key] = {}
                for experiment in experiments:
                    describe(f"surrogate {experiment}", 0)
                    surrogate = load_surrogate(run, experiment, config["surrogate"], trusted)
                    surrogate.network.to(device)
                    surrogates[key][experiment] = surrogate
            common = {
                "seed": config["seed"],
                "surrogates": {name: surrogate.network for name, surrogate in surrogates[key].items()},
                "batch_size": config["batch_size"],
                "run": str(run.folder),
                "checkpoint": config["checkpoint"],
            }
            network = noisy[str(run.folder)] if config["inference_noise"] else run.network
            asked = [(Examination(network.to(device), *test_sets[key], **common), trial) for trial in found[:1]]
            asked += [(asked[0][0], trial) for trial in found[1:]]
            if beside:
                averaged = Examination(noisy[str(run.folder)].to(device), *test_sets[key], **common)
                asked.append((averaged, Trial("clean", CLEAN, None, {})))
            for number, (examination, trial) in enumerate(asked):
                describe(trial.words, number)
                fingerprint = examination.fingerprint(trial)
                if record.has(fingerprint) and not config["again"]:
                    kept += 1
                else:
                    record.add(_judge(examination, trial, surrogates[key], config["surrogate"], describe, number))
                results.append(next(row for row in record.rows if row["fingerprint"] == fingerprint))
            describe("", len(asked))
    if kept:
        cli.console.print(f"{kept} of {len(results)} rows were there already; again=true computes them again.")
    return results


def _noisy_networks(runs: Sequence[TrainedRun], config: dict[str, Any], trusted: tuple[str, ...]) -> dict[str, Any]:
    """The runs' networks with their noise, by folder, where asked for. Raises ConfigurationError for runs without."""
    passes = config["noisy_passes"]
    if passes is None:
        if config["inference_noise"]:
            raise ConfigurationError(
                "inference_noise=true tests the mean prediction of several noisy passes; say of how many, for example "
                "noisy_passes=32."
            )
        return {}
    noisy = {str(run.folder): noise_averaged(run, passes, trusted) for run in runs}
    require_noise(noisy)
    return noisy


def _judge(
    examination: Examination,
    trial: Trial,
    surrogates: Mapping[str, TrainedRun],
    options: Mapping[str, Any],
    describe: Callable[[str, float], None],
    number: int,
) -> Judged:
    """One trial, with images of a transfer attack made once and kept. describe: says what is done, and how far."""
    fingerprint, done = examination.fingerprint(trial), itertools.count(1)

    def advance() -> None:
        describe(trial.words, number + min(1.0, next(done) / len(examination.batches)))

    surrogate = surrogates.get(trial.surrogate)
    if surrogate is not None and options.get("keep_images", True):
        trial = with_kept_images(examination, trial, surrogate.folder, advance)
    judged = examination.judge(trial, advance)
    return replace(judged, row=judged.row | {"fingerprint": fingerprint})


def _data_key(run: TrainedRun) -> str:
    """What two runs share if they are tested on the same images: the data set and how it is loaded."""
    test_set = {k: v for k, v in run.config["data"].items() if k not in {"batch_size", "seed", "validation"}}
    return json.dumps(test_set, sort_keys=True)


def _limited(run: TrainedRun, limit: int | None) -> tuple[Tensor, Tensor]:
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit must be at least 1 image, or null for all, got {limit}.")
    x, y = run.data.split("test")
    return x[:limit], y[:limit]


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
