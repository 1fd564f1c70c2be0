"""Paper 1's two tables: who is in which row, what stands beside it, and their LaTeX."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from glr_lightning.evaluation.row import Row
from glr_lightning.reporting.latex import latex
from glr_lightning.reporting.paper_tables import model_of, paper_tables
from glr_lightning.reporting.published import ATTACKS, PUBLISHED
from glr_lightning.reporting.results import experiments, t_interval
from glr_lightning.reporting.runs import read_runs
from glr_lightning.reporting.tables import Table
from glr_lightning.runs.trained_run import find_runs
from tests.checks.reports import make_run, row, section, written

SUMS = {"mnist": 278071, "fashion_mnist": 209499, "tiny_imagenet_10": 52981}


def papers(shift: int = 0, source: str = "transfer", surrogate: str = "surrogate/relu") -> list[Row]:
    attack = row("fgsm", 90 + shift, 0.13, "attack", gradient_source=source, surrogate=surrogate)
    blur = [row("glass_blur", 150 - 3 * s, s, "corruption", preset="cifar10_c") for s in (1, 2, 3, 4, 5)]
    return [row("clean", 180 + shift), attack, *blur]


MODELS = {
    "BP": ["experiment=bp"],
    "BP+": ["experiment=bp_noise"],
    "LRS": ["experiment=lrs"],
    "LRT": ["experiment=paper/lrt"],
    "LRSZ": ["experiment=lrsz"],
    "LRTZ": ["experiment=lrtz"],
    "": ["experiment=straight_through"],
}


def test_models_are_told_by_what_they_are(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(place), *options) for place, options in enumerate(MODELS.values())]
    folders.append(make_run(tmp_path / "relu", "experiment=lrt", "activation=relu"))
    assert [model_of(run) for run in read_runs(folders)] == [*MODELS, ""]


@pytest.mark.parametrize("estimator", ["forward_gradient", "evolution_strategies", "hybrid"])
def test_other_methods_have_no_name_in_the_paper(estimator: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "~experiment", "loss=cross_entropy", f"estimator={estimator}")
    assert [model_of(run) for run in read_runs([folder])] == [""]


def test_only_one_noisy_pass_is_the_papers_noisy_backpropagation(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "experiment=bp_noise", "copies=4")
    assert [model_of(run) for run in read_runs([folder])] == [""]


@pytest.mark.parametrize(("family", "model"), [("likelihood ratio", "LRT"), ("of my own", ""), (None, "")])
def test_an_estimator_of_another_package_is_told_by_the_family_it_declared(
    family: str | None, model: str, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", "experiment=lrt", family=family)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["estimator"]["_target_"] = "mypkg.Backprop"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (run,) = read_runs([folder])
    assert model_of(run) == model
    assert run.target("estimator") == "mypkg.Backprop"


@pytest.mark.parametrize("key", ["network", "activation", "loss"])
def test_parts_of_another_package_are_not_the_papers(key: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "experiment=lrt")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[key]["_target_"] = "mypkg." + config[key]["_target_"].rpartition(".")[2]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert [model_of(run) for run in read_runs([folder])] == [""]


def number(model: str, threat: str) -> str:
    """A published accuracy on MNIST in %."""
    return f"{100 * (PUBLISHED['mnist'].accuracy(model, threat) or 0):.2f}"


def test_the_published_numbers_are_those_of_the_authors() -> None:
    """The sums of each data set's numbers, in hundredths: a digit that changes shows."""
    sums = {name: round(sum(sum(v) for v in data.accuracies.values()) * 100) for name, data in PUBLISHED.items()}
    assert sums == SUMS
    assert all(len(values) == 7 for data in PUBLISHED.values() for values in data.accuracies.values())


