"""Linear layers with few outputs for many rows, such as the logits under noise copies, on a CPU.

A product [rows, in] x [in, 10] runs at a fifth of the speed of a wide one there. The transposed product, W x^T, is two
to three times as fast; and the sums over classes that a loss takes of its result run over long rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

MOST_OUTPUTS, FEWEST_ROWS = 16, 256


def call(module: nn.Module, *values: Any) -> Any:
    """Call a module; a narrow linear layer as W x^T + b, transposed, [rows, out] with the rows next to each other."""
    if type(module) is nn.Linear and module.out_features <= MOST_OUTPUTS and is_plain(module):
        (x,) = values
        if x.dim() == 2 and len(x) >= FEWEST_ROWS and x.device.type == "cpu":
            return _transposed(module, x)
    return module(*values)


def columns_of(weight: Tensor) -> Tensor:
    """The transposed weight [in, out] of a linear layer, for `product`; contiguous, unless it is narrow."""
    return weight.T if len(weight) <= MOST_OUTPUTS else weight.T.contiguous()


def product(x: Tensor, columns: Tensor) -> Tensor:
    """The product of x [rows, in] with columns [in, out], in their type; a narrow one transposed."""
    x = x.to(columns.dtype)
    if columns.shape[1] <= MOST_OUTPUTS and len(x) >= FEWEST_ROWS and x.device.type == "cpu":
        return torch.mm(columns.t(), x.t()).t()
    return x @ columns


def _transposed(layer: nn.Linear, x: Tensor) -> Tensor:
    if layer.bias is None:
        return torch.mm(layer.weight, x.t()).t()
    return torch.addmm(layer.bias[:, None], layer.weight, x.t()).t()


def is_plain(layer: nn.Linear) -> bool:
    """Whether nothing but the layer's own forward pass is called."""
    return not layer._forward_hooks and not layer._forward_pre_hooks and "forward" not in vars(layer)
