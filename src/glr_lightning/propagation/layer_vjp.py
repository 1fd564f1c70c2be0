"""Vector-Jacobian products of single layers with respect to their weights, on which every estimator rests.

    weight_vjp(layer, x, signal) = VJP_A(signal),   A(h; theta) the layer's affine map

It is one layer deep; nothing is differentiated through an activation, a loss or a second layer. The layers are
plain torch layers. A normalisation by each sample's own statistics is a layer of its own, whose scale and shift are
affine in what it has normalised. Adding a kind of layer: register its product here.
"""

import functools

from torch import Tensor, nn
from torch.nn import functional
from torch.nn import grad as weight_gradients

from glr_lightning.errors import ConfigurationError


def rows_of(x: Tensor, signal: Tensor) -> Tensor:
    """Bring a signal [copies, batch, *site] to the rows of the layer's input.

    Copy-major rows (Law 5): an input with copies * batch rows is a view of [copies, batch, ...]. An input that
    still has `batch` rows is common to all copies, and because the product is linear in the signal the copies
    are summed before it (Law 4): same result, 1 / copies of the cost.

    Raises:
        ValueError: x has neither `batch` nor copies * batch rows.
    """
    copies, batch = signal.shape[:2]
    if x.shape[0] == batch:
        return signal.sum(0)
    if x.shape[0] == copies * batch:
        return signal.flatten(0, 1)
    raise ValueError(f"an input of {x.shape[0]} rows fits neither {batch} samples nor {copies} copies of them")


@functools.singledispatch
def weight_vjp(layer: nn.Module, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """Gradient of sum(signal * layer(x)) with respect to the layer's own parameters.

    Args:
        layer: a layer of a registered kind.
        x: its input, [batch, ...] (common to all copies) or [copies * batch, ...] (copy-major).
        signal: the cotangent at its pre-activation, [copies, batch, *site].

    Returns:
        A tensor per parameter of the layer, by the parameter's name, in the parameter's dtype.

    Raises:
        ConfigurationError: no product is registered for this kind of layer.
    """
    raise ConfigurationError(
        f"{type(layer).__name__} has weights but no registered weight gradient; "
        "use nn.Linear, nn.Conv2d, nn.GroupNorm or nn.LayerNorm, or register one with "
        "glr_lightning.propagation.layer_vjp.weight_vjp.register."
    )


@weight_vjp.register
def _(layer: nn.Linear, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """Linear layer, v = h W^T + b:  dW = signal^T h, db = sum of signal over rows (and over any inner axes)."""
    rows = rows_of(x, signal)
    cotangent = rows.reshape(-1, layer.out_features)
    gradient = {"weight": cotangent.T @ x.reshape(-1, layer.in_features).to(cotangent.dtype)}
    if layer.bias is not None:
        gradient["bias"] = cotangent.sum(0)
    return _in_dtype_of(layer, gradient)


@weight_vjp.register
def _(layer: nn.Conv2d, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """The ordinary convolution weight gradient with the signal as cotangent; db = sum over rows and places."""
    require_plain_padding(layer)
    rows = rows_of(x, signal)
    gradient = {
        "weight": weight_gradients.conv2d_weight(
            x.to(rows.dtype), layer.weight.shape, rows, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    }
    if layer.bias is not None:
        gradient["bias"] = rows.sum((0, 2, 3))
    return _in_dtype_of(layer, gradient)


@weight_vjp.register
def _(layer: nn.GroupNorm, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """Group normalisation, v = weight h^ + bias by channel, h^ the normalised input:  dweight = sum of signal h^."""
    normalised = functional.group_norm(x, layer.num_groups, eps=layer.eps)
    return _scale_and_shift(layer, normalised, rows_of(x, signal), (0, *range(2, x.dim())))


@weight_vjp.register
def _(layer: nn.LayerNorm, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """Layer normalisation, v = weight h^ + bias by element, h^ the normalised input:  dweight = sum of signal h^."""
    normalised = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return _scale_and_shift(layer, normalised, rows_of(x, signal), tuple(range(x.dim() - layer.weight.dim())))


def _scale_and_shift(layer: nn.Module, normalised: Tensor, rows: Tensor, axes: tuple[int, ...]) -> dict[str, Tensor]:
    gradient = {"weight": (rows * normalised).sum(axes)}
    if layer.bias is not None:
        gradient["bias"] = rows.sum(axes)
    return _in_dtype_of(layer, gradient)


def _in_dtype_of(layer: nn.Module, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert to the parameters' dtypes, which an optimizer needs; under bf16 autocast products are bfloat16."""
    return {name: value.to(getattr(layer, name).dtype) for name, value in gradient.items()}


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer: its parameter, or a tensor in its place (`torch.func.functional_call`)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def has_weights(module: nn.Module) -> bool:
    """Whether a module has parameters and a weight gradient; a normalisation may have none."""
    return has_weight_vjp(module) and next(module.parameters(recurse=False), None) is not None


def require_plain_padding(layer: nn.Module, name: str = "a convolution") -> None:
    """Refuse a convolution whose padding is no number, or not of zeros. Raises ConfigurationError."""
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        raise ConfigurationError(
            f"{name} here takes its padding as numbers, filled with zeros; got padding={layer.padding!r}, "
            f"padding_mode={layer.padding_mode!r}."
        )


def unit_norms(layer: nn.Module) -> Tensor:
    """The 2-norm of the weights of each output unit, in a shape that broadcasts to the pre-activations [rows, *site].

    The units of a convolution, or of a group normalisation of images, are its channels.
    """
    weight = weight_of(layer).detach()
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
        return weight.square().sum().sqrt()  # which of its numbers belong to a unit is not known
    norms = weight.flatten(1).norm(dim=1) if isinstance(layer, nn.Linear | nn.Conv2d) else weight.abs()
    places = 2 if isinstance(layer, nn.Conv2d | nn.GroupNorm) else 0
    return norms[(...,) + (None,) * places]


def has_weight_vjp(module: nn.Module) -> bool:
    """Whether a weight gradient is registered for this kind of layer, and the layer has that kind's forward pass."""
    kind = next(kind for kind in type(module).__mro__ if kind in weight_vjp.registry)
    if kind is object or "forward" in vars(module):
        return False
    return all(getattr(type(module), name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward"))
