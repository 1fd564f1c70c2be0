"""What a report says of robustness: comparable columns, flags that no table or figure loses, and honest comparisons."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.axes import Axes

from glr_lightning.evaluation.row import Row
from glr_lightning.reporting.columns import Column, table_cells
from glr_lightning.reporting.corruption_error import corruption_error
from glr_lightning.reporting.figures import draw, find_figures
from glr_lightning.reporting.figures.certified import certified
from glr_lightning.reporting.figures.corruptions import corruptions
from glr_lightning.reporting.figures.epsilon import epsilon
from glr_lightning.reporting.report import report
from glr_lightning.reporting.results import Comparison, all_columns
from glr_lightning.reporting.robustbench import _architecture
from glr_lightning.reporting.runs import Run, file_names, read_runs
from glr_lightning.reporting.tables.corruption_errors import corruption_error_table
from glr_lightning.reporting.tables.robustness import robustness_table, robustness_tables
from tests.checks.gallery import looked_at
from tests.checks.refusals import refused
from tests.checks.reports import MASKED, N, call, make_run, row, section, standard, table, written

# --- columns --------------------------------------------------------------------------------------------------------


def test_what_makes_numbers_incomparable_makes_other_columns() -> None:
    attack = row("pgd", 100, 0.1, "attack", gradient_source="autograd")
    others = [
        {"norm": "l2"},
        {"gradient_source": "transfer", "surrogate": "surrogate/relu"},
        {"gradient_source": "transfer", "surrogate": "surrogate/tanh"},
        {"targeted": True},
        {"noisy_passes": 32},
    ]
    words = [
        " | ".join(column.words) for column in table_cells([attack, *(replace(attack, **other) for other in others)])
    ]
    assert words == [
        "pgd | epsilon 0.1 (linf) | gradient: autograd",
        "pgd | epsilon 0.1 (l2) | gradient: autograd",
        "pgd | epsilon 0.1 (linf) | gradient: transfer, surrogate/relu",
        "pgd | epsilon 0.1 (linf) | gradient: transfer, surrogate/tanh",
        "pgd | epsilon 0.1 (linf) | gradient: autograd | targeted",
        "pgd | epsilon 0.1 (linf) | gradient: autograd | noisy passes 32",
    ]


def test_kinds_are_in_order_and_the_worst_case_is_the_headline(tmp_path: Path) -> None:
    bound = row("smoothing", 50, 0.5, "certificate", norm="l2", abstained=0.25)
    worst = row("worst_case", 60, 0.13, "worst_case", mean_l2=None, note="right under each of 2 attacks: a, b")
    folder = make_run(tmp_path / "a", rows=[bound, *standard()[2:], worst, *standard()[:2]])
    kinds = [column.kind for column in all_columns(read_runs([folder]))]
    assert kinds == ["clean", "attack", "worst_case", "corruption", "corruption", "certificate"]
    text = written([folder], tmp_path / "out")
    cells = table(text, "Accuracy under threat")["a"]
    assert cells["worst case<br>epsilon 0.13 (linf)"] == "**30.00**"
    assert [cell for cell in cells.values() if "*" in cell] == ["**30.00**"]
    below = section(text, "Accuracy under threat")
    assert "worst case epsilon 0.13 (linf): right under each of 2 attacks: a, b." in below
    assert "smoothing radius 0.5 (l2): abstains on 25 % of the images." in below


def test_the_row_of_most_images_counts_and_fewer_are_said(tmp_path: Path) -> None:
    few = {"n": 100, "accuracy": 0.5}
    for rows in ([row("clean", 180), row("clean", 50, **few)], [row("clean", 50, **few), row("clean", 180)]):
        (cell,) = table_cells(rows).values()
        assert (cell.accuracy, cell.remarks) == (0.9, [])
    worst = [row("worst_case", 60, 0.1, "worst_case"), row("worst_case", 9, 0.1, "worst_case", n=100, note="more")]
    (cell,) = table_cells(worst).values()  # a higher worst case over fewer attacks does not hide a lower one
    assert (cell.accuracy, cell.remarks) == (0.3, ["4.50 % of the first 100 images (more)"])
    many = make_run(tmp_path / "many", rows=standard())
    mixed = make_run(tmp_path / "mixed", rows=[row("clean", 180), replace(standard()[1], **few)])
    below = section(written([many, mixed], tmp_path / "out"), "Accuracy under threat")
    assert "fgsm epsilon 0.13 (linf) (mixed): of the first 100 images." in below


def test_flags_are_said_where_the_note_is_silent() -> None:
    def said(**flags: object) -> tuple[list[str], list[str]]:
        (cell,) = table_cells([row("pgd", 100, 0.1, "attack", **flags)]).values()
        return cell.warnings, cell.remarks

    assert said() == ([], [])
    assert said(randomized=True) == ([], ["predictions are random"])
    assert said(randomized=True, note="predictions are random: a mean") == ([], ["predictions are random: a mean"])
    assert said(zero_gradient_fraction=0.0125) == ([], ["1.25 % of the input gradients are exactly zero"])
    reasons = "unreliable (100 % of the input gradients are exactly zero)"
    assert said(zero_gradient_fraction=1.0, unreliable=True) == ([reasons], [])
    (warning,) = said(black_box_stronger=True)[0]
    assert warning == "unreliable (a black-box attack succeeds where this attack fails)"


def test_defaults_of_a_column_are_the_plain_clean_images() -> None:
    assert Column("clean", "clean") == next(iter(table_cells([row("clean", N)])))
    assert Column("clean", "clean").is_clean
    assert not Column("clean", "clean", noisy_passes=3).is_clean
    assert MASKED.unreliable


# --- figures --------------------------------------------------------------------------------------------------------


def attacked() -> list[Row]:
    rows = [row("clean", 180), row("clean", 100, noisy_passes=4)]
    for level, correct in ((0.1, 120), (0.2, 60)):
        rows += [
            row("pgd", correct, level, "attack", gradient_source="autograd", unreliable=level == 0.2),
            row("pgd", correct + 2, level, "attack", gradient_source="transfer", surrogate="relu"),
            row("pgd", correct + 4, level, "attack", norm="l2"),
            row("worst_case", correct - 10, level, "worst_case"),
        ]
    return rows


def lines_of(axes: Axes) -> list[Any]:
    return [line for line in list(axes.lines) if len(line.get_xdata()) > 1]


def test_accuracy_by_epsilon_starts_at_the_clean_images(tmp_path: Path) -> None:
    figure = epsilon(Comparison.of(read_runs([make_run(tmp_path / "a", rows=attacked())])))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["a: linf", "a: l2"]
    found = {line.get_linewidth(): list(line.get_ydata()) for line in lines_of(figure.axes[0])}
    assert found[4.5] == pytest.approx([90, 55, 25])  # the worst case
    assert all(list(line.get_xdata()) == [0, 0.1, 0.2] for line in lines_of(figure.axes[0]))
    dots = [line for line in list(figure.axes[0].lines) if len(line.get_xdata()) == 1]
    hollow = [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots if line.get_markerfacecolor() == "white"]
    assert hollow == [(0.2, pytest.approx(30))]
    assert "hollow" in str([text.get_text() for text in figure.legends[0].get_texts()])


def test_heat_map_shows_means_over_seeds_and_what_is_missing(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        rows = [row("blur", 100 + 20 * seed, 1, "corruption"), row("fog", 80, 2, "corruption", unreliable=seed == 1)]
        folders.append(make_run(tmp_path / str(seed), "experiment=lrt", f"seed={seed}", rows=rows))
    figure = corruptions(Comparison.of(read_runs(folders)))
    assert figure is not None
    (axes,) = figure.axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "55.0", (1, 0): "—", (0, 1): "—", (1, 1): "40.0†"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["blur", "fog"]


def test_certified_accuracy_has_a_panel_for_each_norm(tmp_path: Path) -> None:
    rows = [row("smoothing", 180 - 100 * r, r, "certificate", norm=n) for n in ("l2", "linf") for r in (0.0, 0.5, 1.0)]
    rows = [replace(each, correct=int(each.correct)) for each in rows]
    figure = certified(Comparison.of(read_runs([make_run(tmp_path / "a", rows=rows)])))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["l2", "linf"]
    for axes in figure.axes:
        (line,) = lines_of(axes)
        assert list(line.get_xdata()) == [0, 0.5, 1]
        assert list(line.get_ydata()) == pytest.approx([90, 65, 40])


def test_radii_in_different_units_share_no_axis(tmp_path: Path) -> None:
    presets = ("preactivation", "standardised")
    rows = [row("certify", 90, r, "certificate", norm="", preset=p) for p in presets for r in (0.0, 0.5)]
    figure = certified(Comparison.of(read_runs([make_run(tmp_path / "a", rows=rows)])))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["||W d||_2", "||diag(1/sigma) W d||_2"]


def test_no_figure_without_data_and_dollars_are_no_mathematics(tmp_path: Path) -> None:
    clean = Comparison.of(read_runs([make_run(tmp_path / "a", rows=[row("clean", 1)], epochs=0)]))
    drawn = [picture.name for picture in draw(clean, find_figures())]
    assert set(drawn) <= {"accuracy_per_threat.png", "learning_curves.png"}
    sign = r"$\frac{$"
    hostile = [
        replace(each, threat=sign + each.threat, preset=sign, norm=each.norm and sign + each.norm)
        for each in [*attacked(), *standard()[2:], row("a", 9, 1, "certificate", norm="l2")]
        if each.kind != "worst_case"
    ]
    folder = make_run(tmp_path / sign, rows=hostile)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["loss"]["_target_"] = sign
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert "certified.png" in written([folder], tmp_path / "out")


def test_wide_tables_are_parted_by_kind(tmp_path: Path) -> None:
    many = [row(f"attack{place}", 50, 0.1, "attack") for place in range(14)]
    runs = read_runs([make_run(tmp_path / "a", rows=[*many, *standard()])])
    parts = robustness_tables(runs, all_columns(runs))
    assert [part.heading[1] for part in parts] == [["a"], ["clean"]]
    attacks, corruptions = parts
    assert [row[0] for row in attacks.rows][:1] == ["clean"]  # too wide even so: a row for each
    assert (len(attacks.rows), len(corruptions.heading)) == (17, 5)
    whole = robustness_table(runs, all_columns(runs))
    found = {row[0] for row in attacks.rows} | {", ".join(words) for words in corruptions.heading}
    assert found == {", ".join(words) for words in whole.heading}


def test_a_remark_names_the_levels_of_its_threat_together(tmp_path: Path) -> None:
    rows = [row("pgd", 100, level, "attack", note="slow") for level in (0.1, 0.2)]
    rows += [row("blur", 100, level, "corruption", note="odd") for level in (1, 2, 3)]
    runs = read_runs([make_run(tmp_path / "a", rows=rows)])
    notes = robustness_table(runs, all_columns(runs)).notes
    assert notes[:2] == ["pgd epsilon 0.1, 0.2 (linf): slow.", "blur mean of severity 1–3: odd."]


# --- the files of a report -----------------------------------------------------------------------------------------


def test_files_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    folder, out = looked_at(tmp_path / "a"), tmp_path / "out"
    text = written([folder], out)
    assert "![a](gallery/a.png)" in text
    assert {path.name for path in (out / "gallery").iterdir()} == {"a.png"}
    (out / "robustbench" / "notes.txt").write_text("mine")
    (folder / "robustness.csv").unlink()
    written([folder], out)
    assert not (out / "gallery").exists()
    assert [path.name for path in (out / "robustbench").iterdir()] == ["notes.txt"]


def test_file_names_are_plain_and_all_different() -> None:
    names = ["a/b", "a_b", "A_B", "../../x", "<script>", "…", "c" * 300]
    assert list(file_names(names, ".png").values()) == [
        "a_b.png",
        "a_b-2.png",
        "A_B-3.png",
        "x.png",
        "script.png",
        "run.png",
        "c" * 80 + ".png",
    ]


# --- corruption errors ----------------------------------------------------------------------------------------------


def corrupted(clean: int, **counts: list[int]) -> list[Row]:
    rows = [row(name, n, s + 1, "corruption") for name, found in counts.items() for s, n in enumerate(found)]
    return [row("clean", clean), *rows]


def test_mean_corruption_error_is_the_formulas(tmp_path: Path) -> None:
    base = make_run(tmp_path / "base", rows=corrupted(190, blur=[160, 120], fog=[180], rain=[100]))
    other = make_run(tmp_path / "other", rows=corrupted(184, blur=[180, 160, 0], fog=[150], snow=[10]))
    baseline, run = read_runs([base, other])
    found = corruption_error(run, [baseline])
    assert found.mean == pytest.approx(100 * ((20 + 40) / (40 + 80) + 50 / 20) / 2)
    assert found.relative == pytest.approx(100 * ((60 - 2 * 16) / (120 - 2 * 10) + (50 - 16) / (20 - 10)) / 2)
    assert found.corruptions == ("blur", "fog")
    itself = corruption_error(baseline, [baseline])
    assert (itself.mean, itself.relative) == (pytest.approx(100), pytest.approx(100))
    assert corruption_error(run, [baseline, baseline]).mean == pytest.approx(found.mean)
    assert "Mean corruption error" not in written([base, other], tmp_path / "out")
    report([base, other], tmp_path / "out", mce_baseline="base")
    rows = table((tmp_path / "out" / "report.md").read_text(), "Mean corruption error")
    assert {name: list(cells.values())[1:] for name, cells in rows.items()} == {
        "base": ["100.0", "100.0"],
        "other": ["150.0", "184.0"],
    }


def test_a_baseline_without_errors_is_said_in_words(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "base", rows=corrupted(200, blur=[200], fog=[100]))]
    folders += [make_run(tmp_path / "other", rows=corrupted(190, blur=[180], fog=[150]))]
    baseline, run = read_runs(folders)
    found = corruption_error(run, [baseline])
    assert found.mean == pytest.approx(50)
    assert "blur left out: the baseline makes no error under it" in found.notes
    assert "blur left out of the relative mCE: it costs the baseline nothing" in found.notes
    nothing = corruption_error(run, read_runs([make_run(tmp_path / "x", rows=corrupted(200, blur=[200]))]))
    assert (nothing.mean, nothing.relative) == (None, None)
    assert "— †" in corruption_error_table([run], read_runs([tmp_path / "x"]), "x").rows[0][1]


def test_an_unknown_baseline_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(s), "experiment=bp", f"seed={s}", rows=corrupted(9, fog=[9])) for s in (0, 1)]
    with refused("mce_baseline", ": 0, 1, bp (2 seeds). Name one"):
        report(folders, tmp_path / "out", mce_baseline="none")
    assert not (tmp_path / "out").exists()
    report(folders, tmp_path / "out", mce_baseline="bp (2 seeds)")


def test_the_baseline_is_an_option_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "runs" / str(seed), "experiment=bp", f"seed={seed}", rows=corrupted(9, fog=[9]))
    for name in ("0", "'bp (2 seeds)'"):
        assert call(monkeypatch, f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", f"mce_baseline={name}") == 0
        assert "## Mean corruption error" in (tmp_path / "out" / "report.md").read_text()


# --- RobustBench ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("convnet", "convnet (16, 32 channels), "),
        ("vgg8", "vgg8 (4, 8 channels; 16 hidden units), "),
        ("mlp", "mlp (50 hidden units), "),
    ],
)
def test_robustbench_files_name_the_widths_of_any_network(tmp_path: Path, network: str, named: str) -> None:
    own = {
        "convnet": {"channels": [16, 32], "hidden": []},
        "vgg8": {"channels": [4, 8], "hidden": 16},
        "mlp": {"hidden": [50]},
    }
    config = {"network": {"_target_": f"glr_lightning.networks.{network}", **own[network]}}
    assert _architecture(Run("run", tmp_path, config, {}, {}, [], {})).startswith(named)


def test_robustbench_files_say_what_the_table_says(tmp_path: Path) -> None:
    worst = [
        row("worst_case", 60, 0.13, "worst_case", note="right under each of 2 attacks: a, b"),
        row("worst_case", 50, 0.5, "worst_case", norm="l2", unreliable=True, note="none of them followed"),
        row("worst_case", 40, 0.13, "worst_case", noisy_passes=8, randomized=True, n=100),
    ]
    rows = [*standard(), row("clean", 170, noisy_passes=8), *worst]
    written([make_run(tmp_path / "lrt", "experiment=lrt", rows=rows), make_run(tmp_path / "not")], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "robustbench").iterdir()] == ["lrt.json"]
    content = json.loads((tmp_path / "out" / "robustbench" / "lrt.json").read_text())
    assert "not AutoAttack" in content["evaluation"]
    linf, l2, noisy, corruptions = content["entries"]
    assert (linf["threat_model"], linf["eps"], linf["clean_acc"]) == ("Linf", "0.13", "90.00")
    assert (linf["worst_case_acc"], linf["autoattack_acc"], linf["reported"]) == ("30.00", None, None)
    assert (linf["unreliable"], linf["number_forward_passes"], linf["additional_data"]) == (False, 1, False)
    assert linf["footnote"] == "right under each of 2 attacks: a, b"
    assert linf["dataset"] == "digits"
    assert linf["architecture"].startswith("mlp (")
    assert "HardThreshold" in linf["architecture"]
    assert (l2["threat_model"], l2["unreliable"]) == ("L2", True)
    assert "unreliable (none of them followed)" in l2["footnote"]
    assert (noisy["number_forward_passes"], noisy["randomized"], noisy["clean_acc"]) == (8, True, "85.00")
    assert (noisy["number_images"], "of the first 100 images" in noisy["footnote"]) == (100, True)
    assert (corruptions["threat_model"], corruptions["eps"]) == ("corruptions", None)
    assert corruptions["corruptions_acc"] == "71.25"  # blur 58.5, noise 84
    assert len(corruptions["corruptions"]) == 2
