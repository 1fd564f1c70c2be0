"""Run folders and rows as an evaluation writes them, and the report's text taken apart."""

import copy
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from glr_lightning.cli.report import main
from glr_lightning.config import compose, config_hash
from glr_lightning.evaluation.row import Row, write_rows
from glr_lightning.evaluation.summary import wilson_interval
from glr_lightning.reporting.report import report

N = 200
VERSIONS = {"python": "3.11", "torch": "2.9"}


@functools.cache
def _composed(*overrides: str) -> dict[str, Any]:
    return compose(overrides)


def row(threat: str, correct: int, level: float | None = None, kind: str = "clean", **facts: Any) -> Row:
    low, high = wilson_interval(correct, N)
    counts: dict[str, Any] = {
        "n": N,
        "correct": correct,
        "accuracy": correct / N,
        "wilson_low": low,
        "wilson_high": high,
    }
    norms = {"mean_l2": 0.1, "max_l2": 0.2, "mean_linf": 0.01, "max_linf": 0.02, "seconds": 1.5}
    level_names = {"clean": "", "attack": "epsilon", "worst_case": "epsilon", "corruption": "severity"}
    named: dict[str, Any] = {
        "run": "elsewhere",
        "checkpoint": "best",
        "weights": "0" * 12,
        "images": "1" * 12,
        "evaluation_seed": 0,
        "threat": threat,
        "kind": kind,
        "norm": "linf" if kind in ("attack", "worst_case") else "",
        "level_name": level_names.get(kind, "radius"),
        "level": level,
    }
    return Row(**(named | counts | norms | facts))


def standard(clean: int = 180, shift: int = 0) -> list[Row]:
    attack = row("fgsm", 90 + shift, 0.13, "attack", gradient_source="transfer", note="no white-box claim")
    blur = [row("blur", 150 + shift - 3 * s * s, s, "corruption", preset="cifar10_c") for s in (1, 2, 3, 4, 5)]
    noise = [row("noise", 170 + shift - s, s, "corruption", preset="cifar10_c") for s in (1, 3)]
    return [row("clean", clean), attack, *blur, *noise]


MASKED = row("fgsm", 178, 0.13, "attack", gradient_source="autograd", unreliable=True, note="97 % are zero")


def make_run(
    folder: Path, *overrides: str, rows: list[Row] | None = None, epochs: int = 3, accuracy: float = 0.9, **result: Any
) -> Path:
    """A run folder as glr-train and glr-evaluate leave it, without the weights, which a report does not need."""
    folder.mkdir(parents=True)
    config = copy.deepcopy(_composed(*overrides)) | {"run_dir": str(folder)}
    config["experiment"] = next((o.split("=")[1] for o in overrides if o.startswith("experiment=")), None)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    facts: dict[str, Any] = {
        "test_accuracy": accuracy,
        "best_epoch": 2,
        "epochs": epochs,
        "train_seconds": 12.345,
        "forwards": 43210,
    }
    facts |= {"parameters": 3760, "device": "cpu", "seed": config["seed"], "config_hash": config_hash(config)}
    (folder / "result.json").write_text(json.dumps(facts | {"versions": VERSIONS} | result))
    lines = ["epoch,step,train_accuracy,train_loss,val_accuracy,val_loss,test_accuracy"]
    for epoch in range(epochs):
        lines += [
            f"{epoch},{epoch},,,{0.5 + epoch / 10},0.33,",
            f"{epoch},{epoch},{0.4 + epoch / 10},{1 / (1 + epoch)},,,",
        ]
    (folder / "metrics.csv").write_text("\n".join([*lines, f"{epochs},{epochs},,,,,{accuracy}", ""]))
    if rows is not None:
        write_rows(folder / "robustness.csv", rows)
    return folder


def section(text: str, title: str) -> str:
    return re.split(r"\n## ", text.split(f"\n## {title}", 1)[1])[0]


def table(text: str, title: str) -> dict[str, dict[str, str]]:
    """The table of a section, by its first column."""
    lines = [line[2:-2].split(" | ") for line in section(text, title).splitlines() if line.startswith("|")]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def written(folders: list[Path], out: Path) -> str:
    report(folders, out)
    return (out / "report.md").read_text()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["glr-report", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
