"""The two attacks by L-BFGS: as published, against torch's optimiser, and of minimum distortion."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.threats.attacks.lbfgs import lbfgs
from glr_lightning.threats.attacks.objective import Objective
from glr_lightning.threats.attacks.penalised_lbfgs import _Problem
from glr_lightning.threats.attacks.query import Query
from tests.checks.attack_cases import pictures, threshold_net


def test_of_what_fools_the_nearest_is_kept() -> None:
    x, y = torch.full((1, 1, 1, 1), 0.2), torch.tensor([0])
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval()
    network[1].weight.data, network[1].bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0])
    problem = _Problem(Query(network, x), Objective.of(y, None), x)
    for pixel, fooled in ((0.7, True), (0.9, True), (0.4, False)):
        assert problem.fooled(torch.full((1, 1), pixel), torch.arange(1)).item() is fooled
    assert problem._fools.item() == pytest.approx(0.7)
    assert 0.5 < problem.nearest().item() < 0.501


class TestLBFGS:
    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
    def test_equals_torch_on_each_image(self, activation: type[nn.Module], targeted: bool) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), activation(), nn.Linear(20, 5)).double()
        x = pictures(8).double()
        y = model(x).argmax(1)
        target = (y + 1) % 5 if targeted else None
        moved = lbfgs(model, x, y, random=None, target=target)
        labels, sign = (y, -1.0) if target is None else (target, 1.0)
        for row in range(8):
            pixels = x[row : row + 1].clone().requires_grad_()
            optimiser = torch.optim.LBFGS([pixels], lr=0.05, max_iter=20)

            def closure(pixels: Tensor = pixels, label: Tensor = labels[row : row + 1], by: Any = optimiser) -> Tensor:
                by.zero_grad()
                loss = sign * nn.functional.cross_entropy(model(pixels), label)
                loss.backward()
                return loss

            optimiser.step(closure)
            torch.testing.assert_close(moved[row : row + 1], pixels.detach().clamp(0, 1), rtol=0, atol=1e-6)
        assert (moved - x).abs().max() > 1e-3

    def test_no_gradient_no_change(self) -> None:
        x = pictures(4)
        assert torch.equal(lbfgs(threshold_net(), x, torch.zeros(4, dtype=torch.int64), random=None), x)
