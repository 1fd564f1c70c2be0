"""A check of one layer's vector-Jacobian product against autograd."""

from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.propagation.layer_vjp import weight_vjp

COPIES, BATCH = 3, 4


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)), dtype=torch.float64)


def convolution(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 8, 3, **options).double()


def vjp(layer: nn.Module, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """The product by autograd, one copy after the other: no row order to get wrong."""
    per_copy = x.expand(COPIES, *x.shape) if x.shape[0] == BATCH else x.unflatten(0, (COPIES, BATCH))
    total = sum((layer(rows) * cotangent).sum() for rows, cotangent in zip(per_copy, signal, strict=True))
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def check_weight_vjp(layer: nn.Module, *x_shape: int) -> None:
    """`weight_vjp` equals autograd, whether its input is common to the copies or has rows of its own for each."""
    for rows in (BATCH, COPIES * BATCH):
        x = random(rows, *x_shape)
        site = layer(x[:1]).shape[1:]
        signal = random(COPIES, BATCH, *site)
        got, expected = weight_vjp(layer, x, signal), vjp(layer, x, signal)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12, msg=f"{name}, {rows} rows")
