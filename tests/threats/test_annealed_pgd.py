"""PGD along slopes that sharpen: against closed forms and exact proofs, and the smoothed network it follows."""

import pytest
import torch
from torch import nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant
from glr_lightning.evaluation.evaluate import evaluate
from glr_lightning.networks import mlp
from glr_lightning.threats.attacks.input_gradient import smoothed
from tests.checks.refusals import refused


def threshold_network(seed: int) -> nn.Module:
    """Of images [1, 4, 4], trained by nothing; its units switch within the box."""
    torch.manual_seed(seed)
    network = mlp(image_shape=(1, 4, 4), classes=4, hidden=[8], activation=HardThreshold(), centre=0.5)
    network[1].bias.data = -network[1].weight.data.sum(1) / 2
    return network.eval()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_network_breaks_just_beyond_its_margin(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(9, generator=generator), 0.4 + 0.2 * torch.rand(6, 1, 3, 3, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    network[1].weight.data, network[1].bias.data = torch.stack([w, -w]), torch.tensor([0.3, -0.3])
    network.eval()
    y = network(x).argmax(1)
    dual = w.abs().sum() if norm == "linf" else w.norm()
    margins = (x.flatten(1) @ w + 0.3).abs() / dual
    for share, expected in ((0.97, True), (1.05, False)):
        for each, label, margin in zip(x, y, margins, strict=True):
            options = ["annealed_pgd", f"annealed_pgd.epsilon={share * float(margin)}", f"annealed_pgd.norm={norm}"]
            (row,) = (r for r in evaluate(network, each[None], label[None], options) if r.kind == "attack")
            assert (row.correct == 1) is expected


def test_it_breaks_what_is_not_proved() -> None:
    """Within one image of forty: the exact attack is the truth."""
    missed = 0
    for seed in range(4):
        network = threshold_network(seed)
        x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        threats = ["exact", "annealed_pgd", "exact.epsilon=0.05", "annealed_pgd.epsilon=0.05"]
        exact, annealed, _ = evaluate(network, x, network(x).argmax(1), threats)[-3:]
        assert exact.proved is not None
        assert exact.proved == exact.correct <= annealed.correct
        missed += annealed.correct - exact.correct
    assert missed <= 1


def test_the_smoothed_network_is_the_mean_under_noise() -> None:
    staircase = PiecewiseConstant(cuts=(-0.5, 0.4), levels=(-1.0, 0.2, 1.5))
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), staircase, nn.Linear(1, 2)).eval()
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    nodes = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * nodes**2)
    v = network[1](x.flatten(1)).double()
    scale = 0.7 * network[1].weight.norm().double()
    mean = (staircase(v + scale * nodes) * density).sum(1, keepdim=True) / density.sum()
    torch.testing.assert_close(smoothed(network, 0.7)(x), network[3](mean.float()), atol=2e-4, rtol=0)


def test_a_schedule_that_widens_is_refused() -> None:
    x = torch.rand(1, 1, 4, 4)
    with refused("narrowest", "sharper"):
        options = ["annealed_pgd", "annealed_pgd.narrowest=0.5"]
        evaluate(threshold_network(0), x, torch.zeros(1, dtype=torch.int64), options)