def test_paper_tables_are_in_the_papers_layout(tmp_path: Path) -> None:
    accuracies = [0.90, 0.92]
    for seed in (0, 1):
        rows = papers(4 * seed)
        make_run(tmp_path / "lrt" / f"seed{seed}", "experiment=lrt", "data=mnist", f"seed={seed}", rows=rows)
    make_run(tmp_path / "wide", "experiment=wide/lrt", "data=mnist", rows=[*papers(), papers(9, surrogate="tanh")[1]])
    make_run(tmp_path / "noisy", "experiment=bp_noise", "data=mnist", rows=[row("clean", 100)])
    make_run(tmp_path / "st", "experiment=straight_through", "data=mnist", rows=papers())
    out = tmp_path / "out"
    text = written(find_runs(str(tmp_path)), out)
    attacks = section(text, "As published: MNIST: attacks")
    assert "Ours are of 200 test images." in attacks
    lines = [line.strip("| ").split(" | ") for line in attacks.splitlines() if line.startswith("|")]
    rows = {(cells[0], cells[1]): cells[2:] for cells in lines[2:]}
    assert [model for model, _ in rows] == ["BP", "BP+", "LRS", "LRT", "LRT", "LRSZ", "LRTZ"]
    assert rows["BP", "—"] == ["—", *(f"— ({number('BP', threat)})" for threat in ATTACKS)]
    assert rows["BP+", "noisy"] == ["0", "50.00 (—)", "— (—)", "— (—)"]
    clean, lbfgs, fgsm = (number("LRT", threat) for threat in ATTACKS)
    assert rows["LRT", "wide"] == ["0", f"90.00 ({clean})", f"— ({lbfgs})", f"45.00 ({fgsm})"]
    mean, half = t_interval(accuracies)
    (label,) = (key for key in rows if key[0] == "LRT" and "seeds" in key[1])
    assert rows[label][:2] == ["0, 1", f"{100 * mean:.2f} ± {100 * half:.2f} ({clean})"]
    with (out / "paper_mnist_attacks.csv").open(newline="") as file:
        found = {(r["model"], r["seeds"]): r for r in csv.DictReader(file)}
    assert float(found["LRT", "0, 1"]["clean"]) == pytest.approx(100 * mean)
    assert float(found["LRT", "0, 1"]["clean_half_width"]) == pytest.approx(100 * half)
    assert (found["LRTZ", ""]["fgsm"], found["LRTZ", ""]["fgsm_published"]) == ("", number("LRTZ", "fgsm"))
    tex = (out / "paper_mnist_attacks.tex").read_text()
    assert rf"LRT & wide & 0 & 90.00 ({clean}) & --- ({lbfgs}) & 45.00 ({fgsm}) \\" in tex
    corrupted = section(text, "As published: MNIST: corruptions")
    assert f"70.50 ({number('LRT', 'glass_blur')})" in corrupted  # (150 - 3 * 3) / 200
    assert "paper_fashion_mnist_attacks.csv" not in {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["data=digits"], papers()),
        (["data=mnist", "data.resize=14"], papers()),
        (["data=mnist"], [row("clean", 180)]),
        (["data=mnist"], papers(source="autograd", surrogate="")[:2]),
        (["data=mnist"], [replace(papers()[1], level=0.2)]),
        (["data=mnist"], [replace(papers()[1], targeted=True)]),
        (["data=mnist"], [replace(papers()[1], noisy_passes=8)]),
        (["data=mnist"], papers()[2:6]),
    ],
)
def test_no_paper_table_without_the_papers_settings(options: list[str], rows: list[Row], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "experiment=lrt", *options, rows=rows)
    assert paper_tables(experiments(read_runs([folder]))) == []


def test_a_paper_table_keeps_the_flags(tmp_path: Path) -> None:
    rows = papers()
    rows[1] = replace(rows[1], out_of_budget=True, note="3 of 200 images break the rules")
    folder = make_run(tmp_path / "a", "experiment=lrt", "data=mnist", rows=rows)
    paper, _ = paper_tables(experiments(read_runs([folder])))
    found = paper.table()
    assert f"45.00 †1 ({number('LRT', 'fgsm')})" in found.rows[2]
    assert found.notes[0] == "†1 out of budget (3 of 200 images break the rules)"
    rows = [replace(each, randomized=True) for each in papers()]
    other = make_run(tmp_path / "b", "experiment=wide/lrt", "data=mnist", rows=rows)
    paper, _ = paper_tables(experiments(read_runs([folder, other])))
    assert "clean of b: predictions are random." in paper.table().notes


def test_latex_escapes_whatever_a_run_is_called() -> None:
    hostile = r"\input{/etc/passwd} 50% & a_b #1 $x$ ^~ <b> | † ± —"
    text = latex(Table([["run"], ["clean", "%"]], [[hostile, "1"]], ["a\nb"]))
    (line,) = (line for line in text.splitlines() if "passwd" in line)
    assert line == (
        r"\textbackslash{}input\{/etc/passwd\} 50\% \& a\_b \#1 \$x\$ \textasciicircum{}\textasciitilde{} "
        r"\textless{}b\textgreater{} \textbar{} \dag{} $\pm$ --- & 1 \\"
    )
    assert text.splitlines()[0] == r"\begin{tabular}{lr}"
    assert text.endswith("\\multicolumn{2}{p{\\linewidth}}{\\footnotesize a b} \\\\\n\\end{tabular}\n")
