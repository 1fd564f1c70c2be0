"""The interface of gradient estimators, frozen values that turn a batch into gradients, and checks they share."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, TypeVar, final

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.batch import explain, require_batch, require_kinds, require_labels
from glr_lightning.losses import Loss
from glr_lightning.propagation.chain import Chain
from glr_lightning.propagation.layer_vjp import require_plain_padding
from glr_lightning.propagation.module_facts import named, probed
from glr_lightning.sampling import Sampler
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


@dataclass(frozen=True)
class Estimate:
    """The outcome of one estimation.

    Attributes:
        gradients: dJ/dtheta by parameter name of the network, each in its parameter's shape and dtype.
        loss: the mean loss over the batch and the noise copies, a scalar tensor.
        logits: [batch, classes], the noise-free ones where the estimator computes them.
        diagnostics: plain numbers about the cost; "forwards" is the number of samples sent through the
            network or the noisy part of it.
        log_sigma: dJ/dlog(sigma) of every noisy layer, each in the shape of its scale; empty unless the
            estimator's sigma are tensors.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    logits: Tensor
    diagnostics: dict[str, int] = field(default_factory=dict)
    log_sigma: tuple[Tensor, ...] = ()


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
        """Have what `plan` and `check` of a subclass are given checked first, as it is for `estimate`."""
        super().__init_subclass__(**options)
        for name in {"plan", "check"} & vars(cls).keys():
            setattr(cls, name, _after_kinds(vars(cls)[name]))

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

    @abstractmethod
    def check(self, network: nn.Module, loss: Loss, x: Tensor | None = None) -> None:
        """Refuse a network and loss that this estimator cannot train, and settings that have no effect on them.

        Args:
            network: the network.
            loss: the per-sample loss.
            x: [batch, ...], some inputs; without them what depends on their shape or values is not checked.

        Raises:
            ConfigurationError: either; a setting without effect may keep its default.
        """

    @final
    def estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Estimate:
        """Estimate the gradients.

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
        require_batch(network, loss, x, y, generator)
        try:
            estimate = self._estimate(network, loss, x, y, generator)
        except Exception as error:  # of torch, or of a network's own
            explain(error, network, x, y)
            raise
        require_labels(y, estimate.logits)
        return estimate

    @abstractmethod
    def _estimate(self, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """As `estimate`, which calls it with what it has checked. This is what a subclass writes."""


def _after_kinds(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an estimator that refuses what is no network or no loss before it looks into them."""

    @functools.wraps(method)
    def checked(self: Estimator, network: nn.Module, loss: Loss, *others: Any, **options: Any) -> Any:
        require_kinds(network, loss)
        return method(self, network, loss, *others, **options)

    return checked


def accumulate(total: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    """Add gradients to a sum by name, in place."""
    for name, gradient in gradients.items():
        total[name] = total[name] + gradient if name in total else gradient


def per_site(values: Value | Sequence[Value], sites: int, name: str = "sigma") -> tuple[Value, ...]:
    """One value for each site, such as a noise scale.

    Raises:
        ConfigurationError: a list whose length is not the number of sites; `name` names it.
    """
    if isinstance(values, Sequence):
        if len(values) != sites:
            raise ConfigurationError(
                f"{name} has {len(values)} values but the network has {sites} layers with weights; "
                f"give one value, or {sites} of them.",
                option=f"estimator.{name}",
            )
        return tuple(values)
    return (values,) * sites


def check_sites(chain: Chain, sigma: float | Sequence[float | Tensor], sampling: Sampler) -> None:
    """Refuse a chain that the noise does not fit: not one scale per layer, or a layer too wide for the sampler.

    Raises:
        ConfigurationError: either.
    """
    _: tuple[float | Tensor, ...] = per_site(sigma, len(chain.sites))
    for site, name in enumerate(chain.site_names):
        layer = chain.layer(site)
        require_plain_padding(layer, f"module '{name}'")
        if isinstance(layer, nn.Linear):  # a convolution's site is known once it has seen an input
            sampling.check_site(layer.out_features)


class IdleSettingError(ConfigurationError):
    """A setting was given that has no effect on this network and loss."""


def require_defaults(estimator: Any, idle: Mapping[str, str]) -> None:
    """Refuse settings that have no effect here, unless they have their default: two runs that differ in them are one.

    Args:
        estimator: a dataclass.
        idle: by setting, why it has no effect.

    Raises:
        IdleSettingError: a setting that has neither an effect nor its default.
    """
    for setting in dataclasses.fields(estimator):
        value, name = getattr(estimator, setting.name), setting.name
        if name in idle and value != setting.default:
            raise IdleSettingError(
                f"estimator.{name}={_shown(value)} has no effect here: {idle[name]}; leave it out (it is "
                f"{_shown(setting.default)} then).",
                option=f"estimator.{name}",
            )


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return type(value).__name__ if dataclasses.is_dataclass(value) else str(value)


def require_read_scales(chain: Chain, sigma: float | Sequence[float | Tensor], read: Sequence[int]) -> None:
    """Refuse a list of noise scales that gives one of its own to a layer at which none is read.

    Raises:
        ConfigurationError: such a list; `read` are the sites that have noise, or a slope by it.
    """
    if not isinstance(sigma, Sequence):
        return
    scales: tuple[float | Tensor, ...] = per_site(sigma, len(chain.sites))
    repeated = scales[read[0]] if read else 1.0
    for site, name in enumerate(chain.site_names):
        if site not in read and scales[site] != repeated:
            raise ConfigurationError(
                f"estimator.sigma gives '{name}' the noise scale {scales[site]}, and none is read there; write "
                f"{repeated} in its place, or give one value for all layers.",
                option="estimator.sigma",
            )


def require_small_chunk(chunk: int | None, copies: int) -> None:
    """Refuse to hold more copies at once than there are. Raises ConfigurationError."""
    if chunk is not None and chunk > copies:
        raise ConfigurationError(
            f"estimator.chunk={chunk} has no effect: there are {copies} copies; leave it out, or use less.",
            option="chunk",
        )


def even_parts(total: int, largest: int) -> list[int]:
    """Split a count into parts of at most `largest` (at least 1), as even as can be."""
    parts = -(-total // max(largest, 1))
    return [total // parts + (part < total % parts) for part in range(parts)]
