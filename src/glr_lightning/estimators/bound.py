"""An estimator that is bound to a network, and what its steps return."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from glr_lightning.errors import ConfigurationError
from glr_lightning.losses import Loss
from glr_lightning.propagation.asked_values import like
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import observe
from glr_lightning.propagation.rows import require_rows

if TYPE_CHECKING:
    from glr_lightning.estimators.base import Estimator


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


@dataclass(frozen=True, eq=False)
class Bound:
    """An estimator bound to a network and a loss: checked and prepared once, then a pure function of tensors.

        bound = estimator.bind(network, loss)
        noise = bound.draw(x, generator)
        estimate = bound.step(x, y, noise)

    A step checks nothing and draws nothing; it is what `torch.compile` compiles, and what `torch.func` transforms.

    Attributes:
        estimator: the estimator.
        network: the network.
        loss: the per-sample loss.
        compile: whether `step` runs as one graph of `torch.compile`. It is compiled by its first call, and again for
            a batch of another shape. What cannot be compiled as a whole is an error; nothing falls back.
        late: whether the network is traced and checked by the first batch, since its code asks for the batch's shape.
    """

    estimator: "Estimator"
    network: nn.Module
    loss: Loss
    compile: bool = False
    late: bool = False
    _looked_at: set[torch.Size] = field(default_factory=set, init=False, repr=False)

    @functools.cached_property
    def graph(self) -> Graph:
        """The network's graph. Raises ConfigurationError for a network that cannot be traced."""
        return Graph.of(self.network)

    @functools.cached_property
    def prepared(self) -> Any:
        """What the estimator has prepared for its steps."""
        return self.estimator._prepare(self)

    def look_at(self, x: Tensor) -> None:
        """Check the network on the values of a batch [batch, ...], the first of its shape.

        Raises:
            ConfigurationError: modules or functions turn out to be such as the estimator cannot train.
        """
        observe(self.network, x)
        if x.shape[1:] in self._looked_at:
            return
        if self.late or "graph" in vars(self):
            self._require_shape(x)
            if x.shape[1:] not in self.graph.checked:
                self.graph.shapes(x)
                self.graph.settle()  # facts that were probed on random numbers may be others on these
            self.estimator._require(self)
            require_rows(self.network, self.graph, x)
        _ = self.prepared
        self._looked_at.add(x.shape[1:])

    def _require_shape(self, x: Tensor) -> None:
        """Refuse a batch unlike the one for which a network's code that asks for it was traced."""
        made_for = self.graph.made_for
        if made_for not in (None, like(x)):
            raise ConfigurationError(
                f"the code of {type(self.network).__name__} asks for the shape of its input, and was traced for "
                f"{made_for.dtype} {list(made_for.shape)}, got {x.dtype} {list(x.shape[1:])}; bind again for these.",
                option="x",
            )

    def draw(self, x: Tensor, generator: torch.Generator) -> list[Any]:
        """Draw all randomness of a step.

        Args:
            x: [batch, ...], of which the shape, type and device count.
            generator: on the device of x.

        Returns:
            parts of the noise, each a tuple or dict of tensors.
        """
        self.look_at(x)
        return list(self.estimator._draws(self, x, generator))

    def step(self, x: Tensor, y: Tensor, noise: Iterable[Any]) -> Estimate:
        """Estimate the gradients, given the noise: a pure function of the network's weights and these tensors.

        Args:
            x: [batch, ...], inputs, of the dtype of the network's weights.
            y: [batch] int64, labels.
            noise: what `draw` returned for a batch of this shape.
        """
        if not self.compile:
            return self.estimator._step(self, x, y, noise)
        with _compiler_options():
            estimate: Estimate = self._compiled(self, x, y, noise)
        return estimate

    @functools.cached_property
    def _compiled(self) -> Callable[..., Estimate]:
        _ = self.prepared
        compiled: Callable[..., Estimate] = torch.compile(self.estimator._step, fullgraph=True, dynamic=False)
        return compiled

    def estimate(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
        """Draw and step, with one part of the noise in memory at a time; the batch is not checked.

        Args:
            x: [batch, ...], inputs, of the dtype of the network's weights.
            y: [batch] int64, labels.
            generator: all randomness comes from it; on the device of x.
        """
        self.look_at(x)
        noise = self.estimator._draws(self, x, generator)
        return self.step(x, y, list(noise) if self.compile else noise)

    def step_of(self, weights: Mapping[str, Tensor], x: Tensor, y: Tensor, noise: Iterable[Any]) -> Estimate:
        """As `step`, with these weights in place of the network's own; for `torch.func`.

        Args:
            weights: by the network's names of its parameters.
            x: as for `step`.
            y: as for `step`.
            noise: as for `step`.

        Raises:
            ConfigurationError: the estimator differentiates, which cannot be mapped over weights.
        """
        trained = {name for name, parameter in self.network.named_parameters() if parameter.requires_grad}
        own = {f"network.{name}": _trainable(w) if name in trained else w for name, w in weights.items()}
        try:
            estimate: Estimate = functional_call(_Step(self), own, (x, y, noise))
        except RuntimeError as error:
            if all(weight.requires_grad for name, weight in own.items() if name.removeprefix("network.") in trained):
                raise
            raise self._unmapped() from error
        if not trained <= estimate.gradients.keys():
            raise self._unmapped()
        return estimate

    def _unmapped(self) -> ConfigurationError:
        return ConfigurationError(
            f"{type(self.estimator).__name__} differentiates with respect to the weights, or reads which are trained, "
            "and neither can be done within torch.func; call step_of in a loop, or use estimator=likelihood_ratio, "
            "local_expectation or tiered."
        )


def _trainable(weight: Tensor) -> Tensor:
    """A weight that is differentiated, where torch allows it: not within `torch.func`."""
    if not weight.requires_grad:
        with contextlib.suppress(RuntimeError):
            return weight.detach().requires_grad_()
    return weight


def _compiler_options() -> AbstractContextManager[None]:
    """Have the compiler trace derivatives, which it does not by default."""
    from torch._dynamo import config  # here, for the compiler takes a second to import

    return config.patch(trace_autograd_ops=True) if hasattr(config, "trace_autograd_ops") else nullcontext()


class _Step(nn.Module):
    """A step as a module, whose parameters can be replaced."""

    def __init__(self, bound: Bound) -> None:
        super().__init__()
        self.network, self.bound = bound.network, bound

    def forward(self, x: Tensor, y: Tensor, noise: Iterable[Any]) -> Estimate:
        return self.bound.step(x, y, noise)
