"""Tracing: networks as users write them are traced to what torch computes, or refused by name with the line."""

import gc
import random
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Backprop, Hybrid, LikelihoodRatio, NoisyBackprop
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import facts_of
from tests.checks.estimator_cases import estimate

X = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


class Written(nn.Module):
    """A network 6-5-2 whose forward pass is a function of the network and x."""

    def __init__(self, function: Callable[[Any, Any], Any], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.register_buffer("scale", torch.arange(1.0, 6.0))
        self.plain = torch.arange(5.0, dtype=torch.float64)
        self.depth = 2
        for name, module in modules.items():
            setattr(self, name, module)
        self.double()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def residual(n: Any, h: Tensor) -> Tensor:
    """What all of these networks do above their first layer, so that every parameter is used."""
    return n.c(h + torch.tanh(n.b(h)))


def alias(n: Any, x: Tensor) -> Tensor:
    h = torch.tanh(n.a(x))
    g = h
    h += torch.tanh(n.b(g))
    return n.c(h * g)


def iterated(n: Any, x: Tensor) -> Tensor:
    h = torch.tanh(n.a(x))
    for _ in range(n.depth):
        h = h + torch.tanh(n.b(h))
    return n.c(h)


def in_place(n: Any, x: Tensor) -> Tensor:
    h = n.a(x)
    h.relu_()
    return residual(n, h)


def on_a_slice(n: Any, x: Tensor) -> Tensor:
    h = torch.tanh(n.a(x))
    h[:, 0] = 0
    return residual(n, h)


def branching(n: Any, x: Tensor) -> Tensor:
    h = n.a(x)
    return residual(n, h if h.sum() > 0 else -h)


def dropping_layers(n: Any, x: Tensor) -> Tensor:
    h = torch.tanh(n.a(x))
    return residual(n, h if torch.rand(()) < 0.5 else 2 * h)


def dropping_layers_by_python(n: Any, x: Tensor) -> Tensor:
    h = torch.tanh(n.a(x))
    return residual(n, h if random.random() < 0.5 else 2 * h)


def without_gradients(n: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = torch.tanh(n.a(x))
    return residual(n, h)


def counting(n: Any, x: Tensor) -> Tensor:
    n.scale += 1
    return residual(n, n.a(x))


def by_type(n: Any, x: Tensor) -> Tensor:
    return residual(n, n.a(x) if isinstance(x, Tensor) else n.a(2 * x))


REFUSED: dict[str, tuple[Any, str]] = {
    "control_flow": (branching, r"test_tracing\.py:\d+ \(return residual\(n, h if h\.sum\(\) > 0 .*do not depend on"),
    "step_at_a_parameter": (
        lambda n, x: residual(n, n.a(x) * (n.a(x) > n.b.bias)),
        r"reads its parameter 'b\.bias' by itself \(test_tracing\.py:\d+\), and 'gt' is no function.*freeze it",
    ),
    "rows_of_a_parameter": (
        lambda n, x: residual(n, n.a(x) + n.b.bias.expand(x.shape[0], -1)),
        r"reads its parameter 'b\.bias' by itself .*'expand' .* takes other than one tensor beside it",
    ),
    "relu_": (in_place, r"'relu_' \(test_tracing\.py:\d+\) writes into its input.*returns a new tensor"),
    "inplace": (
        lambda n, x: residual(n, functional.relu(n.a(x), inplace=True)),
        r"'relu' \(test_tracing\.py:\d+\) writes into its input",
    ),
    "slice": (on_a_slice, r"test_tracing\.py:\d+ \(h\[:, 0\] = 0\): it writes into a tensor.*torch\.where"),
    "alias": (alias, "returns other logits than the calls that were traced of it.*under another name"),
    "type_of_x": (by_type, "returns other logits than the calls that were traced of it.*not depend on the type of x"),
    "noise_of_its_own": (lambda n, x: residual(n, n.a(x) + torch.randn(5)), "draws random numbers of its own"),
    "layer_drop": (dropping_layers, "draws random numbers of its own"),
    "layer_drop_by_python": (dropping_layers_by_python, "draws random numbers of its own"),
    "randn_like": (
        lambda n, x: residual(n, n.a(x) + torch.randn_like(n.a(x))),
        r"'randn_like' \(test_tracing\.py:\d+\) draws noise of its own",
    ),
    "dropout": (
        lambda n, x: residual(n, functional.dropout(n.a(x), training=n.training)),
        r"'dropout' \(test_tracing\.py:\d+\) draws noise of its own",
    ),
    "no_grad": (without_gradients, r"switches the recording of gradients \(test_tracing\.py:\d+\).*h\.detach\(\)"),
    "buffer": (counting, "writes its buffer 'scale' in its forward pass.*outside forward"),
    "unused_layer": (lambda n, x: n.c(n.a(x)), r"do not rest on parameter 'b\.weight'.*remove it, or freeze it"),
    "unused_call": (
        lambda n, x: (h := n.a(x), n.b(h), n.c(h))[2],
        r"do not rest on parameter 'b\.weight', since no call of its layer reaches them",
    ),
    "tuple": (
        lambda n, x: (residual(n, n.a(x)), x),
        "must return logits .*got tuple of values; return the logits alone",
    ),
    "rows_as_a_number": (
        lambda n, x: residual(n, n.a(x.reshape(int(x.shape[0]), -1))),
        r"test_tracing\.py:\d+ .*asks for the number of rows, which noise copies multiply",
    ),
    "value_as_a_number": (
        lambda n, x: residual(n, n.a(x) * float(x.max())),
        r"test_tracing\.py:\d+ .*asks for the value of a tensor",
    ),
}


@pytest.mark.parametrize(("forward", "advice"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_what_cannot_be_traced_is_refused_with_its_line(forward: Any, advice: str, again: bool) -> None:
    network = Written(forward)
    random.seed(0)
    before, state = dict(vars(network)), torch.get_rng_state()
    with pytest.raises(ConfigurationError, match=re.compile(advice, re.DOTALL)):
        estimate(LikelihoodRatio(copies=4), network, CrossEntropy(), X, Y)
    if again:  # no estimator may take what another one was refused
        with pytest.raises(ConfigurationError, match=re.compile(advice, re.DOTALL)):
            estimate(NoisyBackprop(copies=4), network, CrossEntropy(), X, Y)
    assert vars(network).keys() == before.keys()
    assert "Proxy" not in str(list(network.buffers()))
    if not advice.startswith("returns other"):  # the network itself drew then
        assert torch.equal(torch.get_rng_state(), state)


class TwoInputs(Written):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return residual(self, self.a(x) + z)


class Defaults(Written):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *others: Any, twice: bool = True, factor: float = 0.5, **more: Any
    ) -> Tensor:
        h = self.a(x)
        if mask is None:
            mask = torch.sigmoid(h)
        if twice:
            h = 2 * h
        return residual(self, factor * h * mask)


def test_a_second_input_is_refused_and_defaults_are_taken() -> None:
    with pytest.raises(ConfigurationError, match="must take one input x, and it takes 'z' as well"):
        LikelihoodRatio(copies=4).bind(TwoInputs(residual), CrossEntropy())
    network = Defaults(residual)
    torch.testing.assert_close(estimate(LikelihoodRatio(copies=4), network, CrossEntropy(), X, Y).logits, network(X))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


def test_a_layer_with_a_forward_pass_of_its_own_is_not_taken_for_its_base() -> None:
    """Its weight gradient would be that of the base class: wrong in silence."""
    patched = nn.Linear(5, 5)
    patched.forward = lambda x: 2 * x  # type: ignore[method-assign]
    for layer in (Scaled(5, 5), patched):
        with pytest.raises(ConfigurationError, match=r"module 'b' \(\w+\) holds parameters, and no weight gradient"):
            LikelihoodRatio(copies=4).bind(Written(lambda n, x: residual(n, n.a(x)), b=layer), CrossEntropy())
    convolution = nn.Sequential(Standardised(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(ConfigurationError, match=r"module '0' \(Standardised\) holds parameters"):
        LikelihoodRatio(copies=4).bind(convolution, CrossEntropy())


class Named(nn.Linear):
    """A subclass that changes nothing."""


TRACED: dict[str, Any] = {
    "residual": lambda n, x: residual(n, torch.tanh(n.a(x))),
    "iadd": lambda n, x: n.c(_added(n.a(x), n)),
    "ipow": lambda n, x: residual(n, _squared(n.a(x))),
    "square": lambda n, x: residual(n, n.a(x) * n.a(x)),
    "buffer": lambda n, x: residual(n, n.a(x) * n.scale.sqrt()),
    "plain_tensor": lambda n, x: residual(n, n.a(x) * n.plain),
    "new_tensor": lambda n, x: residual(n, n.a(x) * torch.arange(5.0, dtype=torch.float64)),
    "keyword": lambda n, x: residual(n, n.a(input=x)),
    "subclass": lambda n, x: residual(n, n.named(n.a(x))),
    "loop": iterated,
    "gate": lambda n, x: residual(n, torch.tanh(n.a(x)) * torch.sigmoid(n.a(x))),
    "chunk": lambda n, x: residual(n, torch.cat(n.a(x).chunk(2, -1), 1)),
    "stack": lambda n, x: residual(n, torch.stack([n.a(x), -n.a(x)], 1).tanh().amax(1)),
    "per_sample": lambda n, x: residual(n, n.a(x) - n.a(x).mean(1, keepdim=True)),
    "rows": lambda n, x: residual(n, n.a(x.view(x.shape[0], -1))),
    "squeeze": lambda n, x: residual(n, n.a(x)[:, :, None].squeeze()),
    "where": lambda n, x: residual(n, torch.where(n.a(x) > 0, n.a(x), 0.1 * n.a(x))),
    "dropout_in_eval": lambda n, x: residual(n, functional.dropout(n.a(x), training=False)),
    "einsum": lambda n, x: residual(n, torch.einsum("bi,bi->bi", n.a(x), n.a(x))),
    "normalize": lambda n, x: residual(n, functional.normalize(n.a(x), dim=1)),
    "dtype_of_a_weight": lambda n, x: residual(n, n.a(x.to(n.a.weight.dtype))),
    "new_like": lambda n, x: residual(n, n.a(x) @ torch.eye(5, dtype=x.dtype) + n.a(x) * x.new_ones(5)),
    "made_by_type": lambda n, x: residual(n, (h := n.a(x)) @ torch.eye(5, dtype=h.dtype)),
    "attention_to_itself": lambda n, x: residual(n, attention(n.a(x)[:, None].unflatten(2, (5, 1)))),
    "module_made_in_forward": lambda n, x: residual(n, nn.Softplus(beta=2.0)(n.a(x))),
    "part_of_a_sequence": lambda n, x: residual(n, nn.Sequential(n.a, nn.Tanh(), n.b)[:2](x)),
    "lambda_module": lambda n, x: residual(n, n.lambda_(n.a(x))),
}


def attention(q: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, q, q).flatten(1)


def _added(h: Tensor, n: Any) -> Tensor:
    h += torch.tanh(n.b(h.clone()))
    return h


def _squared(h: Tensor) -> Tensor:
    h **= 2
    return h


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("forward", TRACED.values(), ids=TRACED)
def test_a_pass_with_noise_is_torchs_own_with_noise_at_every_call(forward: Any) -> None:
    """Noise is added by hooks to the network itself, call by call; the derivative along the path is autograd's."""
    network = Written(forward, lambda_=Lambda(lambda h: h.view(h.size(0), -1)))
    if forward is TRACED["subclass"]:
        network.named = Named(5, 5).double()
    estimator = NoisyBackprop(sigma=0.3, copies=4)
    bound = estimator.bind(network, CrossEntropy())
    (part,) = bound.draw(X, torch.Generator().manual_seed(1))
    got = bound.step(X, Y, [part])
    calls = iter(part.z.values())
    hooks = [
        layer.register_forward_hook(lambda _, __, v: v + 0.3 * next(calls).flatten(0, 1))
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    loss = CrossEntropy()(network(X.repeat(4, 1)), Y.repeat(4)).mean()
    names, parameters = zip(*network.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(got.logits, network(X))
    torch.testing.assert_close(got.gradients, expected)


# ---- the trace of an unchanged network ------------------------------------------------------------------------------


def test_an_unchanged_network_is_traced_once_and_a_changed_one_again() -> None:
    network = Written(iterated)
    graph = Graph.of(network)
    assert len(graph.sites) == 4
    network.a.weight.data.mul_(2)
    assert Graph.of(network) is graph
    network.eval()
    in_eval = Graph.of(network)
    assert in_eval is not graph
    network.a.weight.requires_grad_(False)
    frozen = Graph.of(network)
    assert frozen is not in_eval
    network.b = nn.Linear(5, 5).double()
    assert Graph.of(network) is not frozen
    network.depth = 1  # how often a layer is called is part of the trace
    assert len(Graph.of(network).sites) == 3
    assert Graph.of(network) is Graph.of(network)


def test_buffers_are_read_in_every_pass() -> None:
    network = Written(TRACED["buffer"])
    graph = Graph.of(network)
    network.get_buffer("scale").mul_(3)
    assert torch.equal(graph.clean(X).logits, network(X))
    assert Graph.of(network) is graph


def test_no_trace_keeps_a_network_alive() -> None:
    for forward in TRACED.values():
        network = Written(forward, lambda_=Lambda(torch.tanh), named=Named(5, 5))
        if forward not in (TRACED["subclass"], TRACED["lambda_module"]):
            del network.lambda_
        if forward is not TRACED["subclass"]:
            del network.named
        estimate(LikelihoodRatio(copies=4), network, CrossEntropy(), X, Y)
        gone = weakref.ref(network)
        del network
        gc.collect()
        assert gone() is None


def through_a_cut(n: Any, x: Tensor) -> Tensor:
    return residual(n, torch.tanh(n.a(x)).detach())


def test_a_path_that_the_network_cuts_is_an_error_of_ours_or_a_bias() -> None:
    for estimator in (Backprop(), NoisyBackprop(copies=4)):
        with pytest.raises(ConfigurationError, match=r"no derivative of the loss reaches 'a\.weight', 'a\.bias'"):
            estimate(estimator, Written(through_a_cut), CrossEntropy(), X, Y)
    estimate(LikelihoodRatio(copies=4), Written(through_a_cut), CrossEntropy(), X, Y)
    half_cut = Written(lambda n, x: n.c((h := torch.tanh(n.a(x))) + torch.tanh(n.b(h.detach()))))
    assert re.match(r"detach \(test_tracing\.py:\d+\) hides", NoisyBackprop().bias(half_cut))
    assert not NoisyBackprop().bias(Written(TRACED["residual"]))


def test_a_layer_that_is_made_in_forward_is_refused() -> None:
    network = Written(lambda n, x: residual(n, nn.Linear(5, 5)(n.a(x))))
    with pytest.raises(ConfigurationError, match=r"forward makes a layer, Linear \(test_tracing\.py:\d+\); make it in"):
        LikelihoodRatio(copies=4).bind(network, CrossEntropy())


class Words(nn.Module):
    """The mean of frozen vectors of words, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.a, self.c = nn.Embedding(10, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.words.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.a(self.words(x.long()).mean(1))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_inputs_may_be_numbers_of_words(dtype: torch.dtype) -> None:
    network, x = Words(), torch.tensor([[1, 2, 3], [9, 0, 4], [4, 5, 5]]).to(dtype)
    for estimator in (LikelihoodRatio(copies=4), NoisyBackprop(copies=4)):
        torch.testing.assert_close(estimate(estimator, network, CrossEntropy(), x, Y).logits, network(x))


# ---- facts about functions ------------------------------------------------------------------------------------------

FACTS: dict[str, tuple[Any, tuple[bool, bool, bool]]] = {
    "h + 1": (lambda h: h + 1, (True, True, False)),
    "2 h": (lambda h: 2 * h, (True, True, False)),
    "h h": (lambda h: h * h, (True, False, False)),
    "h / h": (lambda h: h / h, (False, False, True)),
    "1 / h": (lambda h: 1 / h, (True, False, True)),
    "h / 2": (lambda h: h / 2, (True, True, False)),
    "h > 0": (lambda h: (h > 0).double(), (True, False, True)),
    "h // 1": (lambda h: h // 1, (True, False, True)),
    "tanh": (torch.tanh, (True, False, False)),
    "clamp": (lambda h: h.clamp(min=0), (True, False, False)),
    "softmax": (lambda h: h.softmax(1), (False, False, False)),
    "cumsum": (lambda h: h.cumsum(1), (False, True, False)),
    "reshape": (lambda h: h.reshape(-1, 5), (False, True, False)),
}


@pytest.mark.parametrize(("function", "expected"), FACTS.values(), ids=FACTS)
def test_facts_of_a_function_are_what_it_does(function: Any, expected: tuple[bool, bool, bool]) -> None:
    graph = Graph.of(Written(lambda n, x: residual(n, function(n.a(x)))))
    site = graph.sites[0]
    (call,) = (node.module for node in graph.nodes if node.inputs == (site,))
    assert isinstance(call, FunctionCall)
    facts = facts_of(call)
    assert (facts.elementwise, facts.affine, facts.jumps) == expected


# ---- hybrid ---------------------------------------------------------------------------------------------------------


def test_hybrid_refuses_a_parameter_on_both_sides_and_a_path_past_the_logits() -> None:
    def jumping(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        return residual(n, (h > 0).double() + h)

    tied = Written(jumping, a=nn.Linear(5, 5))
    tied.b.weight = tied.a.weight
    with pytest.raises(ConfigurationError, match=r"'a\.weight' is used on both"):
        Hybrid(copies=4).bind(tied, CrossEntropy())

    def past_the_last_layer(n: Any, x: Tensor) -> Tensor:
        g = torch.tanh(n.b((n.a(x) > 0).double()))
        return n.c(g) + g[:, :2]

    past = Written(past_the_last_layer)
    with pytest.raises(ConfigurationError, match="needs logits of the last layer alone"):
        Hybrid(copies=4).bind(past, ZeroOne())
    Hybrid(copies=4).bind(past, CrossEntropy())
