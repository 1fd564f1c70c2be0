"""Surrogates: the networks that transfer attacks take their gradients from, and the adversarial images made with them.

Both are made once and kept, `<dir>/<experiment>-<hash of its configuration>/` and `adversarial/*.npz` in it.
"""

import contextlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from glr_lightning import terminal
from glr_lightning.config import TRUSTED, compose, config_hash
from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Attempt
from glr_lightning.evaluation.fingerprints import attack_fingerprint
from glr_lightning.evaluation.inputs import Inputs, check_network, first_scores
from glr_lightning.evaluation.runner import Advance, nothing, perturb
from glr_lightning.evaluation.surrogate_options import SurrogateOptions
from glr_lightning.runs.trained_run import CONFIG, TrainedRun, at_root, load_run
from glr_lightning.threats import Threat
from glr_lightning.threats.attacks.adversarial_set import AdversarialSet, image_checksums, load_set, replayed, save_set
from glr_lightning.training.plain import needs_lightning, train_plainly
from glr_lightning.validation.words import shown


class Surrogates(ABC):
    """The networks that transfer attacks take their gradients from, by name."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of those there are."""

    @abstractmethod
    def of(self, attempt: Attempt) -> nn.Module | None:
        """The surrogate that an attempt names; None where it names none, or one that is not there."""

    def prepared(self, attempt: Attempt, inputs: Inputs, advance: Advance = nothing) -> Attempt:
        """The attempt as it is to be run: as it is, unless its images are kept."""
        return attempt


@final
@dataclass(frozen=True)
class GivenSurrogates(Surrogates):
    """Networks that are at hand; in eval mode, where the tested network is."""

    networks: Mapping[str, nn.Module]

    @property
    def names(self) -> tuple[str, ...]:
        """As they were given."""
        return tuple(self.networks)

    def of(self, attempt: Attempt) -> nn.Module | None:
        """The surrogate of a name."""
        return self.networks.get(attempt.surrogate)

    def check(self, inputs: Inputs) -> None:
        """Refuse networks in training mode, elsewhere than the tested network, or for other images or classes.

        Raises:
            ConfigurationError: says which.
        """
        batch = inputs.batch(slice(1))
        shape = inputs.scores(batch.x, batch.random).shape
        for name, network in self.networks.items():
            check_network(f"surrogate {name}", network, inputs.place)
            scores = first_scores(f"surrogate {name}", network, batch.x)
            if scores.shape != shape:
                raise ConfigurationError(
                    f"the surrogate {name} must have the classes of the network, scores {list(shape)} for one image, "
                    f"got {list(scores.shape)}; give another.",
                    option="surrogates",
                )


