"""The inverse Hessian of many problems at once, against the recursion for one, written out."""

import pytest
import torch
from torch import Tensor

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


def test_without_pairs_it_is_the_identity() -> None:
    hessian = InverseHessian(history=4)
    gradient = torch.randn(3, N)
    hessian.take(torch.tensor([True, False, True]))
    assert torch.equal(hessian @ gradient, gradient)
    assert (hessian @ gradient[:0]).shape == (0, N)
