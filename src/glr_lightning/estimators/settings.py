"""Checks of an estimator's settings against a network, which estimators share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import require_plain_padding
from glr_lightning.sampling import Sampler

Value = TypeVar("Value")


def per_layer(values: Value | Sequence[Value], graph: Graph, name: str = "sigma") -> tuple[Value, ...]:
    """One value for each layer with weights, such as a number of copies.

    Raises:
        ConfigurationError: a list whose length is not the number of layers; `name` names it.
    """
    layers = len(graph.layers)
    if isinstance(values, Sequence):
        if len(values) != layers:
            raise ConfigurationError(
                f"{name} has {len(values)} values but the network has {layers} layers with weights; "
                f"give one value, or {layers} of them.",
                option=f"estimator.{name}",
            )
        return tuple(values)
    return (values,) * layers


def per_site(values: Value | Sequence[Value], graph: Graph, name: str = "sigma") -> tuple[Value, ...]:
    """One value for each site, such as a noise scale: that of its layer. Errors as for `per_layer`."""
    by_layer = per_layer(values, graph, name)
    return tuple(by_layer[layer] for layer in graph.layer_of)


def check_sites(graph: Graph, sigma: float | Sequence[float | Tensor], sampling: Sampler) -> None:
    """Refuse a network that the noise does not fit: not one scale per layer, or a layer too wide for the sampler.

    Raises:
        ConfigurationError: either.
    """
    _: tuple[float | Tensor, ...] = per_layer(sigma, graph)
    for name, layer in graph.named_layers:
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


def require_read_scales(graph: Graph, sigma: float | Sequence[float | Tensor], read: Sequence[int]) -> None:
    """Refuse a list of noise scales that gives one of its own to a layer at which none is read.

    Raises:
        ConfigurationError: such a list; `read` are the sites that have noise, or a slope by it.
    """
    if not isinstance(sigma, Sequence):
        return
    scales: tuple[float | Tensor, ...] = per_layer(sigma, graph)
    layers = [graph.layer_of[site] for site in read]
    repeated = scales[layers[0]] if layers else 1.0
    for layer, name in enumerate(graph.layers):
        if layer not in layers and scales[layer] != repeated:
            raise ConfigurationError(
                f"estimator.sigma gives '{name}' the noise scale {scales[layer]}, and none is read there; write "
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


def even_parts(total: int, most: int, group: int = 1, fewest: int = 1) -> list[int]:
    """Split a number of copies, or of other things, into parts, as even as can be.

    Args:
        total: the number, a multiple of `group`.
        most: the size of a part, as far as the two others allow it.
        group: how many belong together.
        fewest: groups that a part needs, unless there are fewer in all.
    """
    groups = total // group
    parts = min(-(-groups // max(most // group, 1)), max(groups // fewest, 1))
    return [group * (groups // parts + (part < groups % parts)) for part in range(parts)]


def require_logits_of_a_layer(graph: Graph) -> None:
    """Refuse a network in which something follows the last layer. Raises ConfigurationError."""
    if graph.sites[-1] != graph.output:
        raise ConfigurationError(
            f"local expectation needs logits that are a layer's output, but {graph.nodes[graph.output].what} "
            "follows the last layer; remove it, or use estimator=likelihood_ratio."
        )
