"""Draw the figures of the studies from their committed text: python experiments/figures.py [FOLDER...].

results.csv    ->  the figures of glr-report that show evaluations (accuracy per threat, by budget, by severity, ...)
diagnosis.csv  ->  diagnosis.png

FOLDER is a study or a part of one; without any, all are drawn. Learning curves and examples of attacked images need the
run folders: the command of a study writes them.
"""

import csv
import sys
import tempfile
from pathlib import Path

from glr_lightning.diagnosis.figure import variance_against_time
from glr_lightning.diagnosis.finding import read_findings
from glr_lightning.evaluation.row import FIELDS, read_rows
from glr_lightning.reporting.columns import table_cells
from glr_lightning.reporting.figures import draw, find_figures
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.runs import Run
from glr_lightning.storage import write_files


def runs_of(results: Path) -> list[Run]:
    """Read the runs of a results.csv; a run in a folder of seeds belongs to the experiment that the folder names."""
    with results.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    runs = []
    for name in dict.fromkeys(record["run"] for record in table):
        own = [record for record in table if record["run"] == name]
        with tempfile.NamedTemporaryFile("w", newline="", suffix=".csv", encoding="utf-8") as file:
            known = [field for field in FIELDS if field in table[0]]  # an earlier version may lack some
            writer = csv.DictWriter(file, known, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(own)
            file.flush()
            rows = read_rows(file.name)
        folder, _, last = name.rpartition("/")
        experiment = folder if last.startswith("seed") else name
        config = {"experiment": experiment, "network": experiment, "seed": own[0]["seed"]}  # enough to group seeds
        runs.append(Run(name, results.parent, config, {}, {}, rows, table_cells(rows, results)))
    return runs


def main() -> None:
    """Draw the figures of some folders, or of all studies."""
    for folder in map(Path, sys.argv[1:] or [Path(__file__).parent]):
        for path in sorted(folder.rglob("results.csv")):
            pictures = draw(Comparison.of(runs_of(path)), find_figures())
            write_files(path.parent, {picture.name: picture.png for picture in pictures})
            print(f"{path.parent}: {', '.join(picture.name for picture in pictures)}")
        for path in sorted(folder.rglob("diagnosis.csv")):
            write_files(path.parent, {"diagnosis.png": variance_against_time(read_findings(path))})
            print(f"{path.parent}: diagnosis.png")


if __name__ == "__main__":
    main()
