"""The report says what the run folders say: every number, its warnings, and nothing that was not measured."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from glr_lightning.config import config_hash
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.evaluation.row import FIELDS, read_rows, write_rows
from glr_lightning.evaluation.summary import wilson_interval
from glr_lightning.reporting.figures import find_figures
from glr_lightning.reporting.figures.accuracy_per_threat import accuracy_per_threat
from glr_lightning.reporting.figures.learning_curves import learning_curves
from glr_lightning.reporting.figures.severity import severity
from glr_lightning.reporting.report import report
from glr_lightning.reporting.results import Comparison, all_columns, differences, experiments, t_interval
from glr_lightning.reporting.runs import read_metrics, read_runs, run_names
from glr_lightning.reporting.style import COLOURS, MARKERS
from tests.checks.reports import MASKED, VERSIONS, N, call, make_run, row, section, standard, table, written

DRAWN = [figure.name for figure in find_figures() if figure.name != "certified.png"]  # nothing here is certified


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    folder, same = tmp_path / "runs", ["batch_size=64", "optimizer.lr=0.01", "data.validation=0.1"]
    ratio = ["estimator=likelihood_ratio", "copies=64", "callbacks=[]"]
    threshold = make_run(folder / "lrtz", *ratio, *same, rows=[*standard(), MASKED], accuracy=180 / N)
    backprop = make_run(
        folder / "bp", "experiment=bp", *same, rows=standard(190, 5), accuracy=0.91, forwards=6470, best_epoch=1
    )
    return [threshold, backprop]


# --- numbers --------------------------------------------------------------------------------------------------------


def test_results_hold_every_row_unrounded(two: list[Path], tmp_path: Path) -> None:
    report(two, tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for folder, experiment in zip(two, (None, "bp"), strict=True):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        own = [r for r in found if r["run"] == folder.name]
        assert {(r["experiment"], r["seed"], r["config_hash"]) for r in own} == {
            (experiment or "", "0", config_hash(config))
        }
        with (tmp_path / "back.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(r | {"run": "elsewhere"} for r in own)
        assert read_rows(tmp_path / "back.csv") == read_rows(folder / "robustness.csv")


def test_runs_table(two: list[Path], tmp_path: Path) -> None:
    rows = table(written(two, tmp_path / "out"), "Runs")
    low, high = wilson_interval(180, N)
    assert rows["lrtz"] == {
        "run": "lrtz",
        "data": "Digits",
        "network": "mlp",
        "activation": "HardThreshold",
        "loss": "ZeroOne",
        "estimator": "LikelihoodRatio (K = 64)",
        "also differs in": "network.centre=0.5",
        "test accuracy / %": "90.00",
        "95 % interval": f"{100 * low:.2f} – {100 * high:.2f}",
        "best epoch": "3",  # counted from 1
        "train seconds": "12.3",
        "forwards": "43,210",
        "parameters": "3,760",
    }
    assert rows["bp"]["estimator"] == "Backprop"
    assert (rows["bp"]["test accuracy / %"], rows["bp"]["best epoch"], rows["bp"]["forwards"]) == (
        "91.00",
        "2",
        "6,470",
    )
    # its clean row says 95 %: measured on other images or another checkpoint, so n of the 91 % is not known
    assert rows["bp"]["95 % interval"] == "—"


def test_robustness_table(two: list[Path], tmp_path: Path) -> None:
    text = written(two, tmp_path / "out")
    rows = table(text, "Accuracy under threat")
    assert list(rows["lrtz"]) == [
        "run",
        "clean",
        "fgsm<br>epsilon 0.13 (linf)<br>gradient: transfer",
        "fgsm<br>epsilon 0.13 (linf)<br>gradient: autograd",
        "blur<br>mean of severity 1–5<br>cifar10_c",
        "noise<br>mean of severity 1, 3<br>cifar10_c",
        "images",
    ]
    assert list(rows["lrtz"].values()) == ["lrtz", "90.00", "45.00", "89.00 †1", "58.50", "84.00", "200"]
    assert list(rows["bp"].values()) == ["bp", "95.00", "47.50", "—", "61.00", "86.50", "200"]
    below = section(text, "Accuracy under threat")
    assert "†1 unreliable (97 % are zero)" in below
    assert "fgsm epsilon 0.13 (linf): no white-box claim." in below
    widest = max(high - low for low, high in (wilson_interval(c, N) for c in range(90, 106)))
    assert f"at most {50 * widest:.2f} either way" in below


def test_one_marked_severity_marks_the_mean(tmp_path: Path) -> None:
    rows = standard()
    rows[4] = replace(rows[4], out_of_budget=True, note="3 of 200 images break the rules")
    text = written([make_run(tmp_path / "a", rows=rows)], tmp_path / "out")
    cells = table(text, "Accuracy under threat")["a"]
    assert cells["blur<br>mean of severity 1–5<br>cifar10_c"] == "58.50 †1"
    assert "†1 severity 3: out of budget (3 of 200 images break the rules)" in text
    assert [cell for cell in cells.values() if "†" in cell] == ["58.50 †1"]


def test_other_severities_epsilons_and_presets_are_other_columns(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", rows=[row("blur", 100, s, "corruption") for s in (1, 2)])
    b = make_run(tmp_path / "b", rows=[row("blur", 120, 1, "corruption"), row("blur", 90, 1, "corruption", preset="x")])
    c = make_run(tmp_path / "c", rows=[row("pgd", 10 * k, k / 10, "attack") for k in (1, 2)])
    words = [" ".join(column.words) for column in all_columns(read_runs([a, b, c]))]
    assert words == [
        "pgd epsilon 0.1 (linf) gradient: none",
        "pgd epsilon 0.2 (linf) gradient: none",
        "blur mean of severity 1, 2",
        "blur severity 1",
        "blur severity 1 x",
    ]


def test_environment(two: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "runs" / "gpu", device="cuda:0", versions={"python": "3.12", "cuda": "13"})
    text = written([*two, other], tmp_path / "out")
    assert table(text, "Environment") == {
        "python": {"package": "python", "bp, lrtz": "3.11", "gpu": "3.12"},
        "torch": {"package": "torch", "bp, lrtz": "2.9", "gpu": "—"},
        "cuda": {"package": "cuda", "bp, lrtz": "—", "gpu": "13"},
        "device": {"package": "device", "bp, lrtz": "cpu", "gpu": "cuda:0"},
    }
    assert json.loads((tmp_path / "out" / "environment.json").read_text())[0] == {
        "versions": VERSIONS,
        "device": "cpu",
        "runs": ["bp", "lrtz"],
    }


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_t_interval() -> None:
    # tables: t of 0.975 is 12.7062 with 1 degree of freedom and 4.30265 with 2
    assert t_interval([0.8, 0.9]) == pytest.approx((0.85, 12.7062 * 0.0707107 / 2**0.5), rel=1e-5)
    assert t_interval([1.0, 2.0, 6.0]) == pytest.approx((3.0, 4.30265 * 7**0.5 / 3**0.5), rel=1e-5)


def test_seeds_are_averaged(tmp_path: Path) -> None:
    accuracies = [0.80, 0.90, 0.97]
    for seed, accuracy in enumerate(accuracies):
        rows = [row("clean", round(N * accuracy))] + ([MASKED] if seed else [])
        options = ["experiment=lrt", "sigma=1.0", f"seed={seed}"]
        make_run(tmp_path / "sweep" / str(seed), *options, rows=rows, accuracy=accuracy)
    make_run(tmp_path / "sweep" / "3", "experiment=lrt", "seed=0", "sigma=0.5", rows=standard())
    make_run(
        tmp_path / "sweep" / "4", "experiment=lrt", "seed=2", "sigma=1.0", accuracy=0.1
    )  # the same again proves nothing
    text = written(sorted((tmp_path / "sweep").iterdir()), tmp_path / "out")
    seeds = table(text, "Several seeds")
    assert list(seeds) == ["lrt, sigma=1.0 (3 seeds)"]
    mean, half = sum(accuracies) / 3, 4.302653 * np.std(accuracies, ddof=1) / 3**0.5
    cells = seeds["lrt, sigma=1.0 (3 seeds)"]
    assert cells["seeds"] == "0, 1, 2"
    assert cells["test accuracy"] == cells["clean"] == f"{100 * mean:.2f} ± {100 * half:.2f}"
    assert cells["fgsm<br>epsilon 0.13 (linf)<br>gradient: autograd"] == "89.00 ± 0.00 (2) †1"
    assert "†1 in 2 of 2 seeds: unreliable (97 % are zero)" in text
    assert "4 left out, for another run has the same seed and settings" in text
    assert table(text, "Runs")["3"]["also differs in"] == "sigma=0.5"


def test_no_table_of_seeds_without_seeds(two: list[Path], tmp_path: Path) -> None:
    assert "Several seeds" not in written(two, tmp_path / "out")


def test_labels_tell_experiments_apart(tmp_path: Path) -> None:
    for job, overrides in enumerate([("loss=zero_one",), ("loss=cross_entropy",), ("loss=zero_one", "optimizer.lr=1")]):
        make_run(tmp_path / "sweep" / str(job), *overrides)
    make_run(tmp_path / "sweep" / "named", "experiment=bp")
    labels = list(experiments(read_runs(list((tmp_path / "sweep").iterdir()))))
    assert labels[3] == "named"
    assert all(
        part in label for part, label in zip(["ZeroOne", "CrossEntropy", "optimizer.lr=1"], labels, strict=False)
    )


def test_long_labels_give_way_to_the_folder_of_the_seeds(tmp_path: Path) -> None:
    many = [f"optimizer.{key}=0.5" for key in ("lr", "weight_decay")]
    for seed in (0, 1):
        for folder, overrides in {"one": ["sigma=0.125", *many], "other": ["sigma=0.25", "batch_size=7"]}.items():
            make_run(tmp_path / folder / f"seed{seed}", f"seed={seed}", *overrides)
    folders = list(tmp_path.glob("*/*"))
    assert list(experiments(read_runs(folders))) == ["one (2 seeds)", "other (2 seeds)"]
    make_run(tmp_path / "other" / "stranger", "sigma=0.75")  # the folder is no longer that experiment's alone
    labels = list(experiments(read_runs([*folders, tmp_path / "other" / "stranger"])))
    assert labels[0] == "one (2 seeds)"
    assert "batch_size=7" in labels[1]


# --- what is missing or odd -----------------------------------------------------------------------------------------


def test_runs_that_are_not_evaluated(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = written([make_run(tmp_path / "a")], out)
    assert table(text, "Runs")["a"]["95 % interval"] == "—"
    assert "Not evaluated yet: a." in section(text, "Accuracy under threat")
    assert sorted(p.name for p in out.iterdir()) == [
        "environment.json",
        "learning_curves.png",
        "report.html",
        "report.md",
        "results.csv",
    ]


def test_unfinished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "result.json").unlink()
    (folder / "metrics.csv").unlink()
    text = written([folder], tmp_path / "out")
    assert table(text, "Runs")["a"]["test accuracy / %"] == "—"
    assert "training has not ended: a" in text
    assert "## Figures" not in text


def test_metrics_are_merged_by_epoch(tmp_path: Path) -> None:
    metrics = read_metrics(make_run(tmp_path / "a") / "metrics.csv")
    assert metrics[1] == {
        "step": 1.0,
        "val_accuracy": 0.6,
        "val_loss": 0.33,
        "train_accuracy": 0.5,
        "train_loss": 0.5,
    }


def test_nothing_from_a_run_is_taken_for_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("clean", 180, unreliable=True, note="<b>x</b> | [red]y[/red]")]
    folder = make_run(tmp_path / "a[b]|c", rows=rows)
    text = written([folder], tmp_path / "out")
    assert "\\<b>x\\</b> \\| \\[red]y" in text
    assert "a\\[b]\\|c | 90.00 †1 | 200" in text
    assert call(monkeypatch, f"runs={tmp_path}", f"out={tmp_path / 'out'}") == 0
    assert "<b>x</b> | [red]y[/red]" in capsys.readouterr().out


def test_names() -> None:
    def named(*paths: str) -> list[str]:
        return run_names([Path(path) for path in paths])

    assert named("/r/x/a") == ["a"]
    assert named("/r/x/a", "/r/y/b") == ["x/a", "y/b"]
    assert named("/r/a", "/r/a/b") == ["a", "a/b"]
    assert named("/r/one/a-folder-with-a-very-long-name-indeed-and-then-some-more/x", "/r/b") == ["one/…/x", "b"]
    long = [f"/r/one/a-folder-with-a-very-long-name-indeed-and-then-some-more-{i}/x" for i in (1, 2)]
    assert named(*long) == [f"a-folder-with-a-very-long-name-indeed-and-then-some-more-{i}/x" for i in (1, 2)]
    assert len(set(named("/r/b", *long))) == 3


def test_jobs_of_a_sweep_are_in_order(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / job) for job in ("10", "9", "1")])
    assert [run.name for run in runs] == ["1", "9", "10"]


def damage(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage("result.json", "{"), "result.json cannot be read as JSON"),
        (damage("result.json", '{"test_accuracy": "high"}'), "no valid 'test_accuracy'"),
        (damage("metrics.csv", "epoch,train_loss\nx,1\n"), "metrics.csv is damaged"),
        (damage("metrics.csv", "train_loss\n1\n"), "metrics.csv is damaged"),
        (damage("metrics.csv", ""), "it is empty"),
        (damage("metrics.csv", "epoch,train_loss\n0,1\n1\n"), "line 3 has not as many cells"),
        (damage("robustness.csv", "a,b\n"), "is no table of results"),
        (damage("config.yaml", "- 1"), "does not hold a mapping"),
        (damage("config.yaml", "date: 2020-01-01"), "holds more than plain values"),
        (lambda folder: write_rows(folder / "robustness.csv", [row("clean", 1)] * 2), "has two rows for clean"),
    ],
)
def test_damaged_files_are_refused(
    spoil: Callable[[Path], object],
    message: str,
    two: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(two[1])
    assert call(monkeypatch, f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(two[1]) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["runs={}/nothing*"], ["runs=[]"], ["runs={{a:1}}"], ["runs=null"], []])
def test_no_runs(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *(a.format(tmp_path) for a in arguments), f"out={tmp_path / 'out'}") == 2
    assert "error:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_that_is_no_folder(
    out: str, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert call(monkeypatch, f"runs={two[0]}", f"out={tmp_path / out}") == 2
    assert "choose another out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_figures_of_an_earlier_report_do_not_stay(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report(two, out)
    (out / "notes.txt").write_text("mine")
    (two[0] / "robustness.csv").unlink()
    report(two[:1], out)
    assert {p.name for p in out.iterdir()} == {
        "learning_curves.png",
        "environment.json",
        "report.html",
        "report.md",
        "results.csv",
        "notes.txt",
    }


def test_missing_folder_is_an_error_of_reading(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.yaml"):
        report([tmp_path], tmp_path / "out")
    folder = make_run(tmp_path / "a")
    (folder / "result.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no valid 'test_accuracy'"):
        report([folder], tmp_path / "out")


# --- the command ----------------------------------------------------------------------------------------------------


def test_folder_glob_and_list_name_the_same_runs(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = []
    for place, runs in enumerate(["runs", "runs/*", f"[runs/bp,runs/lrtz,{two[0]}]"]):
        assert call(monkeypatch, f"runs={runs}", f"out=deep/{place}") == 0
        texts.append({p.name: p.read_bytes() for p in (tmp_path / "deep" / str(place)).rglob("*") if p.is_file()})
    assert texts[0] == texts[1] == texts[2]  # the same bytes, figures included: nothing depends on the hour or the path
    assert set(texts[0]) == {
        "report.md",
        "report.html",
        "results.csv",
        "environment.json",
        "bp.json",
        "lrtz.json",
        *DRAWN,
    }
    shown = capsys.readouterr().out
    assert re.search(r"lrtz +90\.00 +45\.00 +89\.00 †1 +58\.50 +84\.00 +200", shown)
    assert "†1 unreliable (97 % are zero)" in shown
    assert shown.rstrip().endswith("report: deep/2/report.md\nopen in a browser: deep/2/report.html")


def test_one_run(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in two[0].iterdir()}
    assert call(monkeypatch, f"runs={two[0]}", f"out={tmp_path / 'out'}") == 0
    assert "# Report on 1 run\n" in (tmp_path / "out" / "report.md").read_text()
    assert before == {p: p.read_bytes() for p in two[0].iterdir()}
    assert read_rows(two[0] / "robustness.csv")


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_drawn_and_embedded(two: list[Path], tmp_path: Path) -> None:
    text = written(two, tmp_path / "out")
    for name in DRAWN:
        assert f"]({name})" in text
        image = imread(tmp_path / "out" / name)[..., :3]
        assert image.shape[0] > 250
        assert image.shape[1] > 500
        for colour in COLOURS[:2] if name != "corruptions.png" else ():  # each run has left its mark
            assert (np.abs(image - to_rgb(colour)).max(axis=-1) < 0.01).sum() > 50


def points(axes: Axes) -> list[Any]:
    """The lines of a panel, typed so that their data may be read."""
    return list(axes.lines)


def test_curves_show_the_metrics(two: list[Path], tmp_path: Path) -> None:
    lines = (two[0] / "metrics.csv").read_text().splitlines()
    (two[0] / "metrics.csv").write_text("\n".join(line for line in lines if ",0.33," not in line))  # no validation
    figure = learning_curves(Comparison.of(read_runs(two)))
    assert figure is not None
    accuracy, *losses = figure.axes
    by_width = {line.get_linewidth(): list(line.get_ydata()) for line in points(accuracy)}
    assert by_width[1.5] == pytest.approx([50, 60, 70])  # bp: validation
    assert by_width[0.7] == pytest.approx([40, 50, 60])  # lrtz: training
    assert [axes.get_title() for axes in losses] == ["Training loss: CrossEntropy", "Training loss: ZeroOne"]
    assert all(list(points(axes)[0].get_ydata()) == pytest.approx([1, 1 / 2, 1 / 3]) for axes in losses)


def test_dots_show_the_table_and_marked_ones_are_hollow(two: list[Path]) -> None:
    comparison = Comparison.of(read_runs(two))
    figure = accuracy_per_threat(comparison)
    assert figure is not None
    axes = figure.axes[0]
    dots = [line for line in points(axes) if line.get_marker() in MARKERS]
    shown = {(round(line.get_ydata()[0]), line.get_xdata()[0]): line.get_markerfacecolor() for line in dots}
    expected = {
        (place, 100 * run.cells[column].accuracy)
        for place, column in enumerate(comparison.columns)
        for run in comparison.runs
        if column in run.cells
    }
    assert set(shown) == expected
    assert [place for place, face in shown.items() if face == "white"] == [(2, 89.0)]


def test_of_many_threats_those_with_a_curve_have_no_dots(tmp_path: Path, two: list[Path]) -> None:
    comparison = Comparison.of(read_runs(two))
    columns = comparison.columns
    many = [replace(column, levels=(0.01 * k,)) for k in range(20) for column in columns if column.kind == "attack"]
    figure = accuracy_per_threat(replace(comparison, columns=[*columns, *many]))
    assert figure is not None
    axes = figure.axes[0]
    others = [column for column in columns if column.kind != "attack" or not column.levels]
    assert len(axes.get_yticks()) == len(others) > 1


def test_seeds_share_a_line(two: list[Path], tmp_path: Path) -> None:
    first = Comparison.of(read_runs(two))
    seeds = replace(first, experiments={label: [run, run, run] for label, (run,) in first.experiments.items()})
    one, several = accuracy_per_threat(first), accuracy_per_threat(seeds)
    assert one is not None
    assert several is not None
    assert one.get_figheight() == several.get_figheight()


def test_severities_show_the_rows(two: list[Path]) -> None:
    figure = severity(Comparison.of(read_runs(two)))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["blur\ncifar10_c", "noise\ncifar10_c"]
    lines = [line for line in points(figure.axes[0]) if len(line.get_xdata()) == 6]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([100 * k / N for k in (190, 152, 143, 128, 107, 80)]),
        pytest.approx([100 * k / N for k in (180, 147, 138, 123, 102, 75)]),
    ]


def test_a_callback_that_only_some_runs_have_tells_them_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "plain", "experiment=lrt", "callbacks=[]")
    make_run(
        tmp_path / "revived", "experiment=lrt", "callbacks=[class_collapse]", "callbacks.class_collapse.revive=0.25"
    )
    make_run(tmp_path / "measured", "experiment=lrt", "callbacks=[gradient_quality]")  # which changes no training
    found = differences(read_runs(sorted(tmp_path.iterdir())))
    assert found == {"measured": "", "plain": "", "revived": "class_collapse.revive=0.25"}
