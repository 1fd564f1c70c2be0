"""Facts about modules that estimators rest on: whether one is elementwise, affine, jumps, is flat, draws.

`facts_of` is their one source. In this order: what a module declares, what is known of torch's kinds and of those of
this package, and what a probe finds (`probing.py`). `observe` probes the modules of a network on what they see of a
batch, once; a module that has not been observed yet is probed on random numbers.

A module of one's own declares its facts by an attribute,

    class Soft(nn.Module):
        facts = ModuleFacts(elementwise=True)

or by deriving from `glr_lightning.activations.PiecewiseConstant`.
"""

import copy
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.networks.modules import Recurrence, Residual, Shift, Sine, Standardise
from glr_lightning.propagation.asked_values import see
from glr_lightning.propagation.probing import NOT_FOUND, ModuleFacts, probe

ELEMENTWISE: frozenset[type[nn.Module]] = frozenset(
    (
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish),
        *(nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign),
        *(nn.Tanh, nn.Tanhshrink, nn.Identity, Shift, Sine, Standardise),
    )
)
"""Kinds of torch and of this package that are elementwise and continuous; a test holds a probe of each against it."""

ISOMETRIES: frozenset[type[nn.Module]] = frozenset((nn.Flatten, nn.Unflatten, nn.Identity, Shift))
"""Kinds that keep the distance of any two inputs in every norm: they move numbers, or add the same to each image."""
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AFFINE = ISOMETRIES | {Standardise, nn.Linear, *_CONVOLUTIONS, *_AVERAGES, *_ADAPTIVE_AVERAGES}
"""Kinds that are affine, sample by sample."""

_RANDOM_POOLING = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_CONTINUOUS: tuple[type[nn.Module], ...] = (
    *(Recurrence, Residual, nn.Sequential, nn.ModuleList, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag),
    *(*_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
    *(nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax, nn.GLU),
    *(*_AVERAGES, *_ADAPTIVE_AVERAGES, nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, *_RANDOM_POOLING),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold),
    *(nn.ConstantPad2d, nn.CircularPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Upsample, nn.CosineSimilarity, nn.PairwiseDistance),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.MultiheadAttention, nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell),
)
_FORWARDS = frozenset(kind.forward for kind in _CONTINUOUS)
"""The passes of kinds that are continuous and not elementwise, also of a subclass that has not its own.

What is neither here nor `ELEMENTWISE` is probed, of whichever package it is.
"""

_found: WeakKeyDictionary[nn.Module, dict[bool, tuple[bool, ModuleFacts]]] = WeakKeyDictionary()
"""Results of probes by module and train mode: whether the module was observed, and its facts."""
_observed: WeakKeyDictionary[nn.Module, set[bool]] = WeakKeyDictionary()
"""Observed networks, with the train modes in which they were observed."""


def facts_of(module: nn.Module) -> ModuleFacts:
    """The facts about a module, in the mode (train or eval) it is in."""
    facts = without_probe(module)
    if facts is not None:
        return facts
    found = _found.setdefault(module, {})
    if module.training not in found:
        twin = _twin(module)
        found[module.training] = (False, NOT_FOUND if twin is None else probe(twin, None))
    return found[module.training][1]


def observe(network: nn.Module, x: Tensor) -> None:
    """Probe the modules of a network that are neither declared nor known, on their inputs for a batch [batch, ...].

    Nothing is written to the network or to the global generator. What the inputs are like is kept for a trace.
    """
    see(network, x)
    if network.training in _observed.get(network, ()):
        return
    _observed.setdefault(network, set()).add(network.training)
    unknown = [m for m in network.modules() if without_probe(m) is None and not _is_observed(m)]
    twin = _twin(network) if unknown else None
    if twin is None:
        return
    twins = dict(zip(network.modules(), twin.modules(), strict=True))
    seen = _inputs(twin, [twins[module] for module in unknown], x)
    for module in unknown:
        own = twins[module].train(module.training)
        _found.setdefault(module, {})[module.training] = (True, probe(own, seen.get(own)))


