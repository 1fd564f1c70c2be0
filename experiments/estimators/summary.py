"""The study's tables and figure from the CSV files beside it: which estimator is best where, and what was reached.

diagnoses/<case>/diagnosis.csv  ->  best.md, variance_time.png
accuracy/results.csv            ->  accuracy.md
"""

import csv
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from glr_lightning.reporting.published import PUBLISHED
from glr_lightning.reporting.results import t_interval
from glr_lightning.reporting.style import COLOURS, MARKERS, png, styled

HERE = Path(__file__).parent
ROWS = {  # name of the run folder: network, what is trained, where its gradient comes from
    "lrs": ("784-50-10", "sigmoid + CE", "loss values only"),
    "lrt": ("784-50-10", "threshold + CE", "loss values only"),
    "lrsz": ("784-50-10", "sigmoid + 0-1", "loss values only"),
    "lrtz": ("784-50-10", "threshold + 0-1", "loss values only"),
    "wide_lrt": ("784-500-10", "threshold + CE", "loss values only"),
    "wide_lrtz": ("784-500-10", "threshold + 0-1", "loss values only"),
    "hybrid_lrt": ("784-50-10", "threshold + CE", "hybrid: derivative at the logits"),
    "hybrid_lrsz": ("784-50-10", "sigmoid + 0-1", "hybrid: one vector-Jacobian product"),
    "bp": ("784-50-10", "sigmoid + CE", "backpropagation"),
    "straight_through": ("784-50-10", "threshold + CE", "straight-through backpropagation"),
    "wide_straight_through": ("784-500-10", "threshold + CE", "straight-through backpropagation"),
}
UNBIASED = "unbiased"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(heading: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heading, ["---"] * len(heading), *rows]) + "\n"


def accuracy_table() -> str:
    """Mean and 95 % t-interval of the test accuracy over the seeds, noise-free and averaged over noisy passes."""
    found: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    for row in read(HERE / "accuracy/results.csv"):
        data, name, _ = row["run"].rsplit("/", 3)[-3:]
        found[name, data, row["noisy_passes"] != "0"].append(100 * float(row["accuracy"]))

    def cell(name: str, data: str, noisy: bool) -> str:
        values = found[name, data, noisy]
        return "—" if not values else "{:.2f} ± {:.2f}".format(*t_interval(values))

    rows = []
    for name, words in ROWS.items():
        cells = [cell(name, data, noisy) for data in ("mnist", "fashion_mnist") for noisy in (False, True)]
        rows.append([*words, *cells, published(name)])
    heading = ["network", "trained", "gradient", "MNIST", "32 noisy passes", "Fashion-MNIST", "32 noisy passes"]
    return table([*heading, "published"], rows)


def published(name: str) -> str:
    """Return the published clean accuracies in % of a model on MNIST and Fashion-MNIST."""
    shares = [PUBLISHED[data].accuracy(name.upper(), "clean") for data in ("mnist", "fashion_mnist")]
    return " / ".join(f"{100 * share:.2f}" for share in shares if share is not None) or "—"


def total(rows: list[dict[str, str]]) -> dict[tuple[str, str], tuple[float, float]]:
    """(estimator, K): the relative variance averaged over the layers, and milliseconds; of unbiased ones."""
    by: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by[row["estimator"], row["copies"]].append(row)
    return {
        key: (statistics.fmean(float(r["relative_variance"]) for r in group), float(group[0]["milliseconds"]))
        for key, group in by.items()
        if all((r.get("outcome") or r["verdict"]) == UNBIASED and r["relative_variance"] for r in group)
    }


def best_table(cases: dict[str, list[dict[str, str]]]) -> str:
    """For each case the estimators of the joint objective by their least variance x time, the mean over the layers."""
    rows = []
    for name, found in cases.items():
        joint = total([row for row in found if row["objective"] == "joint"])
        merit = {key: variance * ms for key, (variance, ms) in joint.items()}
        best: dict[str, tuple[float, str]] = {}
        for (estimator, copies), value in merit.items():
            best[estimator] = min(best.get(estimator, (float("inf"), "")), (value, copies))
        order = sorted(best, key=lambda e: best[e])
        first = best[order[0]][0]
        words = [f"{e} (K = {best[e][1] or '—'}) {best[e][0] / first:.3g}" for e in order]
        rows.append([name, f"{first:.3g}", "; ".join(words)])
    return table(["case", "least variance × ms", "estimators by their least variance × ms, relative to it"], rows)


def figure(cases: dict[str, list[dict[str, str]]]) -> Figure:
    """Variance x time of every estimator at its best K, case by case; a little apart, to hide none."""
    fig = Figure(figsize=(9, 0.45 * len(cases) + 1.6))
    axes = fig.subplots()
    labels = list(dict.fromkeys(row["estimator"] for found in cases.values() for row in found))
    for place, found in enumerate(cases.values()):
        points = total(found)
        for number, label in enumerate(labels):
            values = [variance * ms for (estimator, _), (variance, ms) in points.items() if estimator == label]
            if values:
                look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS)]}
                y = place + 0.6 * ((number + 0.5) / len(labels) - 0.5)
                axes.plot(min(values), y, linestyle="", label=label, **look)
    axes.set(xscale="log", xlabel="relative variance × ms, mean over the layers, at the best K (lower is better)")
    axes.set_yticks(range(len(cases)), list(cases))
    axes.invert_yaxis()
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    fig.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=5)
    return fig


def main() -> None:
    if (HERE / "accuracy/results.csv").exists():
        (HERE / "accuracy.md").write_text(accuracy_table(), encoding="utf-8")
    cases = {path.parent.name: read(path) for path in sorted(HERE.glob("diagnoses/*/diagnosis.csv"))}
    if cases:
        (HERE / "best.md").write_text(best_table(cases), encoding="utf-8")
        with styled():
            (HERE / "variance_time.png").write_bytes(png(figure(cases)))


if __name__ == "__main__":
    main()