@final
class TrainedSurrogates(Surrogates):
    """Surrogates for the data of a run, each trained once and kept with the images that attacks made from it.

    Args:
        run: names the data, and where they lie.
        experiments: the training experiments; their names are the surrogates'.
        options: where they are kept, with their images or without, and how long they are trained.
        trusted: as for `load_run`.
        device: where the surrogates go.
        say: called with a few words before one is trained.
    """

    def __init__(
        self,
        run: TrainedRun,
        experiments: Sequence[str],
        options: SurrogateOptions,
        trusted: tuple[str, ...] = TRUSTED,
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._keep = options.keep_images
        self._runs: dict[str, TrainedRun] = {}
        for experiment in experiments:
            self._runs[experiment] = load_surrogate(run, experiment, options, trusted, say)
            self._runs[experiment].network.to(device)

    @property
    def names(self) -> tuple[str, ...]:
        """The experiments."""
        return tuple(self._runs)

    def of(self, attempt: Attempt) -> nn.Module | None:
        """The surrogate of a name."""
        surrogate = self._runs.get(attempt.surrogate)
        return None if surrogate is None else surrogate.network

    def prepared(self, attempt: Attempt, inputs: Inputs, advance: Advance = nothing) -> Attempt:
        """The attempt with the images that are kept, which are made now if they are not there."""
        surrogate = self._runs.get(attempt.surrogate)
        if surrogate is None or not self._keep or not attempt.needs_surrogate:
            return attempt
        return with_kept_images(inputs, attempt, surrogate, advance)


def wanted(threats: Mapping[str, Threat], options: SurrogateOptions) -> list[str]:
    """The experiments whose surrogates some threats need: those that they name, else those of the options.

    Raises:
        ConfigurationError: the option names experiments, and no threat reads it; it may keep its default.
    """
    transferred = {
        name: threat
        for name, threat in threats.items()
        if "transfer" in threat.gradient_sources and not threat.recorded
    }
    named = {name for name, threat in transferred.items() if threat.surrogates}
    if transferred.keys() == named and options.experiment != SurrogateOptions.experiment:
        own = ", ".join(f"threat.{name}.surrogates" for name in sorted(named))
        why = f"the surrogates are those of {own}" if named else "no threat needs a surrogate"
        raise ConfigurationError(
            f"surrogate.experiment={shown(options.experiment)} has no effect here: {why}; leave it out.",
            option="surrogate.experiment",
        )
    found = [each for threat in transferred.values() for each in threat.surrogates or options.experiments]
    return list(dict.fromkeys(found))


def load_surrogate(
    run: TrainedRun,
    experiment: str,
    options: SurrogateOptions,
    trusted: tuple[str, ...] = TRUSTED,
    say: Callable[[str], None] = lambda words: None,
) -> TrainedRun:
    """The surrogate of an experiment for the data of a run; an interrupted training leaves nothing behind.

    Args:
        run: names the data, and where they lie.
        experiment: an option of the group `surrogate`, as surrogate/relu.
        options: where it is kept and how long it is trained.
        trusted: as for `load_run`.
        say: called with a few words before it is trained.

    Raises:
        ConfigurationError: there is no such experiment, or no such folder can be made.
    """
    group, _, name = experiment.partition("/")
    if group != "surrogate" or not name:
        raise ConfigurationError(
            f"a surrogate is named as surrogate/relu, an option of the group surrogate, got {shown(experiment)}.",
            option="surrogate.experiment",
        )
    overrides = [f"data={run.data.name}", "~experiment", f"+surrogate={name}", "progress=false"]
    epochs = options.epochs.get(run.data.name) if isinstance(options.epochs, Mapping) else options.epochs
    config = compose(overrides + ([] if epochs is None else [f"epochs={epochs}"]))
    own = {name: config["data"][name] for name in ("batch_size", "validation", "seed", "flip", "crop")}
    config["data"] = at_root(run.config["data"], None if run.data.root is None else str(run.data.root)) | own
    parent = Path(options.dir).expanduser()
    folder = parent / f"{experiment.replace('/', '-')}-{config_hash(config)}"
    if not (folder / CONFIG).exists():
        workplace = _workplace(parent)
        say(f"training {experiment}")
        terminal.say(f"training the surrogate {folder} (once)")
        try:
            _train(config, workplace / "run")
            with contextlib.suppress(OSError):  # another process may have put the same one there meanwhile
                (workplace / "run").rename(folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("The surrogate will be trained again.") from None
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    return load_run(folder, trusted=trusted, root=config["data"]["root"])


def _train(config: dict[str, Any], folder: Path) -> None:
    if not needs_lightning(config):
        train_plainly(config, folder)
        return
    from glr_lightning.training.fit import train  # here, since it imports Lightning

    train(config, folder)


def _workplace(parent: Path) -> Path:
    """Make a folder to train in. Raises ConfigurationError if there can be none."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".training-", dir=parent))
    except OSError as error:
        raise ConfigurationError(
            f"surrogate.dir={parent} must be a folder that can be written, but {error}; choose another.",
            option="surrogate.dir",
        ) from None


def with_kept_images(inputs: Inputs, attempt: Attempt, surrogate: TrainedRun, advance: Advance = nothing) -> Attempt:
    """A transfer attempt that looks its images up, in `<surrogate>/adversarial`; missing ones are made now.

    advance: called after each batch of images that is made.

    Raises:
        CheckpointError: a damaged file.
    """
    fingerprint = attack_fingerprint(inputs, attempt, surrogate.network)
    path = surrogate.folder / "adversarial" / f"{attempt.name}-{fingerprint}.npz"
    if not path.exists():
        save_set(path, _make(inputs, attempt, surrogate.network, advance))
    kept = replayed(load_set(path))
    return replace(attempt, threat=replace(attempt.threat, function=kept.function, recorded=True))


def _make(inputs: Inputs, attempt: Attempt, surrogate: nn.Module, advance: Advance) -> AdversarialSet:
    images, zero = [], []
    for batch in inputs.batches():
        perturbed = perturb(attempt, inputs, batch, surrogate)
        images.append(perturbed.images.float().cpu())
        zero.append(perturbed.query.count.zero_gradient.float().cpu())
        advance()
    facts = {
        "name": attempt.name,
        "surrogate": attempt.surrogate,
        "norm": attempt.threat.norm,
        "epsilon": attempt.parameters.get("epsilon"),
        "targeted": attempt.threat.targeted,
    }
    return AdversarialSet(torch.cat(images), image_checksums(inputs.images, inputs.labels), torch.cat(zero), facts)