def observe_calls(calls: Iterable[tuple[nn.Module, Any]]) -> None:
    """Probe functions that are neither declared nor known, on what they are given; what is no tensor is passed over."""
    for module, x in calls:
        if (
            isinstance(x, Tensor)
            and x.is_floating_point()
            and without_probe(module) is None
            and not _is_observed(module)
        ):
            twin = _twin(module)
            found = NOT_FOUND if twin is None else probe(twin, x.detach())
            _found.setdefault(module, {})[module.training] = (True, found)


def probed(network: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network whose facts come from a probe, by name."""
    return {name or "network": module for name, module in network.named_modules() if without_probe(module) is None}


def without_derivative(network: nn.Module) -> dict[str, nn.Module]:
    """The modules, by name, whose derivative is 0 or misses jumps; the innermost, where one holds another."""
    hard = {name: module for name, module in network.named_modules() if facts_of(module).jumps or facts_of(module).flat}
    kept = [id(module) for module in hard.values()]
    return {
        name or "network": module
        for name, module in hard.items()
        if not any(id(inner) in kept for inner in module.modules() if inner is not module)
    }


def named(name: str, module: nn.Module) -> str:
    """A module in an error, with what a probe found of it: 'linear1' (Linear)."""
    found, kind = facts_of(module).found, getattr(module, "kind", type(module).__name__)  # of a function its line
    return f"'{name}' ({kind}{', ' + found if found else ''})"


def without_probe(module: nn.Module) -> ModuleFacts | None:
    """Return what is declared or known of a module, None if nothing is."""
    declared = module.__dict__.get("facts", getattr(type(module), "facts", None))
    if isinstance(declared, ModuleFacts):
        return declared
    return _known(module)


def _known(module: nn.Module) -> ModuleFacts | None:
    kind = type(module)
    affine, isometry = kind in AFFINE, kind in ISOMETRIES
    if kind in ELEMENTWISE:
        return ModuleFacts(elementwise=True, affine=affine, isometry=isometry)
    if isinstance(module, PiecewiseConstant):
        return ModuleFacts(elementwise=True, jumps=True, flat=True)
    if kind is nn.Threshold:
        return ModuleFacts(elementwise=True, jumps=bool(module.value != module.threshold))
    if kind is nn.Hardshrink:
        return ModuleFacts(elementwise=True, jumps=bool(module.lambd != 0))
    if kind is nn.RReLU:
        return ModuleFacts(elementwise=not module.training, draws=module.training)
    if kind.forward in _FORWARDS:
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        couples = norm and (module.training or module.running_mean is None)
        return ModuleFacts(draws=_draws(module), couples=couples, affine=affine, isometry=isometry)
    return None


def _draws(module: nn.Module) -> bool:
    """Whether a module of torch draws random numbers, in the mode it is in."""
    if isinstance(module, _RANDOM_POOLING):
        return module._random_samples is None  # in eval mode too
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.training and module.p > 0
    if isinstance(module, nn.MultiheadAttention):
        return module.training and module.dropout > 0
    return isinstance(module, nn.RNNBase) and module.training and module.dropout > 0 and module.num_layers > 1


def _is_observed(module: nn.Module) -> bool:
    found = _found.get(module, {})
    return module.training in found and found[module.training][0]


def _twin(module: nn.Module) -> nn.Module | None:
    """A copy to probe, None where there can be none."""
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError):
        return None


@torch.no_grad()
def _inputs(network: nn.Module, modules: list[nn.Module], x: Tensor) -> dict[nn.Module, Tensor]:
    """Return the inputs that modules of a network get for a batch, for those that take one tensor."""
    seen: dict[nn.Module, Tensor] = {}

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and args[0].is_floating_point():
            seen.setdefault(module, args[0].detach().clone())

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    devices = [x.device] if x.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.autocast(x.device.type, enabled=False):
            network.eval()(x[:8])
    finally:
        for handle in handles:
            handle.remove()
    return seen
