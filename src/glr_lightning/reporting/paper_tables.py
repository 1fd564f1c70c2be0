"""The two tables of the paper, with what its authors published beside what was measured here.

    attacks       clean images, L-BFGS and FGSM by transfer from a ReLU network trained by backpropagation
    corruptions   Gaussian noise, impulse noise, glass blur and contrast, each the mean over the severities 1 to 5

The published numbers are accuracies in % from the README of the authors' code of Peng, Xiao, Heidergott, Hong & Lam,
"A New Likelihood Ratio Method for Training Artificial Neural Networks", INFORMS Journal on Computing 34(1), 2022. They
are single runs: no seeds or error bars are given, there are two versions of the LRT and BP settings and which made the
rows is not said, BP+ (backpropagation through a noisy forward pass) has no row, and which ten classes of Tiny-ImageNet
were used is not said either.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glr_lightning import estimators
from glr_lightning.reporting.results import Cell, Column, Run, t_interval
from glr_lightning.reporting.tables import NONE, Table, mark, mean_of, numbered, one_of_each_seed, seeds, warning

MODELS = ("BP", "BP+", "LRS", "LRT", "LRSZ", "LRTZ")
ATTACKS = {"clean": "clean", "lbfgs": "L-BFGS", "fgsm": "FGSM"}
CORRUPTIONS = {
    "gaussian_noise": "Gaussian noise",
    "impulse_noise": "impulse noise",
    "glass_blur": "glass blur",
    "contrast": "contrast",
}
SHARED = {"attacks": ATTACKS, "corruptions": CORRUPTIONS}
SURROGATE = "relu"  # how the name of the paper's surrogate ends
SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)
PRESET = "cifar10_c"


@dataclass(frozen=True)
class DataSet:
    """What the authors published of one data set.

    epsilon: of FGSM, in units of the pixel range.
    accuracies: in %, by model, of the threats in the order of ATTACKS and CORRUPTIONS.
    """

    title: str
    epsilon: float
    accuracies: Mapping[str, tuple[float, ...]]

    def accuracy(self, model: str, threat: str) -> float | None:
        """As a share; None where nothing was published."""
        values = dict(zip([*ATTACKS, *CORRUPTIONS], self.accuracies.get(model, ()), strict=False))
        return values[threat] / 100 if threat in values else None


PUBLISHED = {
    "mnist": DataSet(
        "MNIST",
        0.13,
        {
            "BP": (96.34, 57.29, 28.37, 96.35, 91.95, 86.16, 67.25),
            "LRS": (95.54, 77.60, 45.91, 95.37, 93.78, 87.79, 76.98),
            "LRT": (95.33, 73.30, 54.35, 94.17, 95.01, 86.76, 68.13),
            "LRSZ": (84.54, 73.50, 58.05, 82.53, 81.23, 79.25, 80.92),
            "LRTZ": (90.22, 77.74, 61.36, 90.54, 90.10, 87.19, 79.81),
        },
    ),
    "fashion_mnist": DataSet(
        "Fashion-MNIST",
        0.13,
        {
            "BP": (86.45, 49.61, 17.86, 81.05, 65.40, 55.02, 41.05),
            "LRS": (83.93, 53.54, 52.85, 82.53, 80.23, 79.09, 49.96),
            "LRT": (85.54, 52.92, 42.62, 82.79, 82.65, 77.16, 45.82),
            "LRSZ": (58.68, 51.00, 46.35, 54.26, 52.43, 51.05, 40.77),
            "LRTZ": (62.05, 60.15, 57.19, 57.93, 57.25, 53.13, 44.68),
        },
    ),
    "tiny_imagenet_10": DataSet(
        "Tiny-ImageNet, 10 classes",
        0.03,
        {
            "BP": (21.70, 11.60, 8.70, 12.68, 12.52, 13.40, 11.36),
            "LRS": (20.30, 14.60, 17.04, 17.47, 17.52, 17.68, 16.28),
            "LRT": (17.30, 15.60, 14.34, 16.24, 16.48, 16.96, 14.88),
            "LRSZ": (15.22, 7.00, 14.35, 14.56, 14.47, 14.68, 14.40),
            "LRTZ": (19.57, 13.60, 16.52, 15.40, 15.48, 15.92, 13.99),
        },
    ),
}
ACTIVATIONS = {"Sigmoid": "S", "HardThreshold": "T"}
LOSSES = {"CrossEntropy": "", "ZeroOne": "Z"}
SIDES = (None, 28)  # in pixels: the MNIST family is not resized in this paper


@dataclass(frozen=True)
class Entry:
    """One number of the paper's table: the cells of the seeds that were evaluated, and what was published, a share."""

    cells: Sequence[Cell]
    published: float | None

    @property
    def accuracies(self) -> list[float]:
        return [cell.accuracy for cell in self.cells]


