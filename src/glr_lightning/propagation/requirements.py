"""Requirements on a network before noise is injected: each check refuses the modules that do not fit."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from glr_lightning.errors import ConfigurationError
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.layer_vjp import has_weight_vjp
from glr_lightning.propagation.module_facts import facts_of, named
from glr_lightning.propagation.parameter_call import ParameterCall
from glr_lightning.propagation.row_layout import FIRST, Rows
from glr_lightning.propagation.traced_nodes import Node

Modules = Iterable[tuple[str, nn.Module]]
"""Modules with their names in the network."""
_SEVERAL_LAYERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


def require_separate_samples(modules: Modules) -> None:
    """Refuse layers through which a sample's loss depends on other samples or on noise of their own (Law 3).

    Raises:
        ConfigurationError: batch normalisation by the batch's own statistics, or a module that draws.
    """
    inner = [(name, part) for name, module in modules for part in module.modules()]
    for name, module in inner:
        if facts_of(module).couples:
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            how = " is in train mode or keeps no statistics, and" if batch_norm else ""
            raise ConfigurationError(
                f"module {named(name, module)}{how} couples the samples of a batch, which breaks an estimate from each "
                "sample's own loss; remove it, use a per-sample normalisation (nn.GroupNorm), or put it in eval mode."
            )
    require_no_draws(inner)


def require_no_draws(modules: Modules) -> None:
    """Refuse modules that draw noise of their own. Raises ConfigurationError."""
    for name, module in modules:
        if facts_of(module).draws:
            raise ConfigurationError(
                f"module {named(name, module)} draws noise of its own from the global generator; "
                "remove it: the injected noise already regularises."
            )


def require_own_output(modules: Modules) -> None:
    """Refuse modules that write into their input, which a pass keeps. Raises ConfigurationError."""
    for name, module in modules:
        if any(getattr(inner, "inplace", False) for inner in module.modules()):
            raise ConfigurationError(
                f"module '{name}' ({type(module).__name__}) writes into its input, the pre-activation that noise is "
                "added to; use inplace=False."
            )


def require_rows_first(sites: Iterable[tuple[Node, Rows | None]]) -> None:
    """Refuse calls that read a parameter by themselves, of which the rows are not in front."""
    for node, rows in sites:
        if isinstance(node.module, ParameterCall) and rows != FIRST:
            raise ConfigurationError(
                f"the network reads its parameter '{node.name}' by itself ({node.line}) in a tensor whose first axis "
                "is not its rows; move them there, or put the parameter into a layer."
            )


def require_own_parameters(network: nn.Module, calls: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse parameters whose gradient would be missing or incomplete.

    Args:
        network: the network.
        calls: what it calls, with names.

    Raises:
        ConfigurationError: a layer whose weight is computed from other parameters; a trainable parameter of a module
            without a weight gradient, or of one that is not called.
    """
    trained: set[Tensor] = set()
    for name, module in calls:
        kind = f"module '{name}' ({module.kind if isinstance(module, FunctionCall) else type(module).__name__})"
        own = {parameter_name for parameter_name, _ in module.named_parameters(recurse=False)}
        usual = isinstance(module, ParameterCall) or own <= {"weight", "bias"}
        if is_parametrized(module) or (has_weight_vjp(module) and not usual):
            raise ConfigurationError(
                f"{kind} computes its weight from other parameters, whose gradient is not estimated; remove that "
                "(torch.nn.utils.parametrize.remove_parametrizations)."
            )
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        called = module.function if isinstance(module, FunctionCall) else module
        if trainable and isinstance(called, _SEVERAL_LAYERS):
            raise ConfigurationError(
                f"{kind} holds parameters of several layers, where no noise can enter; write it in forward with "
                "nn.Linear (networks.Recurrence calls a cell at every step), or freeze it (requires_grad=False)."
            )
        if trainable and not has_weight_vjp(module):
            raise ConfigurationError(
                f"{kind} holds parameters, and no weight gradient is registered for it; replace it, freeze it "
                "(requires_grad=False), or register one with glr_lightning.propagation.layer_vjp.weight_vjp.register."
            )
        trained.update(trainable)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and parameter not in trained:
            raise ConfigurationError(
                f"the logits do not rest on parameter '{name}', since no call of its layer reaches them; remove it, or "
                "freeze it (requires_grad=False)."
            )
