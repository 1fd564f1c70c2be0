"""What a configuration asks of every run: which tasks, about which network, on which images."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from glr_lightning.config import trusted_prefixes
from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Attempt, attempts
from glr_lightning.evaluation.certification import Certification
from glr_lightning.evaluation.hashes import weights_hash
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.named_threats import built_threats
from glr_lightning.evaluation.store import Store
from glr_lightning.evaluation.surrogate_options import SurrogateOptions
from glr_lightning.evaluation.surrogates import GivenSurrogates, TrainedSurrogates, wanted
from glr_lightning.evaluation.tasks import AttemptTask, CertificationTask, Task
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.runs.environment import torch_device
from glr_lightning.runs.trained_run import TrainedRun, find_runs, load_run
from glr_lightning.threats import Clean, Threat
from glr_lightning.training.trained_noise import noise_averaged, require_noise

OF_TRAINING = {"batch_size", "seed", "validation", "flip", "crop", "download", "cache"}
"""The options of a data set that change nothing about its test images."""


@final
class Plan:
    """The runs, threats and options of a resolved configuration.

    What runs on the same data share, test images and surrogates, is loaded once.

    Raises:
        CheckpointError, ConfigurationError: no such run, or a value that is refused.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.folders = find_runs(config["run"])
        found = built_threats(config["threat"])
        self.surrogate_options = SurrogateOptions(**config["surrogate"])
        self.threats = {name: each for name, each in found.items() if isinstance(each, Threat)}
        self.certifications = {name: each for name, each in found.items() if isinstance(each, Certification)}
        self.device = torch_device(config["device"])
        self.trusted = trusted_prefixes(config["trusted"])
        self.noisy: dict[Path, NoiseAveraged | None] = {}
        self._images: dict[str, tuple[Tensor, Tensor]] = {}
        self._surrogates: dict[str, TrainedSurrogates] = {}

    def load(self) -> list[TrainedRun]:
        """Load all runs, their data and their noise where it is asked for, and choose the attempts.

        Raises:
            CheckpointError, ConfigurationError, DataError: a run that cannot be used, or has no noise.
        """
        settings: dict[str, Any] = {"root": self.config["data"]["root"], "checkpoint": self.config["checkpoint"]}
        runs = [load_run(folder, trusted=self.trusted, **settings) for folder in self.folders]
        for run in runs:
            run.data.prepare_data()  # which may take its time, with a progress bar of its own
        self._load_noise(runs)
        if self.noisy and not any(threat.kind == "clean" for threat in self.threats.values()):
            self.threats = {"clean": Clean(), **self.threats}  # which the noisy figure stands beside
        self.experiments = wanted(self.threats, self.surrogate_options)
        with_threats = bool(self.threats) or not self.certifications
        self.attempts = attempts(self.threats, self.experiments) if with_threats else []
        return runs

    def _load_noise(self, runs: list[TrainedRun]) -> None:
        passes = self.config["noisy_passes"]
        if passes is None and self.config["inference_noise"]:
            raise ConfigurationError(
                "inference_noise=true tests the mean prediction of several noisy passes; say of how many, for example "
                "noisy_passes=32.",
                option="noisy_passes",
            )
        if passes is not None:
            self.noisy = {run.folder: noise_averaged(run, passes, self.trusted) for run in runs}
            require_noise({str(folder): network for folder, network in self.noisy.items()})

    def store(self, run: TrainedRun) -> Store:
        """Open the store of a run.

        Raises:
            ConfigurationError: it holds rows of other weights, or the run cannot be certified.
        """
        store = Store(run.folder)
        store.require_weights(weights_hash(run.network), forget=self.config["again"])
        for certification in self.certifications.values():
            try:
                certification.smoothing(self._smoothed(run))
            except ConfigurationError as error:
                raise ConfigurationError(f"{run.folder}: {error}", option=error.option) from None
        return store

    def tasks(self, run: TrainedRun, say: Callable[[str], None] = lambda words: None) -> list[Task]:
        """All tasks of one run, checked. say: called with a few words before a surrogate is trained.

        Raises:
            ConfigurationError: what an attack refuses of this network.
        """
        tasks: list[Task] = []
        noisy = self.noisy.get(run.folder)
        if self.attempts:
            surrogates = self._surrogates_of(run, say)
            tested = noisy if noisy is not None and self.config["inference_noise"] else run.network
            inputs = self._inputs(run, tested)
            tasks += [AttemptTask(inputs, attempt, surrogates) for attempt in self.attempts]
            if noisy is not None and not self.config["inference_noise"]:
                clean = Attempt("clean", Clean(), None, {})
                tasks.append(AttemptTask(self._inputs(run, noisy), clean, GivenSurrogates({})))
        for name, certification in self.certifications.items():
            tasks.append(CertificationTask(self._inputs(run, self._smoothed(run)), certification, name))
        for task in tasks:
            task.check()
        return tasks

    def _smoothed(self, run: TrainedRun) -> nn.Module:
        """What a certificate is about: the network with its noise, or without if it was trained without."""
        return noise_averaged(run, 1, self.trusted) or run.network

    def _inputs(self, run: TrainedRun, network: nn.Module) -> Inputs:
        """A network on the run's test images."""
        key = _data_key(run)
        if key not in self._images:
            self._images[key] = run.data.split("test", self.config["limit"])
        return Inputs(
            network.to(self.device),
            *self._images[key],
            seed=self.config["seed"],
            batch_size=self.config["batch_size"],
            run=str(run.folder),
            checkpoint=self.config["checkpoint"],
        )

    def _surrogates_of(self, run: TrainedRun, say: Callable[[str], None]) -> TrainedSurrogates:
        key = _data_key(run)
        if key not in self._surrogates:
            options = self.surrogate_options
            self._surrogates[key] = TrainedSurrogates(run, self.experiments, options, self.trusted, self.device, say)
        return self._surrogates[key]


def _data_key(run: TrainedRun) -> str:
    """What two runs share if they are tested on the same images: the data set and how it is loaded."""
    test_set = {k: v for k, v in run.config["data"].items() if k not in OF_TRAINING}
    return json.dumps(test_set, sort_keys=True)
