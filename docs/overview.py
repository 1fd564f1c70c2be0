"""The figure of the README and the table above it, from the committed results of `experiments/`.

    python docs/overview.py      draws docs/assets/overview.svg and prints the table

experiments/estimators/accuracy/results.csv  ->  accuracy without and with backpropagation
experiments/robustness/results.csv           ->  worst case over all L-infinity attacks by epsilon
"""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glr_lightning.reporting.results import t_interval

ROOT = Path(__file__).parents[1]
ACCURACY = ROOT / "experiments/estimators/accuracy/results.csv"
ROBUSTNESS = ROOT / "experiments/robustness/results.csv"
FIGURE = Path(__file__).parent / "assets/overview.svg"

WITHOUT, STRAIGHT, WITH = "#0072b2", "#e69f00", "#555555"
"""Colours: no derivative anywhere, straight-through, backpropagation."""
BARS = {  # run in the results: label, colour
    "lrs": ("sigmoid, CE", WITHOUT),
    "bp": ("sigmoid, CE", WITH),
    "lrt": ("threshold, CE", WITHOUT),
    "straight_through": ("threshold, CE", STRAIGHT),
    "lrsz": ("sigmoid, 0-1", WITHOUT),
    "lrtz": ("threshold, 0-1", WITHOUT),
    "wide_lrt": ("500 threshold, CE", WITHOUT),
    "wide_straight_through": ("500 threshold, CE", STRAIGHT),
    "wide_lrtz": ("500 threshold, 0-1", WITHOUT),
}
CURVES = {  # run: label, colour, line
    "bp": ("bp: sigmoid, CE, backpropagation", WITH, "-"),
    "straight_through": ("straight_through: threshold, CE", STRAIGHT, "-"),
    "lrt": ("lrt: threshold, CE, no backpropagation", WITHOUT, "-"),
    "lrtz": ("lrtz: threshold, 0-1, no backpropagation", WITHOUT, "--"),
}
STYLE = {"svg.hashsalt": "glr", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "figure.constrained_layout.use": True}


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracies() -> dict[tuple[str, str], list[float]]:
    """Noise-free test accuracies in %, one for each seed, by (run, data set)."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read(ACCURACY):
        data, run, _ = row["run"].split("/")
        if row["threat"] == "clean" and row["noisy_passes"] == "0":
            found[run, data].append(100 * float(row["accuracy"]))
    return dict(found)


def worst_cases() -> dict[str, dict[float, float]]:
    """Worst case in % over the L-infinity attacks, by run and epsilon; epsilon 0 are the clean images."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for row in read(ROBUSTNESS):
        if row["noisy_passes"] != "0":
            continue
        if row["kind"] == "clean":
            found[row["run"]][0.0] = 100 * float(row["accuracy"])
        elif row["kind"] == "worst_case" and row["norm"] == "linf":
            found[row["run"]][float(row["level"])] = 100 * float(row["accuracy"])
    return {run: dict(sorted(points.items())) for run, points in found.items()}


def cell(run: str, data: str) -> str:
    """Accuracy as the README's table has it."""
    return "{:.2f} ± {:.2f}".format(*t_interval(accuracies()[run, data]))


def draw() -> Figure:
    """Two panels: accuracy on MNIST, and worst-case accuracy against epsilon."""
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    _accuracy_panel(left)
    _worst_case_panel(right)
    return figure


def _accuracy_panel(axes: Axes) -> None:
    found = accuracies()
    for place, (run, (_, colour)) in enumerate(BARS.items()):
        mean, half = t_interval(found[run, "mnist"])
        axes.errorbar(mean, place, xerr=half, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(BARS)), [label for label, _ in BARS.values()])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy on MNIST / %, mean and 95 % interval", title="Accuracy, one hidden layer")
    for colour, label in ((WITHOUT, "loss values only"), (STRAIGHT, "straight-through"), (WITH, "backpropagation")):
        axes.plot([], [], "o", color=colour, label=label)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.grid(axis="x", alpha=0.3)


def _worst_case_panel(axes: Axes) -> None:
    found = worst_cases()
    for run, (label, colour, line) in CURVES.items():
        points = found[run]
        axes.plot(list(points), list(points.values()), line, color=colour, marker="o", markersize=4, label=label)
    axes.set(xlabel="ε, L-infinity, in units of the pixel range", ylabel="right under every attack / %", ylim=(-2, 102))
    axes.set_title("Worst case of 12 attacks (an upper bound)")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)


def main() -> None:
    """Draw the figure and print the cells of the table."""
    FIGURE.parent.mkdir(exist_ok=True)
    with matplotlib.style.context(["default", STYLE]):
        draw().savefig(FIGURE, metadata={"Date": None})
    for run, data in sorted(accuracies()):
        print(f"{run:24} {data:14} {cell(run, data)}")


if __name__ == "__main__":
    main()
