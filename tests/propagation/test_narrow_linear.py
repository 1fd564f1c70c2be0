"""Narrow linear layers: the transposed product is the layer's own, and nothing that belongs to a layer is left out."""

import pytest
import torch
from torch import nn

from glr_lightning.propagation import narrow_linear

ROWS = narrow_linear.FEWEST_ROWS


@pytest.mark.parametrize("bias", [True, False])
def test_the_transposed_product_is_the_layers(bias: bool) -> None:
    layer, x = nn.Linear(7, 5, bias=bias).double(), torch.randn(ROWS, 7, dtype=torch.float64)
    got = narrow_linear.call(layer, x)
    torch.testing.assert_close(got, layer(x), rtol=1e-13, atol=1e-13)
    assert got.stride() == (1, ROWS)  # it was taken
    own, other = (torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (layer(x), got))
    torch.testing.assert_close(other, own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(7, 5), (ROWS - 1, 7)), (nn.Linear(7, 17), (ROWS, 7)), (nn.Linear(7, 5), (ROWS, 2, 7))],
    ids=["few rows", "wide", "tokens"],
)
def test_other_products_are_left_as_they_are(layer: nn.Linear, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    got = narrow_linear.call(layer, x)
    assert torch.equal(got, layer(x))
    assert got.is_contiguous()


def test_hooks_of_a_layer_are_called() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(ROWS, 7)
    layer.register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(narrow_linear.call(layer, x), layer(x))
