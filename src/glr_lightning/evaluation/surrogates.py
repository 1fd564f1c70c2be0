"""Surrogates: the networks that transfer attacks take their gradients from, and the adversarial images made with them.

Both are made once and kept, `<dir>/<experiment>-<hash of its configuration>/` and `adversarial/*.npz` in it.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glr_lightning import terminal
from glr_lightning.config import TRUSTED, compose, config_hash
from glr_lightning.evaluation.attempts import Trial
from glr_lightning.evaluation.harness import Examination
from glr_lightning.runs.trained_run import CONFIG, TrainedRun, at_root, load_run
from glr_lightning.threats import Threat
from glr_lightning.threats.attacks.adversarial_set import AdversarialSet, image_checksums, load_set, replayed, save_set
from glr_lightning.training.fit import train


def wanted(threats: Mapping[str, Threat], options: Mapping[str, Any]) -> list[str]:
    """The experiments whose surrogates some threats need: those that they name, else those of the options."""
    experiments = options["experiment"]
    given = [experiments] if isinstance(experiments, str) else list(experiments or [])
    names: dict[str, None] = {}
    for threat in threats.values():
        if "transfer" in threat.gradient_sources and not threat.recorded:
            names |= dict.fromkeys(map(str, threat.surrogates or given))
    return list(names)


def load_surrogate(
    run: TrainedRun, experiment: str, options: Mapping[str, Any], trusted: tuple[str, ...] = TRUSTED
) -> TrainedRun:
    """The surrogate of an experiment for the data of a run; an interrupted training leaves nothing behind.

    Args:
        run: names the data, and where they lie.
        experiment: an option of the group `surrogate`, as surrogate/relu.
        options: `dir`; and `epochs`, a number, or one by name of the data set, where not the experiment's own.
        trusted: as for `load_run`.
    """
    overrides = [f"data={run.data.name}", "~experiment", "+" + experiment.replace("/", "=", 1), "progress=false"]
    epochs = options.get("epochs", {})
    epochs = epochs.get(run.data.name) if isinstance(epochs, dict) else epochs  # one number: of all data sets
    config = compose(overrides + ([] if epochs is None else [f"epochs={epochs}"]))
    own = {name: config["data"][name] for name in ("batch_size", "validation", "seed", "flip", "crop")}
    config["data"] = at_root(run.config["data"], None if run.data.root is None else str(run.data.root)) | own
    parent = Path(options["dir"])
    folder = parent / f"{experiment.replace('/', '-')}-{config_hash(config)}"
    if not (folder / CONFIG).exists():
        terminal.console.print(f"training the surrogate {folder} (once)")
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
    return load_run(folder, trusted=trusted, root=config["data"]["root"])


def with_kept_images(
    examination: Examination, trial: Trial, folder: Path, advance: Callable[[], None] = lambda: None
) -> Trial:
    """A transfer trial that looks its images up, in `<folder>/adversarial`; they are made now if they are not there.

    folder: of the surrogate. advance: called after each batch of images that is made.
    Raises CheckpointError for a damaged file.
    """
    threat = trial.threat
    path = folder / "adversarial" / f"{trial.name}-{examination.attack_fingerprint(trial)}.npz"
    if not path.exists():
        save_set(path, _make(examination, trial, advance))
    kept = replayed(load_set(path))
    return replace(trial, threat=replace(threat, function=kept.function, recorded=True))


def _make(examination: Examination, trial: Trial, advance: Callable[[], None]) -> AdversarialSet:
    parts = []
    for batch in examination.batches:
        moved, attacked, _ = examination.attack(trial, *examination.to_place(batch))
        parts.append((moved.float().cpu(), attacked.count.zero_gradient.float().cpu()))
        advance()
    images, zero = (torch.cat(column) for column in zip(*parts, strict=True))
    facts = {
        "name": trial.name,
        "surrogate": trial.surrogate,
        "norm": trial.threat.norm,
        "epsilon": trial.parameters.get("epsilon"),
        "targeted": trial.threat.targeted,
    }
    return AdversarialSet(images, image_checksums(examination.x, examination.y), zero, facts)
