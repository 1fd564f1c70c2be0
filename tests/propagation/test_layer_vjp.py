"""The local product: `weight_vjp` is the vector-Jacobian product of one layer, at the cost it should have."""

import itertools
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.layer_vjp import has_weight_vjp, has_weights, rows_of, unit_norms, weight_vjp
from tests.checks.layer_vjp import BATCH, COPIES, check_weight_vjp, convolution, random
from tests.checks.refusals import refused

LINEAR_INPUTS = [(5,), (2, 5), (3, 2, 5)]
STRIDES, PADDINGS, DILATIONS = (1, 2, (3, 2)), (0, 1, (2, 0)), (1, 2, (1, 2))
GROUPS = (1, 2, 4)
CONVOLUTIONS: list[dict[str, Any]] = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for stride, padding, dilation, groups in itertools.product(STRIDES, PADDINGS, DILATIONS, GROUPS)
]
"""Of 9 x 8 pixels, which strides of 2 and 3 do not divide: pixels are left over."""
NORMALISATIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.GroupNorm(2, 6), (6, 4, 3)),
    (nn.GroupNorm(1, 6), (6, 4, 3)),
    (nn.GroupNorm(6, 6), (6, 4, 3)),
    (nn.GroupNorm(2, 6, eps=0.3), (6,)),
    (nn.GroupNorm(3, 6), (6, 5)),
    (nn.LayerNorm(6), (6,)),
    (nn.LayerNorm(6, eps=0.3), (2, 5, 6)),
    (nn.LayerNorm(6, bias=False), (6,)),
    (nn.LayerNorm((5, 6), bias=False), (2, 5, 6)),
    (nn.LayerNorm((2, 5, 6)), (2, 5, 6)),
]


# ---- the product ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x_shape", LINEAR_INPUTS)
def test_weight_vjp_is_autograds_of_a_linear_layer_inner_axes_included(x_shape: tuple[int, ...], bias: bool) -> None:
    check_weight_vjp(nn.Linear(5, 7, bias=bias).double(), *x_shape)


@pytest.mark.parametrize("bias", [True, False])
def test_weight_vjp_is_autograds_for_every_convolution(bias: bool) -> None:
    for options in CONVOLUTIONS:
        check_weight_vjp(convolution(**options, bias=bias), 4, 9, 8)


@pytest.mark.parametrize(("layer", "x_shape"), NORMALISATIONS, ids=repr)
def test_weight_vjp_is_autograds_of_a_normalisation(layer: nn.Module, x_shape: tuple[int, ...]) -> None:
    layer = layer.double()
    for parameter in layer.parameters():  # what they are at first would hide a factor of themselves
        parameter.data = random(*parameter.shape)
    check_weight_vjp(layer, *x_shape)


def test_a_normalisation_has_weights_only_where_it_has_parameters() -> None:
    for layer in (nn.GroupNorm(2, 6), nn.LayerNorm(6), nn.Conv2d(1, 2, 3, bias=False)):
        assert has_weights(layer)
    for layer in (nn.GroupNorm(2, 6, affine=False), nn.LayerNorm(6, elementwise_affine=False), nn.ReLU()):
        assert not has_weights(layer)


@pytest.mark.parametrize(
    ("layer", "x_shape"),
    [
        (nn.Linear(5, 7), (5,)),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 5, 5)),
        (nn.GroupNorm(2, 6), (6, 4, 3)),
        (nn.LayerNorm(6), (6,)),
        (nn.LayerNorm((6, 4, 3)), (6, 4, 3)),
    ],
    ids=repr,
)
def test_unit_norms_are_those_of_the_units_in_the_outputs_shape(layer: nn.Module, x_shape: tuple[int, ...]) -> None:
    weight = layer.get_parameter("weight")
    weight.data = random(*weight.shape).float()
    norms, site = unit_norms(layer), layer(torch.zeros(1, *x_shape)).shape[1:]
    assert torch.broadcast_shapes(norms.shape, site) == site
    of_units = weight.detach().flatten(1).norm(dim=1) if isinstance(layer, nn.Linear | nn.Conv2d) else weight.abs()
    assert torch.equal(norms.flatten(), of_units.flatten())


