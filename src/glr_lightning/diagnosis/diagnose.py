"""Diagnose estimators on one batch of one network: measure them in turns, test their bias, write the findings."""

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

from glr_lightning.config import TRUSTED, build, config_hash, trusted_prefixes
from glr_lightning.data.base import scaled
from glr_lightning.diagnosis.candidates import LARGEST_ERROR, Candidate, References, Subject, entries_of, tried
from glr_lightning.diagnosis.figure import variance_against_time
from glr_lightning.diagnosis.finding import (
    BIASED,
    DECLARED,
    NO_REFERENCE,
    REFUSED,
    UNBIASED,
    UNCLEAR,
    Finding,
    findings_csv,
)
from glr_lightning.diagnosis.measure import Contender, measure
from glr_lightning.diagnosis.statistics import SIGNS, Comparison, alignment, compare, critical_z, layers_of
from glr_lightning.diagnosis.tables import finding_tables
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimator
from glr_lightning.estimators.base import OBJECTIVES
from glr_lightning.losses import Loss
from glr_lightning.randomness import generator_for
from glr_lightning.reporting.report import ENVIRONMENT
from glr_lightning.reporting.tables import Table, escape
from glr_lightning.runs.environment import PACKAGES, torch_device
from glr_lightning.runs.trained_run import TrainedRun, build_data, build_network, find_runs, load_run
from glr_lightning.storage import require_folder, write_files
from glr_lightning.terminal import progress_bar
from glr_lightning.training.trained_noise import learned_per, trained_sigma

TEXT, TABLE, FIGURE = "diagnosis.md", "diagnosis.csv", "diagnosis.png"


def diagnose(config: dict[str, Any]) -> tuple[list[Finding], list[str], Subject]:
    """Diagnose what a resolved configuration names.

    Returns:
        The findings, notes on how to read them, and what they are about.

    Raises:
        ConfigurationError, CheckpointError, DataError: an option, a run or data that cannot be used.
    """
    _require_objectives(config)
    subject = _subject(config)
    candidates = [
        c for label, overrides in entries_of(config["estimators"]) for c in tried(subject, label, overrides, config)
    ]
    runnable = [(c, c.built) for c in candidates if isinstance(c.built, Estimator)]
    if not runnable:
        refusals = "\n".join(f"  {finding.refusal}" for finding in _refused(candidates))
        raise ConfigurationError(f"every estimator refuses this network and loss:\n{refusals}")
    columns = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with progress_bar(*columns, enabled=config["progress"]) as bar:
        task = bar.add_task("references", total=None)
        references = References(subject, config, lambda: bar.advance(task))
        # only for the alignment, and the most costly with many classes: left out if all gradients are noise-free
        smoothed = any(estimator.objective != "noise_free" for _, estimator in runnable)
        truth = references.of("joint", {})[0] if smoothed else None
        found = [references.of_candidate(c) for c, _ in runnable]
        contenders = [
            Contender(c.label, c.copies, estimator, reference)
            for (c, estimator), (reference, _) in zip(runnable, found, strict=True)
        ]
        bar.update(task, description="estimators", completed=0, total=len(contenders) * config["repetitions"])
        options = {"repetitions": config["repetitions"], "seed": config["seed"], "tick": lambda: bar.advance(task)}
        measured = measure(contenders, subject.network, subject.loss, subject.x, subject.y, **options)
    layers = layers_of(subject.network)
    tested = sum(c.reference is not None and not c.estimator.bias(subject.network) for c in contenders)
    tests = max(tested, 1) * len(layers) * (1 + SIGNS)
    critical = critical_z(tests)
    rounding = 100 * torch.finfo(next(subject.network.parameters()).dtype).eps
    findings = []
    for contender, result, (_, missing) in zip(contenders, measured, found, strict=True):
        plan = contender.estimator.plan(subject.network, subject.loss)
        for number, layer in enumerate(layers):
            finding = Finding(
                layer,
                contender.label,
                contender.copies[number] if isinstance(contender.copies, list) else contender.copies,
                NO_REFERENCE,
                objective=contender.estimator.objective,
                source=plan.get(layer, ""),
                alignment=alignment(result.moments[layer], truth[layer]) if truth else None,
                forwards=result.forwards,
                milliseconds=result.milliseconds,
                note=missing or "its gradient is 0, or lost in noise",
            )
            compared = contender.reference and compare(result.moments[layer], contender.reference[layer], rounding)
            bias = contender.estimator.bias(subject.network)
            findings.append(_tested(finding, compared, critical, bias) if compared else finding)
    refused = _refused(candidates)
    if config["run"] is not None and learned_per(subject.base, subject.trusted or TRUSTED) == "neuron":
        references.notes.append("The noise scales were learned per neuron; here each layer has the mean of its own.")
    notes = [_how_to_read(critical, tests), *references.notes, *_remarks(findings), *(f.refusal for f in refused)]
    return findings + refused, notes, subject


