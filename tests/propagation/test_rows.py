"""Rows: what couples samples, or fails for noise copies of a batch, is refused by name, whichever estimator asks."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import ForwardGradient, LikelihoodRatio, NoisyBackprop
from glr_lightning.losses import CrossEntropy
from glr_lightning.propagation.graph import Graph
from tests.checks.estimator_cases import estimate

Y = torch.tensor([0, 1, 1])
SERIES = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = SERIES[:, 0]


class Written(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.register_buffer("places", torch.rand(9, 5))
        self.register_buffer("past", torch.tril(torch.ones(9, 9)))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.function(self, x)
        return self.c(h + torch.tanh(self.b(h)))  # type: ignore[no-any-return]


def steps_first(n: Any, x: Tensor) -> Tensor:
    """Rows of one sample are not next to each other."""
    h = torch.tanh(n.a(x.transpose(0, 1).reshape(-1, 6)))
    return h.view(x.shape[1], x.shape[0], 5).mean(0)


REFUSED: dict[str, tuple[Any, Tensor, str]] = {
    "batch_mean": (lambda n, x: n.a(x) - n.a(x).mean(0), X, r"'mean|sub' \(test_rows\.py:\d+\) couples the samples"),
    "mean_of_all": (lambda n, x: n.a(x) - n.a(x).mean(), X, r"'mean' \(test_rows\.py:\d+\) couples the samples"),
    "cumulative": (lambda n, x: n.a(x).cumsum(0), X, r"'cumsum' \(test_rows\.py:\d+, found to couple"),
    "batch_softmax": (lambda n, x: n.a(x).softmax(0), X, r"'softmax' \(test_rows\.py:\d+\) couples the samples"),
    "steps_first": (steps_first, SERIES, r"'reshape' \(test_rows\.py:\d+\) couples .* or mixes them with another axis"),
    "divided_by_rows": (
        lambda n, x: (h := n.a(x)) / h.shape[0],
        X,
        "value for noise copies|not elementwise, jumping",
    ),
    "first_rows": (
        lambda n, x: (h := torch.tanh(n.a(x))) + h[: x.shape[0]],
        X,
        r"'getitem' \(test_rows\.py:\d+\) returns another value for noise copies.*h\.flatten\(1\)",
    ),
}


@pytest.mark.parametrize(("function", "x", "advice"), REFUSED.values(), ids=REFUSED)
def test_what_moves_or_couples_rows_is_refused_every_time(function: Any, x: Tensor, advice: str) -> None:
    network = Written(function)
    for estimator in (LikelihoodRatio(copies=4), LikelihoodRatio(copies=8), NoisyBackprop(copies=4)):
        with pytest.raises(ConfigurationError, match=re.compile(advice, re.DOTALL)):
            estimate(estimator, network, CrossEntropy(), x, Y)
    bound = ForwardGradient(copies=4).bind(Written(lambda n, x: torch.tanh(n.a(x))), CrossEntropy())
    bound.draw(X, torch.Generator())


def test_a_hook_of_the_network_itself_is_not_lost_in_silence() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    network.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    with pytest.raises(ConfigurationError, match="returns other logits than the calls that were traced of it"):
        estimate(LikelihoodRatio(copies=4), network, CrossEntropy(), X, Y)


def attention(n: Any, x: Tensor) -> Tensor:
    h, steps = n.a(x), x.shape[1]
    scores = torch.bmm(h, h.transpose(1, 2)).masked_fill(n.past[:steps, :steps] == 0, float("-inf"))
    return torch.bmm(scores.softmax(-1), h).mean(1)


def recurrent(n: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 5)
    for t in range(4):
        h = torch.tanh(n.a(x[:, t]) + h)
    return h


TAKEN: dict[str, tuple[Any, Tensor]] = {
    "places": (lambda n, x: torch.tanh(n.a(x) + n.places[: x.shape[1]]).mean(1), SERIES),
    "attention": (attention, SERIES),
    "dot_product_attention": (
        lambda n, x: functional.scaled_dot_product_attention(n.a(x), n.a(x), n.a(x)).mean(1),
        SERIES,
    ),
    "recurrent": (recurrent, SERIES),
    "new_rows": (lambda n, x: torch.cat([torch.tanh(n.a(x))[:, :3], x.new_ones(x.size(0), 2)], 1), X),
    "squeeze": (lambda n, x: torch.tanh(n.a(x))[:, :, None].squeeze(), X),
    "rows_of_the_input": (lambda n, x: torch.tanh(n.a(x)) + x[:, :5] + x[:, 1:], X),
}


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("function", "x"), TAKEN.values(), ids=TAKEN)
def test_copies_of_a_batch_are_the_batch_repeated(function: Any, x: Tensor, batch: int) -> None:
    """Whatever the batch size is: as large as another axis, or a divisor of it."""
    if function is TAKEN["squeeze"][0] and batch == 1:
        return  # torch squeezes the row away
    network = Written(function)
    graph = Graph.of(network)
    x = torch.rand(batch, *x.shape[1:], generator=torch.Generator().manual_seed(batch), dtype=x.dtype)
    clean = graph.clean(x)
    copies = 6
    noise = {site: v.new_zeros(copies, *v.shape) for site, v in enumerate(clean.preactivations)}
    for some in (noise, {len(noise) - 1: noise[len(noise) - 1]}, {0: noise[0]}):
        noisy = graph.noisy(clean, some, [1.0] * len(noise))
        torch.testing.assert_close(noisy.logits, network(x).repeat(copies, 1))


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_rounding_is_not_taken_for_a_function_of_the_rows(precision: str) -> None:
    network = Written(lambda n, x: torch.tanh(n.a(x)))
    network.a, network.b, network.c = nn.Linear(6, 300), nn.Linear(300, 300), nn.Linear(300, 2)
    network = network.float() if precision == "autocast" else network.bfloat16()
    x = X.to(network.a.weight.dtype)
    for estimator in (LikelihoodRatio(copies=4), NoisyBackprop(copies=4)):
        with torch.autocast("cpu", enabled=precision == "autocast", dtype=torch.bfloat16):
            estimate(estimator, network, CrossEntropy(), x, Y)
