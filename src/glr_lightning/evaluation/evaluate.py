"""Evaluate trained runs: every threat against every run, row by row, into the run folders."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from glr_lightning import terminal
from glr_lightning.config import TRUSTED, build
from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Trial, trials
from glr_lightning.evaluation.certification import Certification
from glr_lightning.evaluation.fingerprints import weights_hash
from glr_lightning.evaluation.harness import Examination, Judged
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.store import Record
from glr_lightning.evaluation.surrogates import load_surrogate, wanted, with_kept_images
from glr_lightning.runs.environment import torch_device
from glr_lightning.runs.trained_run import BEST, LAST, TrainedRun, find_runs, load_run
from glr_lightning.terminal import progress_bar
from glr_lightning.threats import Clean
from glr_lightning.training.trained_noise import noise_averaged, require_noise

CLEAN = Clean()


OF_TRAINING = {"batch_size", "seed", "validation", "flip", "crop", "download", "cache"}
"""The options of a data set that change nothing about its test images."""


CHECKPOINTS = {"best": BEST, "last": LAST}


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
    threats: dict[str, Any] = {name: _threat(name, node) for name, node in (config["threat"] or {}).items()}
    certifications = {name: threat for name, threat in threats.items() if isinstance(threat, Certification)}
    threats = {name: threat for name, threat in threats.items() if name not in certifications}
    device = torch_device(config["device"])
    trusted = (*TRUSTED, *(f"{package}." for package in config["trusted"]))
    runs = [
        load_run(folder, trusted=trusted, root=config["data"]["root"], checkpoint=checkpoint_path(config["checkpoint"]))
        for folder in folders
    ]
    for run in runs:
        run.data.prepare_data()  # which may take its time, with a progress bar of its own
    noisy = _noisy_networks(runs, config, trusted)
    if noisy and not any(threat.kind == "clean" for threat in threats.values()):
        threats = {"clean": CLEAN, **threats}  # which the noisy figure stands beside
    experiments = wanted(threats, config["surrogate"])
    found = trials(threats, experiments) if threats or not certifications else []
    records = [Record(run.folder) for run in runs]
    for run, record in zip(runs, records, strict=True):
        record.require_weights(weights_hash(run.network), forget=config["again"])
        for certification in certifications.values():
            _require_certifiable(run, certification, trusted)
    results: list[Row] = []
    kept = 0
    columns = (BarColumn(bar_width=20), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with progress_bar(*columns, enabled=config["progress"]) as bar:
        shown = bar.add_task("", total=len(runs))
        shared = Shared(config, experiments, device, trusted, lambda words: bar.update(shown, description=words))
        for place, (run, record) in enumerate(zip(runs, records, strict=True)):
            tasks = _tasks(run, shared, found, certifications, noisy.get(str(run.folder)), config["inference_noise"])
            for number, task in enumerate(tasks):
                if all(map(record.has, task.fingerprints)) and not config["again"]:
                    kept += len(task.fingerprints)
                else:
                    bar.update(shown, description=f"{run.folder.name}: {task.words}")
                    share = 1.0 / len(tasks) / task.batches
                    for judged in task.judge(lambda share=share: bar.advance(shown, share)):  # type: ignore[misc]
                        record.add(judged)
                bar.update(shown, completed=place + (number + 1) / len(tasks))
                results += [row for row in record.rows if row.fingerprint in task.fingerprints]
        bar.update(shown, description="")
    if kept:
        terminal.console.print(f"{kept} of {len(results)} rows were there already; again=true computes them again.")
    return results


class Shared:
    """What the runs of one data set share, loaded when it is first asked for: test images and surrogates."""

    def __init__(
        self,
        config: Mapping[str, Any],
        experiments: Sequence[str],
        device: torch.device,
        trusted: tuple[str, ...],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.experiments, self.device, self.trusted, self.say = config, experiments, device, trusted, say
        self._test_sets: dict[str, tuple[Tensor, Tensor]] = {}
        self._surrogates: dict[str, dict[str, TrainedRun]] = {}

    def surrogates(self, run: TrainedRun) -> dict[str, TrainedRun]:
        """By experiment."""
        key = _data_key(run)
        if key not in self._surrogates:
            found = {}
            for experiment in self.experiments:
                self.say(f"surrogate {experiment}")
                found[experiment] = load_surrogate(run, experiment, self.config["surrogate"], self.trusted)
                found[experiment].network.to(self.device)
            self._surrogates[key] = found
        return self._surrogates[key]

    def examination(self, run: TrainedRun, network: nn.Module) -> Examination:
        """Of a network on the run's test images."""
        key = _data_key(run)
        if key not in self._test_sets:
            self._test_sets[key] = _limited(run, self.config["limit"])
        return Examination(
            network.to(self.device),
            *self._test_sets[key],
            seed=self.config["seed"],
            surrogates={name: surrogate.network for name, surrogate in self.surrogates(run).items()},
            batch_size=self.config["batch_size"],
            run=str(run.folder),
            checkpoint=self.config["checkpoint"],
        )


