"""What the benchmark measures, with the bar of each measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glr_lightning.reporting.tables import NONE, Table


@dataclass(frozen=True)
class Measure:
    """A row of the table.

    Attributes:
        words: what is measured.
        before: of version 0.4, measured by another script, by the clock.
        bar: what is asked for.
        unit: "" for a ratio.
        more: whether more is better.
    """

    words: str
    before: str
    bar: float
    unit: str = ""
    more: bool = False

    def shown(self, value: float) -> str:
        """A value with its unit, to three digits."""
        number = f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
        return f"{number} {self.unit}".strip()

    def met(self, value: float) -> bool:
        """Whether a value reaches the bar."""
        return value >= self.bar if self.more else value <= self.bar


MEASURES = {
    "naive_over_ours_10": Measure("published formula / ours, K = 10", "50 to 59", 100, more=True),
    "naive_over_ours_100": Measure("published formula / ours, K = 100", "130 to 138", 200, more=True),
    "ours_over_backprop_10": Measure("ours / backprop, K = 10", "2.8 to 3.0", 2),
    "local_50_over_backprop": Measure("local expectation, one copy / backprop, 784-50-10", "3.2 to 4.1", 2),
    "local_500_over_backprop": Measure("local expectation, one copy / backprop, 784-500-10", "1.75 to 2.2", 1.5),
    "conv_over_backprop": Measure("conv/lrt, tiered / backprop", "15.4", 6),
    "lightning_digits_lrtz": Measure("Lightning / bare loop, digits, lrtz, K = 1", "1.59", 1.2),
    "lightning_mnist_lrtz": Measure("Lightning / bare loop, MNIST, lrtz, K = 1", "1.47", 1.15),
    "lightning_digits_bp": Measure("Lightning / bare loop, digits, bp", "3.1", 1.5),
    "deep_32": Measure("local expectation, 3 x 100 units, K = 4, 32 units", "36 ms", 10, "ms"),
    "deep_all": Measure("local expectation, 3 x 100 units, K = 4, all units", "146 ms", 30, "ms"),
    "mnist_to_95": Measure("lrtz on MNIST, training time to 95 %", "5.6 s", 2.5, "s"),
    "mnist_to_90": Measure("lrtz on MNIST, training time to 90.22 %", "0.46 s", 0.25, "s"),
    "mnist_256_to_95": Measure("the same to 95 %, batches of 256, rate 5e-3", NONE, 2.5, "s"),
    "mnist_256_to_90": Measure("the same to 90.22 %, batches of 256, rate 5e-3", NONE, 0.25, "s"),
    "help": Measure("glr-train --help", "6.1 to 6.6 CPU s", 1.5, "CPU s"),
    "cfg_job": Measure("glr-train --cfg job", "6.1 to 6.6 CPU s", 1.5, "CPU s"),
    "unknown_option": Measure("glr-train with an unknown option", "6.1 to 6.6 CPU s", 1.5, "CPU s"),
    "digits_epoch": Measure("glr-train, one epoch of digits", "6.9 to 11 CPU s", 4, "CPU s"),
    "paper_kept": Measure("threat=paper, 10,000 MNIST images, surrogate kept", "10.0 CPU s", 6, "CPU s"),
    "paper_first": Measure("threat=paper, 10,000 MNIST images, first time", "23.4 CPU s", 12, "CPU s"),
}


def table(keys: Sequence[str], values: Mapping[str, float]) -> Table:
    """Some measures with their bars; only MNIST can be missing."""
    rows = []
    for key in keys:
        measure, value = MEASURES[key], values.get(key)
        bar = ("at least " if measure.more else "") + measure.shown(measure.bar)
        now = "not measured: no MNIST" if value is None else measure.shown(value)
        met = NONE if value is None else "yes" if measure.met(value) else "no"
        rows.append([measure.words, measure.before, now, bar, met])
    return Table([[words] for words in ("measure", "0.4", "now", "bar", "met")], rows, [])


PARTS = ("draw", "add", "activate", "product", "loss", "contract", "optimizer", "rest", "Lightning", "data", "limit")
"""Of the budget of a step, in the order of the table."""


def shares(budget: Mapping[str, Mapping[str, float]]) -> Table:
    """The parts of each step as shares of it; Lightning and data come on top, the limit is the machine's."""
    rows = []
    for part in PARTS:
        known = all(part in step for step in budget.values())
        rows.append([part, *(f"{step[part] / step['step']:.2f}" if known else NONE for step in budget.values())])
    return Table([["share of a step"], *([name] for name in budget)], rows, [])
