"""What a report says of robustness: comparable columns, flags that no table or figure loses, and honest comparisons."""

from pathlib import Path

from glr_lightning.results import Column, all_columns, read_runs, table_cells
from test_report import MASKED, N, make_run, row, section, standard, table, written

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
