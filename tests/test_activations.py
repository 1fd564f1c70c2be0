"""Activations: cells and values belong together, cuts lie where they are said to."""

import math

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign, is_above
from tests.checks.groups import member, options
from tests.checks.refusals import refused

STAIRS = PiecewiseConstant(cuts=(-1.0, 0.5, 2.0), levels=(3.0, -1.0, 0.25, 7.0))
CONSTANT = [m for m in (member("activation", o) for o in options("activation")) if isinstance(m, PiecewiseConstant)]
V = torch.tensor([-math.inf, -1e30, -1.5, -1.0, -0.999, 0.0, 1e-30, 0.5, 0.51, 2.0, 2.1, 1e30, math.inf])


def cell_of(activation: PiecewiseConstant, v: float) -> int:
    """The cell by its definition: lower < v <= upper, and -inf in the first."""
    inside = [
        (low is None or v > low) and (up is None or v <= up) and not (low is None and up is None)
        for low, up in activation.cells
    ]
    assert sum(inside) == 1
    return inside.index(True)


def test_the_configured_activations_have_piecewise_constant_ones_among_them() -> None:
    assert {"threshold", "sign", "relu", "tanh", "sigmoid"} <= set(options("activation"))
    assert len(CONSTANT) >= 2


@pytest.mark.parametrize("name", options("activation"))
def test_an_activation_is_elementwise_and_has_no_weights(name: str) -> None:
    activation: nn.Module = member("activation", name)
    v = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = activation(v)
    assert out.shape == v.shape
    assert out.dtype == v.dtype
    torch.testing.assert_close(torch.stack([activation(value) for value in v.flatten()]), out.flatten())
    assert not activation.state_dict()


@pytest.mark.parametrize("activation", [*CONSTANT, STAIRS], ids=repr)
def test_each_value_is_its_cells_level_and_a_cut_is_of_the_cell_below(activation: PiecewiseConstant) -> None:
    expected = [activation.levels[cell_of(activation, v)] for v in V.tolist()]
    assert activation(V).tolist() == expected
    assert activation.double()(V.double()).tolist() == expected


@pytest.mark.parametrize("activation", [*CONSTANT, STAIRS], ids=repr)
def test_select_picks_the_tensor_of_the_cell_and_broadcasts(activation: PiecewiseConstant) -> None:
    per_cell = [torch.randn(1, 5, generator=torch.Generator().manual_seed(i)) for i in range(len(activation.cells))]
    v = torch.linspace(-3, 3, 20).view(4, 5)
    got = activation.select(v, per_cell)
    for row in range(4):
        for column in range(5):
            assert got[row, column] == per_cell[cell_of(activation, float(v[row, column]))][0, column]


@pytest.mark.parametrize("activation", [*CONSTANT, STAIRS])
def test_values_of_nan_and_the_smallest_numbers_follow_the_comparison(activation: PiecewiseConstant) -> None:
    v = torch.tensor([math.nan, -1e-45, -0.0, 0.0, 1e-45])
    levels = torch.tensor(activation.levels)
    expected = [levels[sum(value > cut for cut in activation.cuts)] for value in v.tolist()]
    assert torch.equal(activation(v), torch.stack(expected))


@pytest.mark.parametrize("activation", [*CONSTANT, STAIRS])
def test_a_network_of_thresholds_may_be_mapped_and_compiled(activation: PiecewiseConstant) -> None:
    assert torch.equal(torch.vmap(activation)(V[:, None])[:, 0], activation(V))
    compiled = torch.compile(activation, fullgraph=True, backend="eager")
    assert torch.equal(compiled(V.clone().requires_grad_()), activation(V))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cut", [0.0, 0.1, -1.5, 1e-40])
def test_above_is_the_comparison_in_every_dtype(cut: float, dtype: torch.dtype) -> None:
    v = torch.cat([V, torch.tensor([cut, 0.1, 0.3, math.nan])]).to(dtype)
    assert torch.equal(is_above(v, cut), (v > cut).to(dtype))
    at = torch.tensor(cut).to(dtype)
    assert torch.equal(is_above(v, at), (v > at).to(dtype))


def test_the_threshold_of_a_pre_activation_takes_two_passes() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        HardThreshold()(torch.randn(1000))
    names = {event.name for event in profile.events()}
    assert {"aten::sign", "aten::relu_"} <= names
    assert not names & {"aten::gt", "aten::_to_copy", "aten::mul_", "aten::add_"}


def test_cells_are_the_gaps_between_the_cuts() -> None:
    assert STAIRS.cells == [(None, -1.0), (-1.0, 0.5), (0.5, 2.0), (2.0, None)]
    assert HardThreshold().cells == Sign().cells == [(None, 0.0), (0.0, None)]


@pytest.mark.parametrize("shift", [0.0, 40.0, -40.0])
def test_each_point_lies_inside_its_cell(shift: float) -> None:
    moved = PiecewiseConstant([cut + shift for cut in STAIRS.cuts], STAIRS.levels)
    assert [cell_of(moved, point) for point in moved.points] == [0, 1, 2, 3]
    assert not set(moved.points) & set(moved.cuts)


def test_threshold_is_1_above_0_and_sign_is_minus_1_up_to_0() -> None:
    v = torch.tensor([-2.0, -0.0, 0.0, 1e-20, 3.0])
    assert HardThreshold()(v).tolist() == [0, 0, 0, 1, 1]
    assert Sign()(v).tolist() == [-1, -1, -1, 1, 1]


@pytest.mark.parametrize(
    ("cuts", "levels"), [((), (1.0,)), ((0.0,), (1.0,)), ((1.0, 0.0), (1, 2, 3)), ((0.0, 0.0), (1, 2, 3)), ((0.0,), ())]
)
def test_cuts_that_do_not_ascend_or_do_not_fit_the_levels_are_refused(cuts: tuple, levels: tuple) -> None:
    with refused(None, "ascending cuts and one level more than cuts"):
        PiecewiseConstant(cuts, levels)


def test_the_derivative_is_0_so_that_nobody_trains_through_it() -> None:
    v = torch.tensor([-1.0, 2.0], requires_grad=True)
    for activation in (*CONSTANT, STAIRS):
        out: Tensor = activation(v)
        assert not out.requires_grad or not torch.autograd.grad(out.sum(), v)[0].any()
