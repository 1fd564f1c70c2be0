"""The exact attack against enumeration of all cells, closed forms, and what it refuses."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant
from glr_lightning.evaluation.evaluate import evaluate
from glr_lightning.networks import Residual, Shift, Standardise
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks import mixed_integer
from glr_lightning.threats.attacks.exact import exact
from glr_lightning.threats.attacks.mixed_integer import Outcome, verify
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.attacks.stages import Stage, stages_of
from tests.checks.refusals import refused


def drawn(network: nn.Module, seed: int) -> nn.Module:
    """With weights that make the units switch within the box of images."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
            layer.bias.data = (
                0.3 * torch.randn(layer.bias.shape, generator=generator) - layer.weight.data.flatten(1).sum(1) / 2
            )
    return network.eval()


def staircase() -> PiecewiseConstant:
    return PiecewiseConstant(cuts=(-0.5, 0.4), levels=(-1.0, 0.2, 1.5))


def switching() -> tuple[nn.Module, Tensor, Tensor]:
    """A network with both classes in the box, images [20, 1, 1, 2] and how it classifies them."""
    network = drawn(NETWORKS["threshold 2-4-2"](), 4)
    x = torch.rand(20, 1, 1, 2, generator=torch.Generator().manual_seed(5))
    y = network(x).argmax(1)
    assert 4 < int(y.sum()) < 16
    return network, x, y


def breakable(network: nn.Module, x: Tensor, label: int, epsilon: float) -> bool:
    """By a linear programme in each cell of the first hidden layer: the images whose units lie in the same cells."""
    stages = stages_of(network, x.shape)
    first, rest = stages[0], stages[1:]
    low, high = np.clip(x.flatten().numpy() - epsilon, 0, 1), np.clip(x.flatten().numpy() + epsilon, 0, 1)
    activation: Any = first.activation
    cuts = (0.0,) if isinstance(activation, nn.ReLU) else activation.cuts
    for cells in itertools.product(range(len(cuts) + 1), repeat=len(first.bias)):
        sides, bounds = [], []
        for row, offset, cell in zip(first.weight, first.bias, cells, strict=True):
            if cell > 0:
                sides, bounds = [*sides, -row], [*bounds, offset - cuts[cell - 1]]
            if cell < len(cuts):
                sides, bounds = [*sides, row], [*bounds, cuts[cell] - offset]
        if isinstance(activation, nn.ReLU):
            on = np.array(cells, float)
            matrix = rest[0].weight @ (on[:, None] * first.weight)
            constant = rest[0].weight @ (on * first.bias) + rest[0].bias
        else:
            h = np.array(activation.levels)[list(cells)]
            for stage in rest:
                v = stage.weight @ h + stage.bias
                h = v if stage.activation is None else stage.activation(torch.from_numpy(v)).numpy()
            matrix, constant = np.zeros((len(h), len(low))), h
        for rival in set(range(len(constant))) - {label}:
            gain = matrix[rival] - matrix[label]
            done = linprog(-gain, sides, bounds, bounds=list(zip(low, high, strict=True)))
            if done.status == 0 and -done.fun + constant[rival] - constant[label] > 0:
                return True
    return False


