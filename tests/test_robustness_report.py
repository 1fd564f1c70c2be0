"""What a report says of robustness: comparable columns, flags that no table or figure loses, and honest comparisons."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes

from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.evidence import Evidence, write_evidence
from glr_lightning.report import report
from glr_lightning.reporting.corruption_error import corruption_error, corruption_error_table
from glr_lightning.reporting.gallery import blocks, chosen, galleries, gallery, signed, strip
from glr_lightning.reporting.latex import latex
from glr_lightning.reporting.published import model_of, paper_tables
from glr_lightning.reporting.results import (
    Column,
    all_columns,
    experiments,
    file_names,
    read_runs,
    t_interval,
    table_cells,
)
from glr_lightning.reporting.robustness_figures import accuracy_by_epsilon, certified, corruption_maps, draw_robustness
from glr_lightning.reporting.tables import Table, robustness_table, robustness_tables
from glr_lightning.rows import Row
from glr_lightning.runs import find_runs
from test_report import MASKED, N, call, make_run, row, section, standard, table, written

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
    words = [" | ".join(column.words) for column in table_cells([attack, *(attack | other for other in others)])]
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
    mixed = make_run(tmp_path / "mixed", rows=[row("clean", 180), standard()[1] | few])
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
    assert MASKED["unreliable"]


# --- the paper's tables ---------------------------------------------------------------------------------------------


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
    attacks = section(text, "As in the paper: MNIST: attacks")
    assert "Ours are of 200 test images." in attacks
    lines = [line.strip("| ").split(" | ") for line in attacks.splitlines() if line.startswith("|")]
    rows = {(cells[0], cells[1]): cells[2:] for cells in lines[2:]}
    assert [model for model, _ in rows] == ["BP", "BP+", "LRS", "LRT", "LRT", "LRSZ", "LRTZ"]
    assert rows["BP", "—"] == ["—", "— (96.34)", "— (57.29)", "— (28.37)"]
    assert rows["BP+", "noisy"] == ["0", "50.00 (—)", "— (—)", "— (—)"]
    assert rows["LRT", "wide"] == ["0", "90.00 (95.33)", "— (73.30)", "45.00 (54.35)"]
    mean, half = t_interval(accuracies)
    (label,) = (key for key in rows if key[0] == "LRT" and "seeds" in key[1])
    assert rows[label][:2] == ["0, 1", f"{100 * mean:.2f} ± {100 * half:.2f} (95.33)"]
    with (out / "paper_mnist_attacks.csv").open(newline="") as file:
        found = {(r["model"], r["seeds"]): r for r in csv.DictReader(file)}
    assert float(found["LRT", "0, 1"]["clean"]) == pytest.approx(100 * mean)
    assert float(found["LRT", "0, 1"]["clean_half_width"]) == pytest.approx(100 * half)
    assert (found["LRTZ", ""]["fgsm"], found["LRTZ", ""]["fgsm_published"]) == ("", "61.36")
    tex = (out / "paper_mnist_attacks.tex").read_text()
    assert r"LRT & wide & 0 & 90.00 (95.33) & --- (73.30) & 45.00 (54.35) \\" in tex
    corrupted = section(text, "As in the paper: MNIST: corruptions")
    assert "70.50 (86.76)" in corrupted  # (150 - 3 * 3) / 200
    assert "paper_fashion_mnist_attacks.csv" not in {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["data=digits"], papers()),
        (["data=mnist", "data.resize=14"], papers()),
        (["data=mnist"], [row("clean", 180)]),
        (["data=mnist"], papers(source="autograd", surrogate="")[:2]),
        (["data=mnist"], [papers()[1] | {"level": 0.2}]),
        (["data=mnist"], [papers()[1] | {"targeted": True}]),
        (["data=mnist"], [papers()[1] | {"noisy_passes": 8}]),
        (["data=mnist"], papers()[2:6]),
    ],
)
def test_no_paper_table_without_the_papers_settings(options: list[str], rows: list[Row], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "experiment=lrt", *options, rows=rows)
    assert paper_tables(experiments(read_runs([folder]))) == []


def test_a_paper_table_keeps_the_flags(tmp_path: Path) -> None:
    rows = papers()
    rows[1] |= {"out_of_budget": True, "note": "3 of 200 images break the rules"}
    folder = make_run(tmp_path / "a", "experiment=lrt", "data=mnist", rows=rows)
    paper, _ = paper_tables(experiments(read_runs([folder])))
    found = paper.table()
    assert "45.00 †1 (54.35)" in found.rows[2]
    assert found.notes[0] == "†1 out of budget (3 of 200 images break the rules)"
    rows = [each | {"randomized": True} for each in papers()]
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
    groups = experiments(read_runs([make_run(tmp_path / "a", rows=attacked())]))
    figure = accuracy_by_epsilon(groups)
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
    figure = corruption_maps(experiments(read_runs(folders)))
    assert figure is not None
    (axes,) = figure.axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "55.0", (1, 0): "—", (0, 1): "—", (1, 1): "40.0†"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["blur", "fog"]


def test_certified_accuracy_has_a_panel_for_each_norm(tmp_path: Path) -> None:
    rows = [row("smoothing", 180 - 100 * r, r, "certificate", norm=n) for n in ("l2", "linf") for r in (0.0, 0.5, 1.0)]
    rows = [each | {"correct": int(each["correct"])} for each in rows]
    figure = certified(experiments(read_runs([make_run(tmp_path / "a", rows=rows)])))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["l2", "linf"]
    for axes in figure.axes:
        (line,) = lines_of(axes)
        assert list(line.get_xdata()) == [0, 0.5, 1]
        assert list(line.get_ydata()) == pytest.approx([90, 65, 40])


def test_radii_in_different_units_share_no_axis(tmp_path: Path) -> None:
    presets = ("preactivation", "standardised")
    rows = [row("certify", 90, r, "certificate", norm="", preset=p) for p in presets for r in (0.0, 0.5)]
    figure = certified(experiments(read_runs([make_run(tmp_path / "a", rows=rows)])))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["||W d||_2", "||diag(1/sigma) W d||_2"]


def test_no_figure_without_data_and_dollars_are_no_mathematics(tmp_path: Path) -> None:
    assert draw_robustness(experiments(read_runs([make_run(tmp_path / "a", rows=[row("clean", 1)])]))) == {}
    sign = r"$\frac{$"
    hostile = [
        each | {"threat": sign + each["threat"], "preset": sign, "norm": each["norm"] and sign + each["norm"]}
        for each in [*attacked(), *standard()[2:], row("a", 9, 1, "certificate", norm="l2")]
        if each["kind"] != "worst_case"
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


# --- attacked images ------------------------------------------------------------------------------------------------


def evidence(examples: Any, predictions: list[int]) -> Evidence:
    labels = np.arange(len(predictions))
    return Evidence(labels == predictions, np.asarray(examples, dtype=np.uint8), labels, np.array(predictions))


def looked_at(folder: Path, channels: int = 1) -> Path:
    """Two images under one attack at two budgets; the second is made wrong."""
    clean = np.full((2, channels, 4, 4), 100)
    moved = clean.copy()
    moved[1, :, 0, 0], moved[1, :, 3, 3] = 151, 49  # 51 / 255 = 0.2
    rows = [row("clean", 180, fingerprint="c")]
    rows += [row("pgd", 100, level, "attack", fingerprint=f"p{level}", unreliable=True) for level in (0.1, 0.2)]
    make_run(folder, rows=rows)
    kept = {"c": evidence(clean, [0, 1]), "p0.1": evidence(clean, [0, 1]), "p0.2": evidence(moved, [0, 7])}
    write_evidence(folder / "robustness.npz", kept)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gallery_shows_the_change_and_who_was_fooled(channels: int, tmp_path: Path) -> None:
    (run,) = read_runs([looked_at(tmp_path / "a", channels)])
    (block,) = blocks(run)  # the largest budget
    assert block.title == "pgd, epsilon 0.2 (linf), gradient: none †"
    assert block.scale == pytest.approx(0.2)
    (axes,) = gallery([block]).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0", "1", "0", "7, not 1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", "±0.2", "attacked"]
    (picture,) = galleries([run])
    assert picture.name == "gallery/a.png"
    assert picture.png.startswith(b"\x89PNG")


def test_a_gallery_shows_the_strongest_way_of_each_threat_first(tmp_path: Path) -> None:
    ways = [("fgsm", source, 100 - place) for place, source in enumerate(("autograd", "transfer", "straight_through"))]
    ways += [(name, "none", 90) for name in ("a", "b", "c", "d")]
    rows = [row("clean", 180, fingerprint="c")]
    rows += [
        row(name, hits, 0.1, "attack", gradient_source=source, fingerprint=f"{name}{source}")
        for name, source, hits in ways
    ]
    folder = make_run(tmp_path / "a", rows=rows)
    same = evidence(np.full((2, 1, 4, 4), 100), [0, 1])
    write_evidence(folder / "robustness.npz", {each["fingerprint"]: same for each in rows})
    (run,) = read_runs([folder])
    shown = [(block.threat, block.title.rsplit(" ", 1)[1]) for block in chosen(blocks(run))]
    sources = ("transfer", "straight_through")  # of fgsm, in the order of the table
    assert shown == [*(("fgsm", source) for source in sources), *((name, "none") for name in ("a", "b", "c", "d"))]
    (picture,) = galleries([run])
    assert ", 6 of 7 attacks, of each kind the strongest first" in picture.caption


def test_signed_colours() -> None:
    change = np.array([-0.2, -0.1, 0, 0.1, 0.2]).reshape(1, 1, 1, 5)
    red, _, blue = signed(change, 0.2)[0, :, 0]
    assert (red[3:] > blue[3:]).all()
    assert (red[:2] < blue[:2]).all()
    assert red[2] == pytest.approx(blue[2], abs=0.01)
    assert red[2] > 0.95
    each = signed(change.repeat(3, axis=1), 0.2)[0, 0, 0]
    assert each == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_strips_hold_every_pixel() -> None:
    images = np.random.default_rng(0).random((3, 3, 4, 5))
    found = strip(images)
    assert found.shape == (6, 3 * 7, 3)
    for place in range(3):
        inner = found[1:-1, 7 * place + 1 : 7 * place + 6]
        assert (inner == images[place].transpose(1, 2, 0)).all()
    assert (found[0] == 1).all()


def test_no_gallery_without_kept_images_and_damage_is_refused(tmp_path: Path) -> None:
    assert galleries(read_runs([make_run(tmp_path / "a", rows=standard())])) == []
    folder = looked_at(tmp_path / "b")
    (folder / "robustness.npz").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"robustness\.npz"):
        written([folder], tmp_path / "out")
    other = looked_at(tmp_path / "c")
    kept = {"c": evidence(np.zeros((1, 1, 4, 4)), [0]), "p0.2": evidence(np.zeros((2, 1, 4, 4)), [0, 1])}
    write_evidence(other / "robustness.npz", kept)  # not of the same images
    assert galleries(read_runs([other])) == []
    image, hit = np.zeros((1, 1, 4, 4), np.uint8), np.ones(1, bool)
    one, two = (Evidence(hit, image, np.array([label]), np.array([label])) for label in (1, 2))
    write_evidence(other / "robustness.npz", {"c": one, "p0.2": two})  # other labels
    assert galleries(read_runs([other])) == []
    odd = Evidence(np.ones(2, bool), np.zeros((2, 1, 4, 4), np.uint8), np.arange(2), np.arange(1))
    write_evidence(other / "robustness.npz", {"c": odd, "p0.2": odd})
    assert galleries(read_runs([other])) == []


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
    with pytest.raises(ConfigurationError, match=r"mce_baseline=none .*: 0, 1, bp \(2 seeds\)\. Name one"):
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
