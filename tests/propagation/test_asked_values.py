"""Networks whose code asks for shapes, and whose rows are not in front, are run and trained as torch runs them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import (
    Estimator,
    ForwardGradient,
    Hybrid,
    LikelihoodRatio,
    LocalExpectation,
    NoisyBackprop,
    StraightThrough,
    Tiered,
)
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import observe
from tests.checks.estimator_cases import estimate
from tests.checks.hooked_noise import check_noise_at_every_call

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(3, 6, generator=GENERATOR, dtype=torch.float64)
SERIES = torch.rand(3, 4, 6, generator=GENERATOR, dtype=torch.float64)
IMAGES = torch.rand(3, 2, 6, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


class Written(nn.Module):
    """A network whose forward pass is a function of the network and x."""

    def __init__(self, function: Callable[[Any, Any], Any], act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.act = function, act or nn.Tanh()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self, x)
        return self.c(h + self.act(self.b(h)))  # type: ignore[no-any-return]


def branches(n: Any, x: Tensor) -> Tensor:
    assert x.ndim == 2, f"rows of numbers, got {x.shape}"
    assert x.dim() == 2 and x.shape[0] > 0  # noqa: PT018
    assert len(x.shape) == 2
    if x.size(-1) != 6:
        raise ValueError("six")
    if x.dtype != torch.float64 or x.is_cuda or x.device.type == "cuda":
        x = x.to("cpu", torch.float64)
    return n.a(2 * x if x.shape[1] == 6 else x)  # type: ignore[no-any-return]


def unrolled(n: Any, x: Tensor) -> Tensor:
    batch, steps, _ = x.shape
    h = torch.zeros(batch, 5, dtype=x.dtype, device=x.device)
    for t in range(steps):
        h = n.act(n.a(x[:, t]) + h)
    return h


def unbound(n: Any, x: Tensor) -> Tensor:
    h = torch.zeros((len(x), 5), dtype=x.dtype)
    for x_t in x.unbind(1):
        h = n.act(n.a(x_t) + h)
    return h


def split(n: Any, x: Tensor) -> Tensor:
    return torch.cat([n.act(part) for part in torch.split(n.a(x), 2, dim=1)], 1)


def flat_features(n: Any, x: Tensor) -> Tensor:
    features = 1
    for size in x.size()[1:]:
        features *= size
    return n.act(n.a(x.view(-1, features)))  # type: ignore[no-any-return]


def time_first(n: Any, x: Tensor) -> Tensor:
    h = 0
    for x_t in x.transpose(0, 1):
        h = n.act(n.a(x_t) + h)
    return h  # type: ignore[return-value]


def layer_over_time_first(n: Any, x: Tensor) -> Tensor:
    return n.act(n.a(x.permute(1, 0, 2))).mean(0)  # type: ignore[no-any-return]


def states_time_first(n: Any, x: Tensor) -> Tensor:
    return torch.stack([n.act(n.a(x_t)) for x_t in x.unbind(1)]).mean(0)


def steps_in_rows(n: Any, x: Tensor) -> Tensor:
    batch, steps, size = x.shape
    return n.act(n.a(x.reshape(batch * steps, size))).view(batch, steps, -1).mean(1)  # type: ignore[no-any-return]


def steps_in_rows_by_flatten(n: Any, x: Tensor) -> Tensor:
    return n.act(n.a(x.flatten(0, 1))).unflatten(0, (-1, 4)).mean(1)  # type: ignore[no-any-return]


def rows_in_front(n: Any, x: Tensor) -> Tensor:
    return n.act(n.a(x)).mean(1)  # type: ignore[no-any-return]


def rows_of_the_input(n: Any, x: Tensor) -> Tensor:
    return n.act(n.a(x)).view(len(x), -1)  # type: ignore[no-any-return]


def sizes_of_the_input(n: Any, x: Tensor) -> Tensor:
    h = n.act(n.a(x)).reshape(x.shape[:1] + (1, 5))  # noqa: RUF005
    for axis in range(x.ndim - 1):
        h = h.sum(axis + 1)
    return h + x.new_zeros(x.size(0), 5)  # type: ignore[no-any-return]


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient


NETWORKS: dict[Callable[[Any, Any], Any], Tensor] = {
    branches: X,
    rows_of_the_input: X,
    sizes_of_the_input: X,
    split: X,
    flat_features: X,
    unrolled: SERIES,
    unbound: SERIES,
    time_first: SERIES,
    layer_over_time_first: SERIES,
    states_time_first: SERIES,
    steps_in_rows: SERIES,
    steps_in_rows_by_flatten: SERIES,
}
every_network = pytest.mark.parametrize("function", NETWORKS, ids=lambda f: f.__name__)


@every_network
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_pass_with_noise_is_torchs_own_with_noise_at_every_call(function: Any, batch: int) -> None:
    """Also where the batch is as large as another axis."""
    x, y = NETWORKS[function], Y
    x, y = torch.cat([x, 1 - x])[:batch], torch.cat([y, y])[:batch]
    check_noise_at_every_call(Written(function), x, y)


class Frames(nn.Module):
    """A convolution over the frames of short films, which are rows of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.last = nn.Conv2d(1, 2, 3), nn.Linear(2 * 16, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        h = torch.relu(self.convolution(x.reshape(batch * frames, 1, 6, 6)))
        return self.last(h.reshape(batch, frames, -1).mean(1))  # type: ignore[no-any-return]


def test_a_convolution_over_frames_in_rows_gets_noise_at_each() -> None:
    check_noise_at_every_call(Frames(), IMAGES, Y)


def test_modules_that_move_rows_are_followed() -> None:
    over_rows = [nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1), nn.Linear(3, 4), nn.Unflatten(0, (-1, 2)), nn.Flatten()]
    check_noise_at_every_call(nn.Sequential(nn.Linear(6, 6), *over_rows, nn.Linear(8, 2)).double(), X, Y)


