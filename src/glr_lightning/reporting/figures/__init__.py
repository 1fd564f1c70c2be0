"""The figures of a report: one function each, found by their declaration.

A figure is a function that takes a `Comparison` and returns a matplotlib figure, or None if there are no data for it:

    @report_figure("Accuracy against training time")
    def time(comparison: Comparison) -> Figure | None:
        ...

It is written to time.png and stands in the report under its caption. Those in the modules of this package are always
drawn, those of other modules if they are named: `glr-report figures=[my_package.my_figures]`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.reporting.document import Picture
from glr_lightning.reporting.results import Comparison
from glr_lightning.reporting.style import png, styled

Draw = Callable[[Comparison], Figure | None]
DECLARATION = "glr_report_figure"


@dataclass(frozen=True)
class ReportFigure:
    """A figure that a function declares.

    Attributes:
        name: the name of its file.
        caption: a sentence without its full stop.
        place: figures stand in the report in this order.
        draw: the function.
    """

    name: str
    caption: str
    place: int
    draw: Draw


def report_figure(caption: str, *, place: int = 100) -> Callable[[Draw], Draw]:
    """Declare a function as a figure of the report; its file has the function's name.

    Args:
        caption: a sentence without its full stop.
        place: figures stand in the report in this order; those of this package have 10, 20, ..., 60.
    """

    def declare(draw: Draw) -> Draw:
        setattr(draw, DECLARATION, ReportFigure(f"{draw.__name__}.png", caption, place, draw))
        return draw

    return declare


def find_figures(modules: Sequence[str] = ()) -> list[ReportFigure]:
    """Return the figures of this package and of other modules, in their order in the report.

    Raises:
        ConfigurationError: for a module that cannot be imported or declares no figure, or a name that occurs twice.
    """
    own = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    found: dict[str, ReportFigure] = {}
    for name in (*own, *modules):
        declared = _declared(name)
        for figure in declared:
            if found.setdefault(figure.name, figure).draw is not figure.draw:
                raise ConfigurationError(
                    f"figures={name} declares {figure.name}, which another figure has; rename the function.",
                    option="figures",
                )
        if not declared:
            raise ConfigurationError(
                f"figures={name} must be a module with functions that are declared with @report_figure; it has none.",
                option="figures",
            )
    return sorted(found.values(), key=lambda figure: figure.place)


def _declared(name: str) -> list[ReportFigure]:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a module raises
        raise ConfigurationError(
            f"figures={name} cannot be imported ({words_of(error)}); name a module on the Python path.",
            option="figures",
        ) from error
    values = (getattr(value, DECLARATION, None) for value in vars(module).values())
    return [value for value in values if isinstance(value, ReportFigure)]


def draw(comparison: Comparison, figures: Sequence[ReportFigure]) -> list[Picture]:
    """Draw the figures that there are data for."""
    pictures = []
    for figure in figures:
        with styled():
            drawn = figure.draw(comparison)
            if drawn is not None:
                pictures.append(Picture(figure.name, figure.caption, png(drawn)))
    return pictures
