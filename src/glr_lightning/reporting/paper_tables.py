"""The two tables of paper 1, with what its authors published beside what was measured here.

    attacks       clean images, L-BFGS and FGSM by transfer from a ReLU network trained by backpropagation
    corruptions   Gaussian noise, impulse noise, glass blur and contrast, each the mean over the severities 1 to 5

The published numbers stand in `published`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from glr_lightning.activations import HardThreshold
from glr_lightning.data import MNIST, FashionMNIST, TinyImageNet10
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.networks import mlp
from glr_lightning.reporting.columns import Cell, Column
from glr_lightning.reporting.published import MODELS, PUBLISHED, SHARED, DataSet
from glr_lightning.reporting.results import one_of_each_seed, t_interval
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.tables import NONE, Table
from glr_lightning.reporting.tables.cells import mark, mean_of, numbered, seeds, warning

SURROGATE = "relu"
"""How the name of paper 1's surrogate ends."""
SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)
PRESET = "cifar10_c"


ACTIVATIONS = {nn.Sigmoid: "S", HardThreshold: "T"}
LOSSES = {CrossEntropy: "", ZeroOne: "Z"}
"""How paper 1 names activations and losses; a module of another package is not one of paper 1's."""
DATA_SETS = {MNIST: "mnist", FashionMNIST: "fashion_mnist", TinyImageNet10: "tiny_imagenet_10"}
"""The names of data sets in PUBLISHED."""
SIDES = (None, 28)
"""Allowed sizes of images in pixels: the MNIST family is not resized in paper 1."""


@dataclass(frozen=True)
class Entry:
    """One number of a table of paper 1.

    Attributes:
        cells: those of the seeds that were evaluated.
        published: the published accuracy, a share, or None.
    """

    cells: Sequence[Cell]
    published: float | None

    @property
    def accuracies(self) -> list[float]:
        """The accuracies of the seeds."""
        return [cell.accuracy for cell in self.cells]


@dataclass(frozen=True)
class Line:
    """A model of paper 1; its runs are the seeds of one experiment, none if no run is such a model."""

    model: str
    label: str
    runs: Sequence[Run]
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class PaperTable:
    """One of paper 1's tables for one data set.

    Attributes:
        name: of its files, without a suffix.
        title: its heading.
        threats: the words for each threat.
        lines: its rows.
    """

    name: str
    title: str
    threats: Mapping[str, str]
    lines: Sequence[Line]

    def table(self) -> Table:
        """Return ours (published) in %; over several seeds, ours is the mean ± half its 95 % t-interval."""
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
        """Return what rows say of themselves, with the experiments where it is not said of all."""
        notes = []
        for threat, words in self.threats.items():
            said = {line.label: _remarks(line.entries[threat]) for line in self.lines if line.entries[threat].cells}
            for remark in dict.fromkeys(remark for own in said.values() for remark in own):
                labels = [label for label, own in said.items() if remark in own]
                of = "" if len(labels) == len(said) else f" of {', '.join(labels)}"
                notes.append(f"{words}{of}: {remark}.")
        return notes

    def csv(self) -> str:
        """Return the table as CSV with a column for each number, in %."""
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
    """Return the tables that have something to compare: a data set and a threat as in paper 1.

    Args:
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
    """Return paper 1's name for what a run trained, or an empty string.

    BP by backpropagation, BP+ by backpropagation through one noisy forward pass; LR, then S(igmoid) or T(hreshold),
    then Z for the zero-one loss, by an estimator that declares itself a likelihood ratio. All are perceptrons.
    """
    if run.built("network") is not mlp:
        return ""
    family = run.family
    if family == "backpropagation":
        return "BP"
    if family == "pathwise":
        return "BP+" if run.config["estimator"].get("copies") == 1 else ""
    activation, loss = ACTIVATIONS.get(run.built("activation")), LOSSES.get(run.built("loss"))
    return f"LR{activation}{loss}" if family == "likelihood ratio" and None not in (activation, loss) else ""


def is_as_published(column: Column, threat: str, epsilon: float) -> bool:
    """Whether a threat is applied as in paper 1."""
    if column.threat != threat or column.noisy_passes or column.targeted:
        return False
    if column.kind == "attack":
        levels = {"fgsm": (epsilon,)}.get(threat, column.levels)
        return column.gradient_source == "transfer" and column.levels == levels and column.norm in ("", "linf")
    return column.kind == "clean" or (column.preset, column.levels) == (PRESET, SEVERITIES)


def _data(run: Run) -> str:
    """Return the data set's name in PUBLISHED, or an empty string for others and for images of another size."""
    node = run.config.get("data")
    resized = isinstance(node, dict) and node.get("resize") not in SIDES
    name = DATA_SETS.get(run.built("data"), "")
    return "" if resized and name != "tiny_imagenet_10" else name


def _line(model: str, label: str, runs: Sequence[Run], threats: Mapping[str, str], published: DataSet) -> Line:
    entries = {}
    for threat in threats:
        cells = [cell for run in runs if (cell := _cell(run, threat, published.epsilon)) is not None]
        entries[threat] = Entry(cells, published.accuracy(model, threat))
    return Line(model, label, runs, entries)


def _cell(run: Run, threat: str, epsilon: float) -> Cell | None:
    """Return the cell of a threat; if there are several surrogates, paper 1's."""
    found = [column for column in run.cells if is_as_published(column, threat, epsilon)]
    found.sort(key=lambda column: not column.surrogate.endswith(SURROGATE))
    return run.cells[found[0]] if found else None


def _text(entry: Entry, seeds: int, footnotes: dict[str, int]) -> str:
    published = NONE if entry.published is None else f"{100 * entry.published:.2f}"
    return f"{mean_of(entry.accuracies, seeds)}{mark(warning(entry.cells), footnotes)} ({published})"


def _remarks(entry: Entry) -> list[str]:
    return list(dict.fromkeys(remark for cell in entry.cells for remark in cell.remarks))


def _numbers(entry: Entry) -> list[float | str]:
    """Return mean, half width, published and note; an empty string for what is not known."""
    values = entry.accuracies
    mean, half = t_interval(values) if len(values) > 1 else (values[0] if values else None, None)
    numbers: list[float | str] = ["" if v is None else round(100 * v, 6) for v in (mean, half, entry.published)]
    return [*numbers, warning(entry.cells)]
