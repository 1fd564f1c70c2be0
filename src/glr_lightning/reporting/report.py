"""Compare runs, in tables and figures.

    report.md         the tables, the figures, the environment
    report.html       the same as one page that needs no other file
    results.csv       every row of every run's robustness.csv, with the run's experiment, seed and config_hash
    environment.json  versions and devices
    paper_*           the tables of `paper_tables`, where there is something to compare, as CSV and LaTeX
    *.png             see `figures`
    robustbench/*     each evaluated run in the format of RobustBench, see `robustbench`
    gallery/*.png     examples of attacked images of each run, see `gallery`

Run folders are read, and nothing in them is run.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from glr_lightning.evaluation.row import table_text
from glr_lightning.reporting.corruption_error import find_baseline
from glr_lightning.reporting.document import Document, Picture, Section, markdown
from glr_lightning.reporting.figures import draw, find_figures
from glr_lightning.reporting.gallery import GALLERY, galleries
from glr_lightning.reporting.latex import latex
from glr_lightning.reporting.page import page
from glr_lightning.reporting.paper_tables import PaperTable, paper_tables
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.robustbench import FOLDER, robustbench_json
from glr_lightning.reporting.runs import Run, file_names, read_runs
from glr_lightning.reporting.tables import Table
from glr_lightning.reporting.tables.cells import estimator
from glr_lightning.reporting.tables.corruption_errors import corruption_error_table
from glr_lightning.reporting.tables.environment import environment_table, environments
from glr_lightning.reporting.tables.robustness import not_evaluated, robustness_tables
from glr_lightning.reporting.tables.runs import runs_table
from glr_lightning.reporting.tables.seeds import seeds_tables
from glr_lightning.storage import write_files

REPORT, PAGE, RESULTS, ENVIRONMENT = "report.md", "report.html", "results.csv", "environment.json"
STALE = ("paper_*.csv", "paper_*.tex", f"{GALLERY}/*.png", f"{FOLDER}/*.json")
"""What an earlier report may have left, beside figures, and a new one may lack."""


def report(
    folders: Sequence[Path], out: Path, mce_baseline: str | None = None, figures: Sequence[str] = ()
) -> list[Table]:
    """Write the report of some run folders into `out`, which is made if missing.

    Everything is read and drawn before the first file is written. An earlier report in `out` is replaced.

    Args:
        folders: run folders.
        out: the folder of the report.
        mce_baseline: the name of a run, or the label of an experiment, that corruption errors are relative to.
        figures: modules with further figures, see `reporting.figures`.

    Returns:
        The tables that sum it up, for the screen.

    Raises:
        CheckpointError: if a run cannot be read.
        ConfigurationError: if the folder cannot be written, the baseline is not among the runs, or a module has no
            figures.
    """
    known = find_figures(figures)
    comparison = Comparison.of(read_runs(folders))
    runs = comparison.runs
    papers = paper_tables(comparison.experiments)
    errors = []
    if mce_baseline is not None:
        baseline = find_baseline(mce_baseline, comparison.experiments)
        errors = [corruption_error_table(runs, baseline, mce_baseline)]
    pictures = draw(comparison, known)
    examples = galleries(runs)
    document = _document(comparison, papers, errors, pictures, examples)
    files = {REPORT: markdown(document), PAGE: page(document)}
    files |= {RESULTS: _results_csv(runs), ENVIRONMENT: json.dumps(environments(runs), indent=2) + "\n"}
    for paper in papers:
        files |= {f"{paper.name}.csv": paper.csv(), f"{paper.name}.tex": latex(paper.table())}
    evaluated = {run.name: run for run in runs if run.cells}
    for name, file in file_names(evaluated, ".json").items():
        files[f"{FOLDER}/{file}"] = robustbench_json(evaluated[name])
    images = {picture.name: picture.png for picture in (*pictures, *examples)}
    stale = (*STALE, *(figure.name for figure in known), *_figures_of(out / REPORT))
    write_files(out, {name: text.encode() for name, text in files.items()} | images, stale=stale)
    return robustness_tables(runs, comparison.columns) if comparison.columns else [runs_table(runs)]


def _figures_of(earlier: Path) -> list[str]:
    """The figures beside an earlier report, which names them; those of modules that are not asked for now included."""
    try:
        return re.findall(r"!\[[^\]]*\]\((\w+\.png)\)", earlier.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):  # there is none, or it is none of ours
        return []


def _document(
    comparison: Comparison,
    papers: Sequence[PaperTable],
    errors: Sequence[Table],
    pictures: Sequence[Picture],
    examples: Sequence[Picture],
) -> Document:
    """Arrange what report.md and report.html say."""
    runs, columns = comparison.runs, comparison.columns
    sections = [
        Section("Runs", [runs_table(runs)]),
        Section("Accuracy under threat / %", robustness_tables(runs, columns) if columns else [not_evaluated(runs)]),
        Section("Several seeds: accuracy / %", seeds_tables(comparison.experiments, columns)),
        *(Section(f"As published: {paper.title}", [paper.table()]) for paper in papers),
        Section("Mean corruption error", errors),
        Section("Figures", pictures),
        Section("Attacked images", examples),
        Section("Environment", [environment_table(runs)] if environments(runs) else []),
    ]
    title = f"Report on {_count(len(runs), 'run')}"
    return Document(title, _summary(comparison), [section for section in sections if section.parts])


def _results_csv(runs: Sequence[Run]) -> str:
    """Return all rows of all runs, unrounded; `run` is the name that the report uses."""
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


def _summary(comparison: Comparison) -> str:
    runs = comparison.runs
    sections = {"data": "Data", "network": "networks", "activation": "activations", "loss": "losses"}
    parts = [f"{title}: {', '.join(dict.fromkeys(run.target(key) for run in runs))}" for key, title in sections.items()]
    parts.append(f"estimators: {', '.join(dict.fromkeys(map(estimator, runs)))}")
    evaluated = sum(bool(run.rows) for run in runs)
    return (
        f"{_count(len(runs), 'run')} of {_count(len(comparison.experiments), 'configuration')} (seeds aside), "
        f"{evaluated} of them evaluated under threats. {'; '.join(parts)}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