ESTIMATORS: dict[str, Estimator] = {
    "joint": LikelihoodRatio(copies=8),
    "layerwise": LikelihoodRatio(copies=8, injection=Layerwise()),
    "tiered": Tiered(copies=8),
    "local_expectation": LocalExpectation(copies=2),
    "hybrid": Hybrid(copies=8),
    "straight_through": StraightThrough(),
    "forward_gradient": ForwardGradient(copies=8),
}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("function", [layer_over_time_first, steps_in_rows], ids=lambda f: f.__name__)
def test_every_estimator_is_the_same_wherever_the_rows_are(estimator: Estimator, function: Any) -> None:
    """A linear layer over [steps, batch] or [batch * steps] rows is one over [batch, steps]: so are its estimates."""
    got, expected = (
        estimate(estimator, Written(f, HardThreshold()), CrossEntropy(), SERIES, Y) for f in (function, rows_in_front)
    )
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(got.gradients, expected.gradients)


def test_a_function_with_a_derivative_of_its_own_is_a_call() -> None:
    network = Written(lambda n, x: Straight.apply(n.a(x)))  # type: ignore[no-untyped-call]
    graph = Graph.of(network)
    assert [node.name for node in graph.nodes if node.inputs == (graph.sites[0],)] == ["apply"]
    assert torch.equal(graph.clean(X).logits, network(X))


def test_answers_cost_no_pass_and_leave_python_as_it_was() -> None:
    makers, length, calls = torch.zeros, len, []
    network = Written(unrolled)
    network.a.register_forward_hook(lambda *_: calls.append(None))
    observe(network, SERIES)
    del calls[:]
    assert len(Graph.of(network).sites) == 4 + 2
    assert not calls
    assert torch.zeros is makers
    assert len is length
    assert Graph.of(network) is Graph.of(network)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_a_network_that_asks_for_shapes_is_checked_by_its_first_batch(estimator: Estimator) -> None:
    network, loss = Written(unrolled, HardThreshold()), CrossEntropy()
    with pytest.raises(ConfigurationError, match=r"asks for the shape of its input \(test_asked_values\.py:\d+"):
        estimator.plan(network, loss)
    estimator.check(network, loss)
    bound = estimator.bind(network, loss)
    assert bound.late
    step = bound.estimate(SERIES, Y, torch.Generator().manual_seed(0))
    assert set(estimator.plan(network, loss)) == {"a", "b", "c"}
    assert not estimator.bind(network, loss).late
    again = estimate(estimator, network, loss, SERIES, Y)
    assert step.gradients.keys() == again.gradients.keys()
    with pytest.raises(
        ConfigurationError, match=re.escape("was traced for torch.float64 [4, 6], got torch.float64 [2, 6]")
    ):
        bound.draw(SERIES[:, :2], torch.Generator())
    assert len(Graph.of(network).sites) == 2 + 2  # traced anew, for the shape that was seen last
    assert len(bound.graph.sites) == 4 + 2


def test_what_a_network_asks_for_in_vain_is_refused_by_the_first_batch() -> None:
    network = Written(lambda n, x: n.a(x) if n.a(x).sum() > 0 else -n.a(x))
    bound = NoisyBackprop(copies=4).bind(Written(lambda n, x: n.a(x)), CrossEntropy())
    assert not bound.late
    late = LikelihoodRatio(copies=4).bind(network, CrossEntropy())
    with pytest.raises(ConfigurationError, match=r"test_asked_values\.py:\d+ .*asks for the value of a tensor"):
        late.draw(X, torch.Generator())
