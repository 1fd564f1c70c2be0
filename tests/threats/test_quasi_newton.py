"""The inverse Hessian of many problems at once, against the recursion for one, written out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glr_lightning.threats.attacks.quasi_newton import InverseHessian

N = 6


def slow_product(pairs: list[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """Algorithm 7.4 of Nocedal & Wright for one problem, [N]; pairs of too little curvature are left out."""
    used = [(s, y) for s, y in pairs if s @ y > 1e-10]
    weights = []
    q = gradient.clone()
    for s, y in reversed(used):
        weights.append((s @ q) / (s @ y))
        q -= weights[-1] * y
    if used:
        s, y = used[-1]
        q *= (s @ y) / (y @ y)
    for (s, y), weight in zip(used, reversed(weights), strict=True):
        q += s * (weight - (y @ q) / (s @ y))
    return q


@pytest.mark.parametrize("share", [0.97, 0.7, 0.3])
def test_each_row_is_what_it_would_be_by_itself(share: float) -> None:
    """Whether few rows end at a time, whose pairs stay where they are, or many."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(60)
    hessian = InverseHessian(history=4)
    pairs: dict[int, list[tuple[Tensor, Tensor]]] = {int(row): [] for row in rows}
    for _ in range(7):
        step = torch.randn(len(rows), N, generator=generator, dtype=torch.float64)
        change = step + 0.5 * torch.randn(len(rows), N, generator=generator, dtype=torch.float64)
        hessian.update(step, change)
        for row, s, y in zip(rows.tolist(), step, change, strict=True):
            pairs[row] = [*pairs[row], (s, y)][-4:]
        kept = torch.rand(len(rows), generator=generator) < share
        kept[0] = True
        hessian.take(kept)
        rows = rows[kept]
        gradient = torch.randn(len(rows), N, generator=generator, dtype=torch.float64)
        expected = [slow_product(pairs[row], g) for row, g in zip(rows.tolist(), gradient, strict=True)]
        torch.testing.assert_close(hessian @ gradient, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_pairs_are_not_copied_while_most_rows_stay() -> None:
    hessian = InverseHessian(history=4)
    hessian.update(torch.ones(10, N), torch.ones(10, N))
    before = hessian._pairs[0]
    hessian.take(torch.ones(10, dtype=torch.bool))
    hessian.take(torch.arange(10) != 3)
    assert hessian._pairs[0] is before
    hessian.take(torch.arange(9) < 5)
    assert len(hessian._pairs[0][0]) == 5


class Allocations(TorchDispatchMode):
    """Counts the tensors [rows, N] that operations make anew."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {id(each) for each in (*args, *(kwargs or {}).values())}
        self.count += isinstance(result, Tensor) and result.shape[-1] == N and id(result) not in known
        return result


def test_a_product_makes_no_more_tensors_for_more_pairs() -> None:
    counts, gradient = [], torch.randn(5, N)
    for pairs in (1, 4):
        hessian = InverseHessian(history=4)
        for _ in range(pairs):
            hessian.update(torch.rand(5, N), torch.rand(5, N))
        before = gradient.clone()
        with Allocations() as allocations:
            assert not torch.equal(hessian @ gradient, before)
        assert torch.equal(gradient, before)
        counts.append(allocations.count)
    assert counts == [2, 2]


def test_without_pairs_it_is_the_identity() -> None:
    hessian = InverseHessian(history=4)
    gradient = torch.randn(3, N)
    hessian.take(torch.tensor([True, False, True]))
    assert torch.equal(hessian @ gradient, gradient)
    assert (hessian @ gradient[:0]).shape == (0, N)
