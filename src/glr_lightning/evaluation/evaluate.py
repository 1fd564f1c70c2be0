"""Evaluate networks under threats: any torch network on images at hand, or trained runs from their folders."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

from rich.progress import Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from glr_lightning import terminal
from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Attempt, attempts
from glr_lightning.evaluation.certification import Certification
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.named_threats import Tested, named_threats
from glr_lightning.evaluation.plan import Plan
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.runner import query_of
from glr_lightning.evaluation.surrogates import GivenSurrogates
from glr_lightning.evaluation.tasks import AttemptTask, CertificationTask, Task
from glr_lightning.evaluation.worst_case import cross_check
from glr_lightning.terminal import progress_bar
from glr_lightning.threats import Attack, Threat
from glr_lightning.threats.facts import WHITE_BOX
from glr_lightning.validation import Count, Seed, checked_arguments
from glr_lightning.validation.words import shown


def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    threats: Sequence[str | Tested] | Mapping[str, Tested] = ("clean", "pgd_linf"),
    *,
    surrogates: Mapping[str, nn.Module] | nn.Module | None = None,
    seed: Seed = 0,
    batch_size: Count = 1000,
) -> list[Row]:
    """Test any torch network under threats.

        rows = evaluate(network, images, labels, ["clean", "pgd_linf", "square_linf", "pgd_linf.epsilon=0.1"])

    A source of gradients that cannot be had of the network, such as the slopes of a network that cannot be
    traced, is left out of an attack that has others, and the note of its rows says so; an attack that has no other is
    refused. Transfer attacks that are given by name use all surrogates; without any they take the network's own
    gradient, and their rows say so.

    Args:
        network: maps [B, C, H, W] to scores [B, classes]; it is tested in eval mode and left in the mode it had.
        images: float [n, C, H, W] in [0, 1]; a network that wants other pixels scales them itself.
        labels: int64 [n].
        threats: names of conf/threat, single threats or presets ("standard", "honest"); overrides of their options
            ("pgd_linf.epsilon=0.1"); values made by `threats.attack`, `threats.corruption` and the like, which are
            named after their functions. Or values by name.
        surrogates: by name, the networks that transfer attacks take their gradients from; in eval mode likewise.
        seed: of all randomness; that of image i is a function of (seed, i).
        batch_size: images that are run at once; no result depends on it.

    Returns:
        A row for each threat, level and source of gradients, and the worst case over the attacks of each epsilon.

    Raises:
        ConfigurationError: a network, images, or threats that cannot be used.
    """
    options = {"threats": threats, "surrogates": surrogates, "seed": seed, "batch_size": batch_size}
    checked_arguments(evaluate, options)
    at_hand = {"surrogate": surrogates} if isinstance(surrogates, nn.Module) else dict(surrogates or {})
    with _in_eval_mode(network, *at_hand.values()):
        inputs = Inputs(network, images, labels, seed=seed, batch_size=batch_size)
        given = GivenSurrogates(at_hand)
        given.check(inputs)
        tested, remarks = _threats(threats, given.names)
        results = [result for task in _tasks(inputs, tested, remarks, given) for result in task.results()]
    return cross_check(
        [each.row for each in results], {each.row.fingerprint: each.per_image.correct for each in results}
    )


@contextmanager
def _in_eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Switch networks to eval mode within the block, and each of their modules back afterwards."""
    for network in networks:
        if not isinstance(network, nn.Module):
            raise ConfigurationError(f"a network must be a torch module, got {shown(network)}.", option="network")
    training = [module for network in networks for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def evaluate_runs(config: Mapping[str, Any]) -> list[Row]:
    """Evaluate every run that a resolved configuration names and write `<run>/robustness.csv`, row by row.

    Rows of earlier evaluations stay, and those that would come out the same are not computed again unless `again`. With
    noisy_passes=S the clean images are also classified by the mean of S noisy predictions, in a row of its own beside
    the noise-free one; with inference_noise that noisy network is the one that all threats are run against.

    Args:
        config: the resolved configuration of glr-evaluate.

    Returns:
        The rows that were asked for.

    Raises:
        ConfigurationError, CheckpointError, DataError: nothing to evaluate, or something that cannot be used.
    """
    plan = Plan(config)
    runs = plan.load()
    stores = [plan.store(run) for run in runs]
    rows: list[Row] = []
    kept = 0
    with _progress(len(runs), config["progress"]) as bar:
        for run, store in zip(runs, stores, strict=True):
            tasks = plan.tasks(run, bar.say)
            for task in bar.over(tasks, run.folder.name):
                if store.has(task.fingerprints) and not config["again"]:
                    kept += len(task.fingerprints)
                else:
                    for result in task.results(bar.advance):
                        store.add(result)
                rows += store.rows_of(task.fingerprints)
    if kept:
        terminal.console.print(f"{kept} of {len(rows)} rows were there already; again=true computes them again.")
    return rows


def _threats(
    threats: Sequence[str | Tested] | Mapping[str, Tested], surrogates: Sequence[str]
) -> tuple[dict[str, Tested], dict[str, str]]:
    """The threats by name, and remarks on those that are not run as their files say."""
    if isinstance(threats, Mapping):
        return dict(threats), {}
    words = [each for each in threats if isinstance(each, str)]
    found = named_threats(words) if words else {}
    remarks: dict[str, str] = {}
    for name, threat in found.items():
        if isinstance(threat, Attack) and "transfer" in threat.gradient_sources and not threat.recorded:
            found[name] = replace(threat, surrogates=())  # those of the file are trained by glr-evaluate
            if not surrogates:
                own = tuple(source for source in threat.gradient_sources if source != "transfer") or ("autograd",)
                found[name] = replace(threat, surrogates=(), gradient_sources=own)
                remarks[name] = "no surrogate was given: the gradient is the network's own"
    for each in threats:
        if isinstance(each, str):
            continue
        name = "certify" if isinstance(each, Certification) else getattr(each.function, "__name__", "threat")
        if name in found:
            raise ConfigurationError(
                f"two threats are named {name!r}; give a mapping, {{name: threat, ...}}.", option="threats"
            )
        found[name] = each
    return found, remarks


def _tasks(
    inputs: Inputs, threats: Mapping[str, Tested], remarks: Mapping[str, str], surrogates: GivenSurrogates
) -> list[Task]:
    """All tasks of a network at hand, checked."""
    certifications = {name: each for name, each in threats.items() if isinstance(each, Certification)}
    usable: dict[str, Threat] = {}
    notes: dict[str, str] = {}
    for name, threat in threats.items():
        if isinstance(threat, Threat):
            usable[name], impossible = _possible(name, threat, inputs)
            notes[name] = "; ".join(filter(None, (remarks.get(name), impossible)))
    for name, threat in usable.items():
        wanted = [each for each in threat.surrogates if each not in surrogates.names] or not surrogates.names
        if "transfer" in threat.gradient_sources and not threat.recorded and wanted:
            missing = ", ".join(f"{each!r}: network" for each in threat.surrogates or ["name"])
            raise ConfigurationError(
                f"{name} takes its gradient from another network, and none was given; pass "
                f"surrogates={{{missing}}}, or take the network's own gradient by {name}.gradient_source=autograd.",
                option="surrogates",
            )
    found = attempts(usable, surrogates.names) if usable or not certifications else []
    tasks: list[Task] = [AttemptTask(inputs, _with(attempt, notes[attempt.name]), surrogates) for attempt in found]
    tasks += [CertificationTask(inputs, certification, name) for name, certification in certifications.items()]
    for task in tasks:
        task.check()
    return tasks


def _with(attempt: Attempt, remark: str) -> Attempt:
    return replace(attempt, remark=remark if attempt.threat.kind == "attack" else "")


def _possible(name: str, threat: Threat, inputs: Inputs) -> tuple[Threat, str]:
    """A threat without the sources of gradients that cannot be had of the network, and a remark that names them.

    Raises:
        ConfigurationError: no source is left.
    """
    refused: dict[str, str] = {}
    batch = inputs.batch(slice(1))
    for source in threat.gradient_sources:
        if source in WHITE_BOX:
            try:
                query_of(Attempt(name, threat, None, {}, source), inputs, batch, None).gradient(batch.x, batch.y)
            except ConfigurationError as error:
                refused[source] = str(error)
    left = tuple(source for source in threat.gradient_sources if source not in refused)
    if not refused:
        return threat, ""
    reasons = "; ".join(f"{source}: {why}" for source, why in refused.items())
    if not left or not isinstance(threat, Attack):
        raise ConfigurationError(f"{name} has no source of gradients for this network. {reasons}")
    return replace(threat, gradient_sources=left), f"not possible on this network: {', '.join(refused)}"


@final
class _Bar:
    """Progress over runs, their tasks and the tasks' batches."""

    def __init__(self, bar: Progress, runs: int) -> None:
        self._bar, self._shown = bar, bar.add_task("", total=runs)
        self._done, self._share = 0.0, 0.0

    def say(self, words: str) -> None:
        """Show what is being done."""
        self._bar.update(self._shown, description=words)

    def over(self, tasks: Sequence[Task], run: str) -> Iterator[Task]:
        """Yield the tasks of one run, with progress before and after each."""
        start = self._done
        for number, task in enumerate(tasks):
            self.say(f"{run}: {task.words}")
            self._share = 1.0 / len(tasks) / task.inputs.batch_count
            yield task
            self._bar.update(self._shown, completed=start + (number + 1) / len(tasks))
        self._done = start + 1.0

    def advance(self) -> None:
        """Count a batch."""
        self._bar.advance(self._shown, self._share)


@contextmanager
def _progress(runs: int, enabled: bool) -> Iterator[_Bar]:
    columns = (TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with progress_bar(*columns, enabled=enabled) as progress:
        bar = _Bar(progress, runs)
        yield bar
        bar.say("")