def _tested(finding: Finding, compared: Comparison, critical: float, bias: str) -> Finding:
    outcome = DECLARED if bias else BIASED if compared.z > critical else UNBIASED
    if outcome == UNBIASED and compared.relative_bias_error > LARGEST_ERROR:  # a bias of that size would pass unseen
        outcome = UNCLEAR
    variance_time = compared.relative_variance * (finding.milliseconds or 0.0)
    numbers = vars(compared) | {"critical": critical, "variance_time": variance_time}
    return replace(finding, outcome=outcome, note=bias, **numbers)


def _require_objectives(config: Mapping[str, Any]) -> None:
    unknown = set(config["reference"]["estimator"]) - OBJECTIVES.keys()
    if unknown:
        raise ConfigurationError(
            f"reference.estimator has {', '.join(sorted(unknown))}; objectives are {', '.join(OBJECTIVES)}.",
            option="reference.estimator",
        )


def _subject(config: dict[str, Any]) -> Subject:
    device, trusted = torch_device(config["device"]), None
    if config["run"] is not None:
        folders = find_runs(config["run"] if isinstance(config["run"], list) else str(config["run"]))
        if len(folders) > 1:
            raise ConfigurationError(
                f"run={config['run']} names {len(folders)} runs; one at a time is diagnosed.", option="run"
            )
        trusted = trusted_prefixes(config["trusted"])
        where = {"root": config["data"]["root"], "checkpoint": config["checkpoint"]}
        run = load_run(folders[0], trusted=trusted, **where)
        name, base, network, data = f"run {folders[0]}", with_trained_sigma(run, trusted), run.network, run.data
    else:
        build(config["estimator"], where="estimator", trusted=None, kind=Estimator)  # each candidate takes its values
        torch.manual_seed(config["seed"])
        base, data = config, build_data(config, None)
        network = build_network(config, data, None)
        name = f"experiment {config['experiment']}, untrained"
    missing = {"estimator", "loss", "trainer"} - set(base)
    if missing:
        raise ConfigurationError(f"the configuration has no {', '.join(missing)}; it is damaged or not of glr-train.")
    network = network.train().to(
        device, torch.float64 if base["trainer"].get("precision") == "64-true" else torch.float32
    )
    images = data.part("train")
    order = torch.randperm(len(images), generator=generator_for(torch.device("cpu"), config["seed"], "batch"))
    x, y = images[order[: config["batch_size"]]]
    dtype = next(network.parameters()).dtype
    loss = build(base["loss"], where="loss", trusted=trusted, kind=Loss)
    return Subject(name, base, network, loss, scaled(x).to(device, dtype), y.to(device), trusted)


def with_trained_sigma(run: TrainedRun, trusted: tuple[str, ...]) -> dict[str, Any]:
    """Return a run's configuration with the noise scales of its checkpoint, learned or scheduled ones.

    Scales learned per neuron, which no option can hold, are replaced by the mean of their layer.
    """
    node = run.config.get("estimator")
    if not isinstance(node, dict) or "sigma" not in node:
        return run.config
    scales = trained_sigma(run, build(node, where="estimator", trusted=trusted, kind=Estimator), trusted)
    sigma = [float(torch.as_tensor(scale).mean()) for scale in scales]
    one = sigma[0] if len(set(sigma)) == 1 else sigma
    return run.config | {"estimator": node | {"sigma": one}}


