"""Losses: one number per row, from that row alone."""

import math

import pytest
import torch
from torch import Tensor

from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from tests.checks.groups import member, options

every_loss = pytest.mark.parametrize("name", options("loss"))


def rows(number: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(number, classes, generator=generator, dtype=torch.float64),
        torch.randint(classes, (number,), generator=generator),
    )


@every_loss
def test_a_loss_is_one_number_per_row_from_that_row_alone(name: str) -> None:
    loss: Loss = member("loss", name)
    logits, labels = rows()
    out = loss(logits, labels)
    assert out.shape == (6,)
    assert out.dtype == logits.dtype
    for row in range(6):
        torch.testing.assert_close(loss(logits[row : row + 1], labels[row : row + 1])[0], out[row])


@every_loss
def test_a_loss_does_not_change_when_all_logits_of_a_row_shift(name: str) -> None:
    """The oracles of the estimator tests see two logits through their difference."""
    loss: Loss = member("loss", name)
    logits, labels = rows()
    torch.testing.assert_close(loss(logits + 3.0, labels), loss(logits, labels))


@every_loss
def test_a_nan_logit_gives_nan_for_its_row_only(name: str) -> None:
    """Else a diverged network would pass for one that merely errs."""
    loss: Loss = member("loss", name)
    logits, labels = rows()
    logits[2, 1] = math.nan
    assert loss(logits, labels).isnan().tolist() == [False, False, True, False, False, False]


@every_loss
def test_differentiable_says_whether_there_is_a_derivative(name: str) -> None:
    loss: Loss = member("loss", name)
    logits, labels = rows()
    total = loss(logits.requires_grad_(), labels).sum()
    slope = torch.autograd.grad(total, logits)[0] if total.requires_grad else torch.zeros(1)
    assert bool(slope.any()) == loss.differentiable


def test_cross_entropy_is_minus_log_softmax_in_nats() -> None:
    logits, labels = rows()
    expected = [
        -math.log(math.exp(row[k]) / sum(map(math.exp, row))) for row, k in zip(logits.tolist(), labels, strict=True)
    ]
    torch.testing.assert_close(CrossEntropy()(logits, labels), torch.tensor(expected, dtype=torch.float64))


def test_cross_entropy_of_a_far_wrong_row_is_large_and_finite() -> None:
    assert float(CrossEntropy()(torch.tensor([[0.0, 1e4]]), torch.tensor([0]))) == pytest.approx(1e4)


def test_zero_one_is_1_where_the_largest_logit_is_not_the_labels() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0], [-3.0, -2.0, -1.0], [math.inf, 0.0, 1.0]])
    assert ZeroOne()(logits, torch.tensor([0, 2, 2, 0])).tolist() == [0, 1, 0, 0]