@dataclass(frozen=True)
class Task:
    """Rows that are computed together.

    judge: computes them; its argument is called after each of so many `batches`.
    """

    words: str
    fingerprints: Sequence[str]
    batches: int
    judge: Callable[[Callable[[], None]], Iterable[Judged]]


def _tasks(
    run: TrainedRun,
    shared: Shared,
    found: Sequence[Trial],
    certifications: Mapping[str, Certification],
    noisy: nn.Module | None,
    inference_noise: bool,
) -> list[Task]:
    """All of one run. noisy: its network with noise, for a row beside the noise-free one, or for all rows."""
    tasks = []
    if found:
        surrogates, options = shared.surrogates(run), shared.config["surrogate"]
        examination = shared.examination(run, noisy if inference_noise and noisy is not None else run.network)
        for trial in found:
            examination.rehearse(trial)
        tasks = [_task(examination, trial, surrogates, options) for trial in found]
        if noisy is not None and not inference_noise:
            tasks.append(_task(shared.examination(run, noisy), Trial("clean", CLEAN, None, {}), {}, {}))
    for name, certification in certifications.items():
        examination = shared.examination(run, _smoothed(run, shared.trusted))
        tasks.append(_certification_task(examination, certification, name))
    return tasks


def _task(
    examination: Examination, trial: Trial, surrogates: Mapping[str, TrainedRun], options: Mapping[str, Any]
) -> Task:
    """A trial; the images of a transfer attack are made once and kept, unless the options say otherwise."""
    fingerprint = examination.fingerprint(trial)

    def judge(advance: Callable[[], None]) -> Iterator[Judged]:
        surrogate, chosen = surrogates.get(trial.surrogate), trial
        if surrogate is not None and options.get("keep_images", True):
            chosen = with_kept_images(examination, trial, surrogate.folder, advance)
        judged = examination.judge(chosen, advance)
        yield replace(judged, row=replace(judged.row, fingerprint=fingerprint))

    return Task(trial.words, [fingerprint], len(examination.batches), judge)


def _smoothed(run: TrainedRun, trusted: tuple[str, ...]) -> nn.Module:
    """What a certificate is about: the network with its noise, or without if it was trained without."""
    return noise_averaged(run, 1, trusted) or run.network


def _require_certifiable(run: TrainedRun, certification: Certification, trusted: tuple[str, ...]) -> None:
    """Raises ConfigurationError, before anything is run."""
    try:
        certification.smoothing(_smoothed(run, trusted))
    except ConfigurationError as error:
        raise ConfigurationError(f"{run.folder}: {error}") from None


def _certification_task(examination: Examination, certification: Certification, name: str) -> Task:
    fingerprints = [certification.fingerprint(examination, radius) for radius, _ in certification.levels]

    def judge(advance: Callable[[], None]) -> Iterator[Judged]:
        return certification.judge(examination, name, advance)

    return Task(name, fingerprints, len(examination.batches), judge)


def _threat(name: str, node: Any) -> Any:
    """Build a threat of the configuration. Raises ConfigurationError, which names the option."""
    where = f"threat.{name}"
    try:
        return build(node, where=where, trusted=None)
    except ConfigurationError as error:
        if error.option is None or error.option.startswith(where):
            raise
        raise ConfigurationError(f"{where}.{error}", option=f"{where}.{error.option}") from None


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


def _data_key(run: TrainedRun) -> str:
    """What two runs share if they are tested on the same images: the data set and how it is loaded."""
    test_set = {k: v for k, v in run.config["data"].items() if k not in OF_TRAINING}
    return json.dumps(test_set, sort_keys=True)


def _limited(run: TrainedRun, limit: int | None) -> tuple[Tensor, Tensor]:
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit must be at least 1 image, or null for all, got {limit}.")
    return run.data.split("test", limit)


def checkpoint_path(name: str) -> Path:
    """`best` or `last`, relative to a run folder. Raises ConfigurationError."""
    if name not in CHECKPOINTS:
        raise ConfigurationError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {name!r}.")
    return CHECKPOINTS[name]
