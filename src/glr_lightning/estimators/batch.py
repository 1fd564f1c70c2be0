"""What an estimator is given, checked before the numerics of every estimate: kinds, shapes, types and devices.

None of this waits for an accelerator. What only the values tell, NaN and labels without a class, is looked at on the
CPU alone; data modules check the labels that they read on every device.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError, words_of
from glr_lightning.losses import Loss


def require_batch(network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
    """Refuse what is no network, loss, batch or generator, or does not fit together.

    Raises:
        ConfigurationError: says which, and what to do; `option` is the argument's name.
    """
    require_kinds(network, loss)
    for name, values in (("x", x), ("y", y)):
        if not isinstance(values, Tensor):
            _refuse(name, f"a tensor, got {kind(values)}; convert it with torch.as_tensor({name})")
    if not isinstance(generator, torch.Generator):
        _refuse("generator", f"a torch.Generator, got {kind(generator)}; give torch.Generator().manual_seed(0)")
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ConfigurationError(
            "the network has no layer with weights, so there is nothing to train; give it one.", option="network"
        )
    if x.dim() < 2 or not len(x):
        _refuse("x", f"a batch [batch, ...] of at least one input, got shape {list(x.shape)}")
    embeds = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in network.modules())
    if x.dtype != parameter.dtype and not (embeds and x.dtype in (torch.int64, torch.int32)):
        _refuse("x", f"{parameter.dtype} as the network's weights are, got {x.dtype}; convert it with x.to(...)")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        _refuse("y", f"int64 [{len(x)}], a label for each of x, got {y.dtype} {list(y.shape)}")
    for name, device in (("x", x.device), ("y", y.device), ("generator", generator.device)):
        if device.type != parameter.device.type:
            how = "torch.Generator(device)" if name == "generator" else f"{name}.to(device)"
            _refuse(name, f"on {parameter.device}, where the network is, got {device}; use {how}")
    if x.device.type == "cpu" and not math.isfinite(x.sum().item()) and not x.isfinite().all():  # the sum is quick
        _refuse("x", "finite numbers, got NaN or infinite ones; correct the data")


@contextmanager
def checked_batch(network: nn.Module, loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[None]:
    """Check what an estimate within the block is given, and explain torch's errors. Errors as `require_batch`."""
    require_batch(network, loss, x, y, generator)
    try:
        yield
    except Exception as error:  # of torch, or of a network's own
        explain(error, network, x, y)
        raise


def require_kinds(network: nn.Module, loss: Loss) -> None:
    """Refuse what is no network or no loss. Raises ConfigurationError."""
    if not isinstance(network, nn.Module):
        _refuse("network", f"a torch module, got {kind(network)}; make it first")
    if not isinstance(loss, Loss):
        _refuse("loss", f"a loss of glr_lightning.losses, got {kind(loss)}; give losses.CrossEntropy()")


def require_labels(y: Tensor, logits: Tensor) -> None:
    """Refuse labels that the network has no class for, on the CPU. Raises ConfigurationError."""
    classes = logits.shape[-1]
    if y.device.type != "cpu":
        return
    low, high = (int(end) for end in y.aminmax())
    if low < 0 or high >= classes:
        _refuse("y", f"labels from 0 to {classes - 1}, as the network has {classes} classes, got {low} to {high}")


def explain(error: Exception, network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Say in one line why torch raised an error within an estimate, if the batch does not fit the network.

    Raises:
        ConfigurationError: the network does not take x, does not return logits, or has no class for a label.
    """
    if isinstance(error, ConfigurationError | torch.OutOfMemoryError) or x.device.type != "cpu":
        return
    try:
        with torch.no_grad():
            logits = network(x[:1])
    except Exception as reason:  # a network may raise anything
        raise ConfigurationError(
            f"the network does not take x of shape {list(x.shape)}: {words_of(reason)}; change the network or x.",
            option="x",
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        shape = list(logits.shape) if isinstance(logits, Tensor) else kind(logits)
        raise ConfigurationError(
            f"the network must return logits [batch, classes], got {shape} for one input; change its last module.",
            option="network",
        ) from error
    require_labels(y, logits)


def kind(value: Any) -> str:
    """What a value is, in a few words."""
    if value is None:
        return "None"
    return f"the class {value.__name__} itself" if isinstance(value, type) else type(value).__name__


def _refuse(name: str, words: str) -> NoReturn:
    raise ConfigurationError(f"{name} must be {words}.", option=name)
