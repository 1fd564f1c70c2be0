"""Accuracy and training loss by epoch."""

from matplotlib.figure import Figure

from glr_lightning.reporting.drawing import legend, line, shown_runs
from glr_lightning.reporting.figures import report_figure
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.style import PANEL, plain


@report_figure("Accuracy and training loss by epoch", place=10)
def learning_curves(comparison: Comparison) -> Figure | None:
    """Draw accuracy by epoch, then training loss by epoch.

    Accuracy is that on the validation images or, as thin lines, on the training images of a run without any. Each
    loss has a panel of its own: values of different losses cannot be compared.
    """
    trained = [shown for shown in shown_runs(comparison) if shown.run.metrics]
    if not trained:
        return None
    losses = list(dict.fromkeys(shown.run.target("loss") for shown in trained))
    figure = Figure(figsize=(3.9 * (1 + len(losses)), PANEL + 0.3))
    accuracy, *panels = figure.subplots(1, 1 + len(losses))
    held_out = trained_on = False
    for _, look, run in trained:
        validated = any("val_accuracy" in values for values in run.metrics.values())
        held_out |= validated
        trained_on |= not validated
        key, width = ("val_accuracy", 1.5) if validated else ("train_accuracy", 0.7)
        epochs, values = _by_epoch(run, key)
        line(accuracy, epochs, [100 * value for value in values], look, width)
        line(panels[losses.index(run.target("loss"))], *_by_epoch(run, "train_loss"), look)
    accuracy.set(title="Accuracy while training", ylabel="accuracy on validation images / %")
    if trained_on:
        both = "accuracy on validation images\n(thin: on training images) / %"
        accuracy.set_ylabel(both if held_out else "accuracy on training images / %")
    for panel, loss in zip(panels, losses, strict=True):
        panel.set(title=plain(f"Training loss: {loss}"), ylabel="mean loss per image")
    for panel in (accuracy, *panels):
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, trained)
    return figure


def _by_epoch(run: Run, key: str) -> tuple[list[float], list[float]]:
    """Return epochs, counted from 1, and values."""
    points = [(epoch + 1.0, values[key]) for epoch, values in run.metrics.items() if key in values]
    return [epoch for epoch, _ in points], [value for _, value in points]
