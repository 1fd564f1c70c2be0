"""The recurrent network: what it computes, its first weights, its sites, and learning without backpropagation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import Estimator, LikelihoodRatio, LocalExpectation, StraightThrough
from glr_lightning.losses import CrossEntropy
from glr_lightning.networks import Standardise, rnn
from glr_lightning.propagation.graph import Graph
from tests.checks.refusals import refused

SHAPE = (2, 6, 5)


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    given = {"rows": 2, "hidden": 7, "activation": HardThreshold(), "centre": 0.5}
    return rnn(image_shape=SHAPE, classes=3, **{**given, **options})


def by_hand(built: nn.Sequential, x: Tensor, rows: int) -> list[Tensor]:
    weights = built.state_dict()
    w, b = weights["recurrence.cell.linear1.weight"], weights["recurrence.cell.linear1.bias"]
    pixels = w.shape[1] - w.shape[0]
    h, states = torch.zeros(len(x), len(b)), []
    for band in x.split(rows, dim=2):
        h = (band.flatten(1) @ w[:, :pixels].T + h @ w[:, pixels:].T + b > 0).float() - 0.5
        states.append(h)
    return states


@pytest.mark.parametrize("readout", ["last", "all"])
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_the_logits_are_those_of_a_loop_over_the_bands(rows: int, readout: str) -> None:
    built, x = network(rows=rows, readout=readout, preprocess=Standardise(0.5, 0.25), memory=1.0), torch.rand(4, *SHAPE)
    states = by_hand(built, (x - 0.5) / 0.25, rows)
    read = torch.cat(states, 1) if readout == "all" else states[-1]
    assert len(states) == 6 // rows
    torch.testing.assert_close(built(x), built.linear2(read))


def test_every_call_of_the_cell_is_a_site_of_one_layer() -> None:
    graph = Graph.of(network())
    assert graph.layers == ("recurrence.cell.linear1", "linear2")
    assert graph.layer_of == (0, 0, 0, 1)


def test_a_description_does_not_speak_of_probes() -> None:
    lines = LocalExpectation(units=4, choice="weighted").describe(network(), CrossEntropy())
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["recurrence.cell.linear1", "linear2"]


def test_the_first_recurrent_weights_are_scaled_and_remember() -> None:
    plain, changed = network(), network(memory=4.0, recurrent=0.5, spread=2.0)
    before, after = (built.state_dict()["recurrence.cell.linear1.weight"] for built in (plain, changed))
    assert torch.equal(after[:, :20], before[:, :20])
    torch.testing.assert_close(after[:, 20:], 0.5 * before[:, 20:] + 4.0 * torch.eye(7))
    bias = changed.state_dict()["recurrence.cell.linear1.bias"].abs()
    assert 1.0 < float(bias.max()) <= 2.0


def test_bands_that_do_not_divide_the_height_are_refused() -> None:
    with refused("rows", "network.rows=4 does not divide the height 6", "use one of 1, 2, 3, 6"):
        network(rows=4)


@pytest.mark.parametrize("readout", ["last", "all"])
@pytest.mark.parametrize(
    "estimator",
    [LocalExpectation(sigma=0.3), LikelihoodRatio(sigma=0.3, copies=8), StraightThrough(sigma=0.3)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_class_in_the_first_band_is_learned(estimator: Estimator, readout: str) -> None:
    """The label is shown in the first of three bands, so its weights learn through two later steps."""
    built = network(hidden=16, readout=readout, memory=2.0, recurrent=0.1)
    generator = torch.Generator().manual_seed(0)
    optimizer, bound = torch.optim.Adam(built.parameters(), lr=0.02), estimator.bind(built, CrossEntropy())
    for _ in range(150):
        x, y = images(64, generator)
        for name, gradient in bound.estimate(x, y, generator).gradients.items():
            built.get_parameter(name).grad = gradient
        optimizer.step()
    x, y = images(256, generator)
    assert float((built(x).argmax(1) == y).double().mean()) > 0.9


def images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise with a bright column in the first two rows, of which the number is the label."""
    x, y = torch.rand(count, *SHAPE, generator=generator) - 0.5, torch.randint(3, (count,), generator=generator)
    x[torch.arange(count), :, :2, y] += 1.0
    return x, y
