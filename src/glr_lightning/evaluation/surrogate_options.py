"""The options of surrogates, apart from what they are for: reading them takes no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import MinLen

from glr_lightning.validation import Checked, Count


@dataclass(frozen=True, kw_only=True)
class SurrogateOptions(Checked):
    """The section `surrogate` of glr-evaluate.

    Attributes:
        experiment: the experiments of the surrogates, for threats that name none.
        epochs: how long they are trained, of all data sets or by a data set's name; else the data set says.
        dir: where they are kept.
        keep_images: whether the images transferred from them are kept too.
    """

    experiment: str | tuple[str, ...] = "surrogate/relu"
    epochs: Count | Mapping[str, Count] | None = None
    dir: Annotated[str, MinLen(1)] = "surrogates"
    keep_images: bool = True

    @property
    def experiments(self) -> tuple[str, ...]:
        """All that `experiment` names."""
        return (self.experiment,) if isinstance(self.experiment, str) else self.experiment
