"""The table of an evaluation: written whole, read back with its types, refused when malformed."""

import csv
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from glr_lightning.errors import CheckpointError
from glr_lightning.evaluation.row import ADDED, FIELDS, Row, read_rows, write_rows
from tests.checks.harness_cases import CLEAN, evaluate, images, linear, white_box


class TestTable:
    @pytest.fixture
    def rows(self) -> list[Row]:
        x, y = images()
        rows = list(evaluate(linear((1, 8, 8)), x, y, {**CLEAN, **white_box()}, seed=0, run="a,b"))
        rows.append(replace(rows[0], note='two\nlines, "quoted"', mean_l2=math.inf, unreliable=True))
        return rows

    def test_round_trip(self, rows: list[Row], tmp_path: Path) -> None:
        path = tmp_path / "new" / "results.csv"
        write_rows(path, rows)
        assert read_rows(path) == rows
        assert path.read_text().splitlines()[0] == ",".join(FIELDS)
        write_rows(path, [])
        assert read_rows(path) == []
        assert [p.name for p in path.parent.iterdir()] == ["results.csv"]

    def test_a_table_of_version_0_4_is_read(self, tmp_path: Path) -> None:
        old = Path(__file__).parents[1] / "runs/v0_4/lrtz/robustness.csv"
        rows = read_rows(old)
        assert [row.threat for row in rows][:1] == ["clean"]
        assert {type(getattr(row, name)) for row in rows for name in ("n", "correct", "noisy_passes")} == {int}
        assert [row.searches for row in rows] == [row.kind == "attack" for row in rows]
        write_rows(tmp_path / "new.csv", rows)
        assert read_rows(tmp_path / "new.csv") == rows
        with old.open(newline="") as before, (tmp_path / "new.csv").open(newline="") as after:
            written = [{k: v for k, v in row.items() if k not in ADDED} for row in csv.DictReader(after)]
            assert written == list(csv.DictReader(before))

    def test_what_an_attack_of_version_0_4_followed_is_known_by_its_name(self, rows: list[Row], tmp_path: Path) -> None:
        new, old = tmp_path / "new.csv", tmp_path / "old.csv"
        rows = [replace(rows[-2], threat="random_noise", searches=False), replace(rows[-2], threat="fgsm")]
        rows += [replace(rows[-1], gradient_source="transfer", searches=False)]
        write_rows(new, rows)
        with new.open(newline="") as file:
            cells = list(csv.reader(file))
        place = cells[0].index("searches")
        with old.open("w", newline="") as file:
            csv.writer(file).writerows([*row[:place], *row[place + 1 :]] for row in cells)
        assert read_rows(old) == rows

    def test_a_failed_write_leaves_the_old_table(
        self, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "results.csv"
        write_rows(path, rows)
        old = path.read_bytes()

        class Bad:
            def __str__(self) -> str:
                raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            write_rows(path, [rows[0], replace(rows[0], note=Bad())])
        assert path.read_bytes() == old
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda text: "", "its header is"),
            (lambda text: text.replace("accuracy", "acc", 1), "its header is"),
            (
                lambda text: text.replace(",False,False,", ",False,no,", 1),
                "line 2: (searches|masked|randomized|targeted) cannot be 'no'",
            ),
            (lambda text: text.replace(",60,", ",sixty,", 1), "line 2: n cannot be 'sixty'"),
            (lambda text: re.sub(r"(,60,\d+,)[0-9.]+", r"\1nan", text, count=1), "line 2: accuracy cannot be 'nan'"),
            (lambda text: re.sub(r"(,60,\d+,)[0-9.]+", r"\1-inf", text, count=1), "line 2: accuracy cannot be '-inf'"),
            (lambda text: text.splitlines()[0] + "\na,b,c\n", "38 cells expected, got 3"),
            (lambda text: text[: text.rindex('"')], "cannot be read"),
        ],
    )
    def test_malformed(self, rows: list[Row], tmp_path: Path, spoil: Callable[[str], str], words: str) -> None:
        path = tmp_path / "results.csv"
        write_rows(path, rows)
        path.write_text(spoil(path.read_text()))
        with pytest.raises(CheckpointError, match=words):
            read_rows(path)

    def test_missing_or_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_rows(tmp_path / "nowhere.csv")
        (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_rows(tmp_path / "binary.csv")