NETWORKS = {
    "threshold 2-4-2": lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 4), HardThreshold(), nn.Linear(4, 2)),
    "staircase": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4), staircase(), Shift(-0.5), nn.Linear(4, 3)),
    "relu": lambda: nn.Sequential(Standardise(0.5, 0.3), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)),
    "two hidden layers": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3, 4), HardThreshold(), nn.Linear(4, 3), HardThreshold(), nn.Linear(3, 3)
    ),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 1, 2), HardThreshold(), nn.Flatten(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outcomes_are_those_of_an_enumeration_of_all_cells(name: str) -> None:
    found: list[Outcome] = []
    for seed in range(12):
        network = drawn(NETWORKS[name](), seed)
        pixels = (3, 3) if name == "convolution" else (1, 2) if "2-4-2" in name else (1, 3)
        x = torch.rand(1, *pixels, generator=torch.Generator().manual_seed(100 + seed))
        label = int(network(x[None]).argmax())
        epsilon = (0.05, 0.15, 0.4)[seed % 3]
        finding = verify(stages_of(network, x.shape), lambda m: int(network(m[None]).argmax()), x, label, epsilon, 60)  # noqa: B023
        expected = breakable(network, x.double(), label, epsilon)
        assert finding.outcome is (Outcome.BROKEN if expected else Outcome.PROVED), (seed, epsilon)
        moved = (finding.image - x).abs().amax()
        assert moved <= epsilon * (1 + 1e-6)
        assert (int(network(finding.image[None]).argmax()) != label) is expected
        found.append(finding.outcome)
    assert {Outcome.BROKEN, Outcome.PROVED} <= set(found)


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_a_linear_network_breaks_at_its_margin(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(9, generator=generator), 0.4 + 0.2 * torch.rand(1, 1, 3, 3, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    network[1].weight.data, network[1].bias.data = torch.stack([w, -w]), torch.tensor([0.3, -0.3])
    network.eval()
    y = network(x).argmax(1)
    margin = float((w @ x.flatten() + 0.3).abs() / w.abs().sum())
    (row,) = (r for r in evaluate(network, x, y, ["exact", f"exact.epsilon={share * margin}"]) if r.kind == "attack")
    assert (row.correct, row.proved) == ((1, 1) if share < 1 else (0, 0))


def test_a_row_counts_what_is_proved_and_what_is_not() -> None:
    network, x, y = switching()
    y[:2] = 1 - y[:2]  # these are wrong as they are
    (row,) = (r for r in evaluate(network, x, y, ["exact", "exact.epsilon=0.3"]) if r.kind == "attack")
    right = network(x).argmax(1) == y
    broken = [breakable(network, each.double(), int(label), 0.3) for each, label in zip(x, y, strict=True)]
    robust = [bool(ok) and not bad for ok, bad in zip(right, broken, strict=True)]
    assert row.proved == row.correct == sum(robust)
    assert 0 < row.proved < 18
    assert f"exact: {row.proved} images proved, {20 - row.proved} wrong or broken, 0 undecided" in row.note


def test_the_worst_case_lies_between_proofs_and_attacks() -> None:
    network, x, y = switching()
    rows = evaluate(
        network, x, y, ["exact", "exact.epsilon=[0.1,0.3]", "random_noise", "random_noise.epsilon=[0.1,0.3,0.5]"]
    )
    exact_rows = {row.level: row for row in rows if row.threat == "exact"}
    worst = {row.level: row for row in rows if row.kind == "worst_case"}
    assert [worst[level].proved for level in (0.1, 0.3)] == [exact_rows[level].proved for level in (0.1, 0.3)]
    assert worst[0.5].proved is None  # no proof for so large a budget
    assert all(worst[level].correct == exact_rows[level].proved for level in (0.1, 0.3))
    assert "the accuracy under any attack is at least" in worst[0.1].note


def test_without_time_an_image_is_undecided_and_counts_as_right() -> None:
    network, x, y = switching()
    options = ["exact", "exact.epsilon=0.9", "exact.seconds=1e-9"]
    (row,) = (r for r in evaluate(network, x, y, options) if r.kind == "attack")
    assert (row.correct, row.proved) == (20, 0)
    assert "0 images proved, 0 wrong or broken, 20 undecided" in row.note


def test_a_unit_on_its_cut_is_no_proof() -> None:
    """In real numbers the unit cannot pass its cut; in float32 it may."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), HardThreshold(), nn.Linear(1, 2)).eval()
    network[1].weight.data, network[1].bias.data = torch.tensor([[1.0]]), torch.tensor([-0.6])
    network[3].weight.data, network[3].bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0])
    x = torch.full((1, 1, 1), 0.5)
    stages = stages_of(network, x.shape)

    def outcome(epsilon: float) -> Outcome:
        return verify(stages, lambda m: int(network(m[None]).argmax()), x, 0, epsilon, 60).outcome

    assert outcome(0.0999) is Outcome.PROVED
    assert outcome(0.1 - 1e-7) is not Outcome.PROVED
    assert outcome(0.1001) is Outcome.BROKEN


def test_bounds_of_rounding_hold_for_a_sum_in_any_order() -> None:
    terms = torch.full((1000,), 2.0**-25)
    terms[0] = 1.0  # added one by one in float32, the others are lost
    stage = Stage(terms[None].double().numpy(), np.zeros(1), None)
    programme = mixed_integer.Programme.of([stage], np.ones(1000), 1e-9)
    assert programme.rounding[0] > float(terms.double().sum()) - 1.0


def test_time_that_runs_out_within_a_programme_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_integer.Programme, "solve", lambda *_: None)
    network, images, labels = switching()
    x, label = images[0], int(labels[0])
    assert verify(stages_of(network, x.shape), lambda _: label, x, label, 0.9, 60).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), "Sigmoid"),
        (nn.Sequential(nn.Flatten(), Residual(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)), "several times"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2)), "MaxPool2d"),
    ],
)
def test_other_networks_are_refused(network: nn.Module, why: str) -> None:
    x = torch.rand(1, 1, 2, 2)
    with refused("threat.exact", why):
        evaluate(network.eval(), x, torch.zeros(1, dtype=torch.int64), ["exact"])


def test_random_predictions_are_refused() -> None:
    network = drawn(NETWORKS["threshold 2-4-2"](), 1)
    x = torch.rand(1, 1, 1, 2)
    index = torch.zeros(1, dtype=torch.int64)
    with refused("inference_noise", "certify"):
        exact(Query(network, x, randomized=True), x, index, random=ImageRandom(0, index), epsilon=0.1)