@dataclass(frozen=True)
class Line:
    """A model of the paper; its runs are the seeds of one experiment, none where no run is such a model."""

    model: str
    label: str
    runs: Sequence[Run]
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables for one data set. name: of its files, without a suffix."""

    name: str
    title: str
    threats: Mapping[str, str]
    lines: Sequence[Line]

    def table(self) -> Table:
        """Ours (published), in %; ours is the mean ± half the 95 % t-interval over seeds where there are several."""
        footnotes: dict[str, int] = {}
        rows = []
        for line in self.lines:
            cells = [_text(line.entries[threat], len(line.runs), footnotes) for threat in self.threats]
            rows.append([line.model, line.label, seeds(line.runs) or NONE, *cells])
        notes = numbered(footnotes) + self._remarks()
        evaluated = [cell for line in self.lines for entry in line.entries.values() for cell in entry.cells]
        counts = sorted({row.n for cell in evaluated for row in cell.rows})
        notes.append(f"Ours are of {' or '.join(f'{n:,}' for n in counts)} test images.")
        notes.append(
            "Ours (published), in %: in brackets the accuracies from the README of the authors' code of Peng et al., "
            "INFORMS Journal on Computing 34(1), 2022; single runs, without seeds or error bars."
        )
        heading = [["model"], ["experiment"], ["seeds"], *([words] for words in self.threats.values())]
        return Table(heading, rows, notes, text_columns=3)

    def _remarks(self) -> list[str]:
        """What the rows say of themselves; of which experiments, where not of all."""
        notes = []
        for threat, words in self.threats.items():
            said = {line.label: _remarks(line.entries[threat]) for line in self.lines if line.entries[threat].cells}
            for remark in dict.fromkeys(remark for own in said.values() for remark in own):
                labels = [label for label, own in said.items() if remark in own]
                of = "" if len(labels) == len(said) else f" of {', '.join(labels)}"
                notes.append(f"{words}{of}: {remark}.")
        return notes

    def csv(self) -> str:
        """The same with a column for each number, in %."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        parts = ("", "_half_width", "_published", "_note")
        names = [f"{threat}{part}" for threat in self.threats for part in parts]
        writer.writerow(["model", "experiment", "seeds", *names])
        for line in self.lines:
            numbers = [value for threat in self.threats for value in _numbers(line.entries[threat])]
            writer.writerow([line.model, line.label, seeds(line.runs), *numbers])
        return text.getvalue()


def paper_tables(groups: Mapping[str, Sequence[Run]]) -> list[PaperTable]:
    """The tables there is something to compare in: of a data set of the paper, with one of the threats as in the paper.

    groups: runs by experiment, see `results.experiments`.
    """
    tables = []
    for data, published in PUBLISHED.items():
        chosen = {label: one_of_each_seed(runs) for label, runs in groups.items() if _data(runs[0]) == data}
        models = {label: model_of(runs[0]) for label, runs in chosen.items()}
        for kind, threats in SHARED.items():
            lines = []
            for model in MODELS:
                labels = [label for label, own in models.items() if own == model]
                for label in labels or ([] if model == "BP+" else [NONE]):
                    lines.append(_line(model, label, chosen.get(label, []), threats, published))
            compared = [threat for threat in threats if threat != "clean"]
            if any(line.entries[threat].cells for line in lines for threat in compared):
                tables.append(PaperTable(f"paper_{data}_{kind}", f"{published.title}: {kind}", threats, lines))
    return tables


def model_of(run: Run) -> str:
    """The paper's name for what a run is, "" if it has none.

    BP by backpropagation, BP+ by backpropagation through one noisy forward pass; LR, then S(igmoid) or T(hreshold),
    then Z for the zero-one loss, by an estimator that declares itself a likelihood ratio. All are perceptrons.
    """
    if run.target("network") != "mlp":
        return ""
    family = getattr(getattr(estimators, run.target("estimator"), None), "family", "")
    if family == "backpropagation":
        return "BP"
    if family == "pathwise":
        return "BP+" if run.config["estimator"].get("copies") == 1 else ""
    activation, loss = ACTIVATIONS.get(run.target("activation")), LOSSES.get(run.target("loss"))
    return f"LR{activation}{loss}" if family == "likelihood ratio" and None not in (activation, loss) else ""


def is_as_published(column: Column, threat: str, epsilon: float) -> bool:
    """Is this threat run as in the paper?"""
    if column.threat != threat or column.noisy_passes or column.targeted:
        return False
    if column.kind == "attack":
        levels = {"fgsm": (epsilon,)}.get(threat, column.levels)
        return column.gradient_source == "transfer" and column.levels == levels and column.norm in ("", "linf")
    return column.kind == "clean" or (column.preset, column.levels) == (PRESET, SEVERITIES)


def _data(run: Run) -> str:
    """The data set's name in PUBLISHED, "" for any other and for images of another size."""
    node = run.config.get("data")
    resized = isinstance(node, dict) and node.get("resize") not in SIDES
    names = {name.replace("_", ""): name for name in PUBLISHED}
    name = names.get(run.target("data").lower(), "")
    return "" if resized and name != "tiny_imagenet_10" else name


def _line(model: str, label: str, runs: Sequence[Run], threats: Mapping[str, str], published: DataSet) -> Line:
    entries = {}
    for threat in threats:
        cells = [cell for run in runs if (cell := _cell(run, threat, published.epsilon)) is not None]
        entries[threat] = Entry(cells, published.accuracy(model, threat))
    return Line(model, label, runs, entries)


def _cell(run: Run, threat: str, epsilon: float) -> Cell | None:
    """From the paper's surrogate, if there are several."""
    found = [column for column in run.cells if is_as_published(column, threat, epsilon)]
    found.sort(key=lambda column: not column.surrogate.endswith(SURROGATE))
    return run.cells[found[0]] if found else None


def _text(entry: Entry, seeds: int, footnotes: dict[str, int]) -> str:
    published = NONE if entry.published is None else f"{100 * entry.published:.2f}"
    return f"{mean_of(entry.accuracies, seeds)}{mark(warning(entry.cells), footnotes)} ({published})"


def _remarks(entry: Entry) -> list[str]:
    return list(dict.fromkeys(remark for cell in entry.cells for remark in cell.remarks))


def _numbers(entry: Entry) -> list[float | str]:
    """Mean, half width, published and note; "" for what is not known."""
    values = entry.accuracies
    mean, half = t_interval(values) if len(values) > 1 else (values[0] if values else None, None)
    numbers: list[float | str] = ["" if v is None else round(100 * v, 6) for v in (mean, half, entry.published)]
    return [*numbers, warning(entry.cells)]