def test_an_input_common_to_all_copies_gives_what_its_tiled_copies_give() -> None:
    for layer, x in ((nn.Linear(5, 7).double(), random(BATCH, 5)), (convolution(stride=2), random(BATCH, 4, 8, 8))):
        signal = random(COPIES, BATCH, *layer(x).shape[1:])
        common, tiled = weight_vjp(layer, x, signal), weight_vjp(layer, torch.cat([x] * COPIES), signal)
        for name in common:
            torch.testing.assert_close(common[name], tiled[name], rtol=1e-12, atol=1e-12)


def test_rows_are_copy_major_views() -> None:
    signal = random(COPIES, BATCH, 7)
    rows = rows_of(random(COPIES * BATCH, 5), signal)
    assert rows.data_ptr() == signal.data_ptr()
    for copy in range(COPIES):
        assert torch.equal(rows[copy * BATCH : (copy + 1) * BATCH], signal[copy])


def test_rows_that_fit_neither_the_batch_nor_its_copies_are_an_error() -> None:
    with pytest.raises(ValueError, match="5 rows fits neither 4 samples nor 3 copies"):
        rows_of(random(5, 2), random(COPIES, BATCH, 7))


def test_under_bf16_autocast_a_gradient_still_has_its_parameters_dtype() -> None:
    layer, x = nn.Linear(5, 7), random(BATCH, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        gradient = weight_vjp(layer, x, random(COPIES, BATCH, 7).float())
    assert {g.dtype for g in gradient.values()} == {torch.float32}


# ---- cost -----------------------------------------------------------------------------------------------------------


@final
class LargestTensor(TorchDispatchMode):
    """Records the most numbers that any operator's result held."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("rows", [BATCH, COPIES * BATCH])
@pytest.mark.parametrize(
    ("layer", "x_shape"),
    [(nn.Linear(50, 60), (50,)), (nn.Conv2d(8, 16, 3, padding=1), (8, 5, 5))],
    ids=["linear", "conv"],
)
def test_nothing_larger_than_input_signal_and_weight_is_made(
    layer: nn.Module, x_shape: tuple[int, ...], rows: int
) -> None:
    """The published code made [rows, in, out] here, which is why it was slow."""
    x = random(rows, *x_shape).float()
    signal = random(COPIES, BATCH, *layer(x[:1]).shape[1:]).float()
    with LargestTensor() as largest:
        weight_vjp(layer, x, signal)
    assert 0 < largest.numel <= max(x.numel(), signal.numel(), layer.get_parameter("weight").numel())


def test_an_input_common_to_all_copies_is_never_tiled() -> None:
    layer, x, signal = nn.Linear(500, 2), random(BATCH, 500), random(COPIES, BATCH, 2)
    with LargestTensor() as largest:
        weight_vjp(layer.double(), x, signal)
    assert largest.numel <= x.numel()


# ---- refusals and registration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 8, 3), nn.BatchNorm1d(5), nn.Embedding(5, 7), nn.PReLU()], ids=repr)
def test_a_layer_without_a_registered_product_is_refused_by_name(layer: nn.Module) -> None:
    assert not has_weight_vjp(layer)
    with refused(None, type(layer).__name__, "or register one with glr_lightning.propagation.layer_vjp.weight_vjp"):
        weight_vjp(layer, random(BATCH, 5), random(COPIES, BATCH, 7))


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": "valid"}, {"padding": 1, "padding_mode": "circular"}]
)
def test_a_convolution_with_another_padding_is_refused(options: dict[str, Any]) -> None:
    layer = convolution(**options)
    x = random(BATCH, 4, 8, 8)
    with refused(None, "takes its padding as numbers"):
        weight_vjp(layer, x, random(COPIES, BATCH, *layer(x).shape[1:]))


@final
class Scale(nn.Module):
    """v = w * x, a layer of the user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_layer_of_ones_own_joins_by_registering_its_product() -> None:
    assert not has_weight_vjp(Scale(5))

    @weight_vjp.register
    def _(layer: Scale, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
        return {"weight": (rows_of(x, signal) * x).sum(0)}

    assert has_weight_vjp(Scale(5))
    check_weight_vjp(Scale(5).double(), 5)


def test_modules_that_write_into_their_input_are_refused() -> None:
    """A pass keeps the pre-activations, which an inplace activation would overwrite."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(inplace=True)), nn.Linear(4, 2))
    with refused(None, "'1.0' (ReLU)", "use inplace=False"):
        Graph.of(network)
