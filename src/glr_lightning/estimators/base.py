"""The interface of gradient estimators, frozen values that turn a batch into gradients, and checks they share."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias, TypeVar, final

import torch
from torch import Tensor, nn

from glr_lightning.estimators.batch import checked_batch, require_kinds, require_labels
from glr_lightning.estimators.bound import Bound, Estimate
from glr_lightning.losses import Loss
from glr_lightning.propagation.asked_values import UnseenError
from glr_lightning.propagation.module_facts import named, observe, probed
from glr_lightning.validation import Checked

Value = TypeVar("Value")

Objective: TypeAlias = str
"""The objective that an estimate is the gradient of: one of `OBJECTIVES`, or in words another."""

OBJECTIVES: dict[Objective, str] = {
    "noise_free": "the loss itself, without noise",
    "joint": "E[L] under noise at all layers",
    "layerwise": "for each layer E[L] under noise at that layer alone",
    "discontinuities": "E[L] under noise where something jumps",
    "weights": "E[L] under noise on the weights",
}
"""The objectives that this package knows, in words."""

Family: TypeAlias = str
"""The kind of method: one of `FAMILIES`, or a name for another."""

FAMILIES: tuple[Family, ...] = (
    "backpropagation",
    "pathwise",
    "straight-through",
    "forward gradient",
    "likelihood ratio",
    "likelihood ratio and pathwise",
    "evolution strategies",
)
"""The kinds of method in this package. "likelihood ratio" holds all that learn from loss values under noise at the
neurons, among them local expectation, its Rao-Blackwell form; "pathwise" is backpropagation through a noisy forward
pass."""


class Estimator(Checked, ABC):
    """Estimates the gradient of J(theta) = E[L] on a batch. It never writes `.grad` and keeps no state.

    `family`, `needs_derivatives`, `objective`, `bias` and `plan` are what an estimator declares of itself; tests hold
    it to them.
    """

    family: ClassVar[Family]
    """The kind of method."""
    needs_derivatives: ClassVar[bool]
    """Whether it differentiates the loss and the modules between the loss and some layer."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Have what `plan` of a subclass is given checked first, as it is for `bind`."""
        super().__init_subclass__(**options)
        if "plan" in vars(cls):
            cls.plan = _after_kinds(vars(cls)["plan"])  # type: ignore[method-assign]

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """The objective whose gradient is the mean of the estimates."""

    @abstractmethod
    def plan(self, network: nn.Module, loss: Loss) -> dict[str, str]:
        """Return in a few words where the gradient of each layer with weights comes from, by the layer's name."""

    def bias(self, network: nn.Module) -> str:
        """Return why the mean is not the gradient of the objective on this network, or "" if it is."""
        return ""

    def describe(self, network: nn.Module, loss: Loss) -> list[str]:
        """Describe training with this estimator in a few lines for the screen.

        The objective, where each layer's gradient comes from, why it is biased, if it is, and what was found of the
        modules that had to be probed.
        """
        lines = [f"{type(self).__name__} descends {OBJECTIVES.get(self.objective, self.objective)}."]
        layers: dict[str, list[str]] = {}
        for layer, source in self.plan(network, loss).items():
            layers.setdefault(source, []).append(layer)
        lines += [f"  {', '.join(names)}: {source}" for source, names in layers.items()]
        bias = self.bias(network)
        lines += [f"  biased: {bias}"] if bias else []
        return lines + [f"  module {named(name, module)}" for name, module in probed(network).items()]

    @final
    def check(self, network: nn.Module, loss: Loss, x: Tensor | None = None) -> None:
        """Refuse a network and loss that this estimator cannot train, and settings that have no effect on them.

        Args:
            network: the network.
            loss: the per-sample loss.
            x: [batch, ...], some inputs; without them what depends on their shape or values is not checked.

        Raises:
            ConfigurationError: either; a setting without effect may keep its default.
        """
        require_kinds(network, loss)
        if x is not None:
            observe(network, x)
        bound = self.bind(network, loss)
        if x is not None:
            bound.look_at(x)
        elif bound.late:
            return
        self._require_effects(bound, x)

    @final
    def bind(self, network: nn.Module, loss: Loss, *, compile: bool = False) -> Bound:
        """Trace and check a network once, for many steps; where its code asks for shapes, at the first batch.

        Args:
            network: the network; its parameters may change afterwards, its modules and their train mode may not.
            loss: the per-sample loss.
            compile: whether `Bound.step` runs as one graph of `torch.compile`.

        Raises:
            ConfigurationError: the estimator cannot train them.
        """
        require_kinds(network, loss)
        bound = Bound(self, network, loss, compile)
        try:
            self._require(bound)
        except UnseenError:
            return replace(bound, late=True)
        return bound

    @final
    def estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Estimate:
        """Estimate the gradients on one batch: bind, draw and step.

        What is given is checked first. On an accelerator values are not looked at, since that would wait for it: there
        a NaN in x or a label without a class is the caller's to find.

        Args:
            network: the network; its parameters are read only.
            loss: the per-sample loss.
            x: [batch, ...], inputs, of the dtype of the network's weights.
            y: [batch] int64, labels.
            generator: all randomness comes from it; on the device of x.

        Raises:
            ConfigurationError: what does not fit together, or the estimator cannot train.
        """
        with checked_batch(network, loss, x, y, generator):
            observe(network, x)
            estimate = self.bind(network, loss).estimate(x, y, generator)
        require_labels(y, estimate.logits)
        return estimate

    def _require(self, bound: Bound) -> None:
        """Refuse what cannot be trained. Raises ConfigurationError."""

    def _require_effects(self, bound: Bound, x: Tensor | None) -> None:
        """Refuse settings without effect that have not their default; x: some inputs. Raises ConfigurationError."""

    def _prepare(self, bound: Bound) -> Any:
        """What a step needs and the network alone decides; found once, as `Bound.prepared`."""
        return None

    def _draws(self, bound: Bound, x: Tensor, generator: torch.Generator) -> Iterator[Any]:
        """Draw all randomness of a step on a batch like x, in parts that can be held in memory one at a time.

        A part is a tuple, or a dict, of tensors. An estimator without randomness has none.
        """
        return iter(())

    @abstractmethod
    def _step(self, bound: Bound, x: Tensor, y: Tensor, noise: Iterable[Any]) -> Estimate:
        """Estimate the gradients, given all parts that `_draws` gives: tensors in, gradients out, nothing drawn.

        This is what a subclass writes; what it is given has been checked.
        """


def _after_kinds(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an estimator that refuses what is no network or no loss before it looks into them."""

    @functools.wraps(method)
    def checked(self: Estimator, network: nn.Module, loss: Loss, *others: Any, **options: Any) -> Any:
        require_kinds(network, loss)
        return method(self, network, loss, *others, **options)

    return checked
