"""Compare runs, in tables and figures.

    report.md         the tables, the figures, the environment
    report.html       the same as one page that needs no other file
    results.csv       every row of every run's robustness.csv, with the run's experiment, seed and config_hash
    environment.json  versions and devices
    paper_*           the tables of published.py, where there is something to compare, as CSV and LaTeX
    *.png             see figures.py and figures_robustness.py
    robustbench/*     of each evaluated run the shape of RobustBench, see robustbench.py
    gallery/*.png     of each run what attacks did to some images, see gallery.py

It reads run folders and runs nothing in them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from glr_lightning.evaluation.row import table_text
from glr_lightning.reporting.corruption_error import corruption_error_table, find_baseline
from glr_lightning.reporting.document import Document, Picture, Section, markdown
from glr_lightning.reporting.figures import MOST, draw
from glr_lightning.reporting.gallery import GALLERY, galleries
from glr_lightning.reporting.latex import latex
from glr_lightning.reporting.page import page
from glr_lightning.reporting.paper_tables import PaperTable, paper_tables
from glr_lightning.reporting.results import Column, Run, all_columns, experiments, file_names, read_runs
from glr_lightning.reporting.robustbench import FOLDER, robustbench_json
from glr_lightning.reporting.robustness_figures import CAPTIONS, draw_robustness
from glr_lightning.reporting.tables import (
    Table,
    environment_table,
    environments,
    estimator,
    not_evaluated,
    robustness_tables,
    runs_table,
    seeds_tables,
)
from glr_lightning.storage import write_files

REPORT, PAGE, RESULTS, ENVIRONMENT = "report.md", "report.html", "results.csv", "environment.json"


FIGURES = {
    "learning_curves.png": "Accuracy and training loss by epoch",
    "accuracy_per_threat.png": "Accuracy under each threat, with 95 % intervals; of a mean over severities, the mean "
    f"of their bounds. Of more than {MOST} threats, attacks with an epsilon are left to the curves below",
    "severity.png": "Accuracy by severity of each corruption, of up to eight runs with 95 % Wilson intervals",
    **CAPTIONS,
}


# What an earlier report may have left and a new one may lack.
STALE = (*FIGURES, "paper_*.csv", "paper_*.tex", f"{GALLERY}/*.png", f"{FOLDER}/*.json")


def report(folders: Sequence[Path], out: Path, mce_baseline: str | None = None) -> list[Table]:
    """Write the report of some run folders into `out`, which is made if missing.

    Everything is read and drawn before the first file is written. An earlier report in `out` is replaced.

    Args:
        folders: run folders.
        out: the folder of the report.
        mce_baseline: the name of a run, or the label of an experiment, that corruption errors are relative to.

    Returns:
        The tables that sum it up, for the screen.

    Raises:
        CheckpointError, ConfigurationError: a run that cannot be read, a folder that cannot be written, a baseline that
            is not among the runs.
    """
    runs = read_runs(folders)
    groups, columns = experiments(runs), all_columns(runs)
    papers = paper_tables(groups)
    errors = []
    if mce_baseline is not None:
        errors = [corruption_error_table(runs, find_baseline(mce_baseline, groups), mce_baseline)]
    drawn = draw(groups, columns) | draw_robustness(groups)
    pictures = [Picture(name, FIGURES[name], png) for name, png in drawn.items()]
    examples = galleries(runs)
    document = contents(runs, groups, columns, papers, errors, pictures, examples)
    files = {REPORT: markdown(document), PAGE: page(document)}
    files |= {RESULTS: results_csv(runs), ENVIRONMENT: environment_json(runs)}
    for paper in papers:
        files |= {f"{paper.name}.csv": paper.csv(), f"{paper.name}.tex": latex(paper.table())}
    evaluated = {run.name: run for run in runs if run.cells}
    for name, file in file_names(evaluated, ".json").items():
        files[f"{FOLDER}/{file}"] = robustbench_json(evaluated[name])
    images = {picture.name: picture.png for picture in (*pictures, *examples)}
    write_files(out, {name: text.encode() for name, text in files.items()} | images, stale=STALE)
    return robustness_tables(runs, columns) if columns else [runs_table(runs)]


def contents(
    runs: Sequence[Run],
    groups: Mapping[str, Sequence[Run]],
    columns: Sequence[Column],
    papers: Sequence[PaperTable],
    errors: Sequence[Table],
    pictures: Sequence[Picture],
    examples: Sequence[Picture],
) -> Document:
    """What report.md and report.html say."""
    accuracies = robustness_tables(runs, columns) if columns else [not_evaluated(runs)]
    sections = [
        Section("Runs", [runs_table(runs)]),
        Section("Accuracy under threat / %", accuracies),
        Section("Several seeds: accuracy / %", seeds_tables(groups, columns)),
        *(Section(f"As in the paper: {paper.title}", [paper.table()]) for paper in papers),
        Section("Mean corruption error", errors),
        Section("Figures", pictures),
        Section("Attacked images", examples),
        Section("Environment", [environment_table(runs)] if environments(runs) else []),
    ]
    title = f"Report on {_count(len(runs), 'run')}"
    return Document(title, _summary(runs, groups), [section for section in sections if section.parts])


def environment_json(runs: Sequence[Run]) -> str:
    return json.dumps(environments(runs), indent=2) + "\n"


def results_csv(runs: Sequence[Run]) -> str:
    """All rows of all runs, unrounded; `run` is the name that the report uses."""
    rows = [(run, row) for run in runs for row in run.rows]
    extra = [
        {
            "run": run.name,
            "experiment": run.config.get("experiment"),
            "seed": run.config.get("seed"),
            "config_hash": run.config_hash,
        }
        for run, _ in rows
    ]
    return table_text([row for _, row in rows], extra)


def _summary(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]]) -> str:
    sections = {"data": "Data", "network": "networks", "activation": "activations", "loss": "losses"}
    parts = [f"{title}: {', '.join(dict.fromkeys(run.target(key) for run in runs))}" for key, title in sections.items()]
    parts.append(f"estimators: {', '.join(dict.fromkeys(map(estimator, runs)))}")
    evaluated = sum(bool(run.rows) for run in runs)
    return (
        f"{_count(len(runs), 'run')} of {_count(len(groups), 'configuration')} (seeds aside), "
        f"{evaluated} of them evaluated under threats. {'; '.join(parts)}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