def _refused(candidates: Sequence[Candidate]) -> list[Finding]:
    """One finding for each different refusal of an estimator."""
    refusals: dict[tuple[str, str], list[int]] = {}
    for c in candidates:
        if not isinstance(c.built, Estimator):
            refusals.setdefault((c.label, str(c.built)), []).extend([c.copies] if isinstance(c.copies, int) else [])
    return [
        Finding("", label, copies[0] if len(copies) == 1 else None, REFUSED, note=words)
        for (label, words), copies in refusals.items()
    ]


def _how_to_read(critical: float, tests: int) -> str:
    return (
        f"Largest |z|: of the bias along {1 + SIGNS} directions, the reference's and random ones, the error of the "
        f"reference included. Above {critical:.2f} an estimator is biased: if none is, one diagnosis in a hundred "
        f"holds such a value (1 % critical value of {tests} tests, Sidak). "
        f"Where a bias is known to no better than ± {100 * LARGEST_ERROR:.0f} %, the outcome is {UNCLEAR}: one of that "
        "size would pass unseen; raise repetitions or copies. "
        "Bias, variance and cosine are relative to the objective's own reference, the bias along it; alignment is the "
        "cosine of the mean estimate with the gradient of the joint objective. Variance × ms is the figure of merit: "
        "half of it takes half the time to the same accuracy."
    )


def _remarks(findings: Sequence[Finding]) -> list[str]:
    """The biases that are declared, and the estimators without a reference, each once."""
    notes: dict[str, None] = {}
    for f in findings:
        if f.outcome == DECLARED:
            notes[f"{f.estimator} declares a bias: {f.note}"] = None
        if f.outcome == NO_REFERENCE:
            notes[f"{f.estimator}, {f.layer}: no reference: {f.note}"] = None
    if any(f.outcome == BIASED for f in findings):
        names = dict.fromkeys(f.estimator for f in findings if f.outcome == BIASED)
        notes[
            f"{BIASED}: {', '.join(names)} — declared unbiased, and the mean is not the gradient of the objective."
        ] = None
    return list(notes)


def markdown(tables: Sequence[Table], subject: Subject, config: Mapping[str, Any]) -> str:
    """The text of diagnosis.md."""
    shape = "–".join(
        str(len(subject.network.get_parameter(names[-1]))) for names in layers_of(subject.network).values()
    )
    about = (
        f"{subject.name} (configuration {config_hash(subject.base)}): outputs by layer {shape}, loss "
        f"{type(subject.loss).__name__}, {len(subject.y)} training images, {config['repetitions']} estimates of each, "
        f"seed {config['seed']}, {_device_in_words(subject.x.device)}."
    )
    parts = [
        "# Diagnosis",
        escape(about),
        *(table.markdown() for table in tables),
        f"![variance against time]({FIGURE})",
    ]
    return "\n\n".join(parts) + "\n"


def environment(device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """The versions, device, threads and command of a diagnosis, for environment.json."""
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": _device_in_words(device),
        "threads": torch.get_num_threads(),
        "command": shlex.join(command),
    }


def _device_in_words(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})"


def write_diagnosis(config: dict[str, Any], out: Path, command: Sequence[str]) -> list[Table]:
    """Diagnose, write everything into `out`, and return the tables for the screen."""
    require_folder(out)  # before everything is measured
    findings, notes, subject = diagnose(config)
    tables = finding_tables(findings, notes)
    texts = {
        TEXT: markdown(tables, subject, config),
        TABLE: findings_csv(findings),
        ENVIRONMENT: json.dumps(environment(subject.x.device, command), indent=2) + "\n",
    }
    files = {name: text.encode() for name, text in texts.items()} | {FIGURE: variance_against_time(findings)}
    write_files(out, files)
    return tables
