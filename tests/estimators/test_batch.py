"""What an estimator is given and cannot use is refused in one line, by every estimator alike."""

from typing import Any

import pytest
import torch
from torch import nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Backprop, LikelihoodRatio
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.training.module import GLRModule
from tests.checks.estimator_cases import X, Y, effective, network_for, small_network
from tests.checks.groups import configured, options

NAN, INFINITE = X.clone(), X.clone()
NAN[0, 0], INFINITE[2, 1] = torch.nan, -torch.inf
BAD = {
    "labels that are floats": ({"y": Y.double()}, "y", r"int64 \[3\]"),
    "labels of 32 bits": ({"y": Y.int()}, "y", r"int64 \[3\]"),
    "one-hot labels": ({"y": nn.functional.one_hot(Y)}, "y", r"int64 \[3\]"),
    "labels in a list": ({"y": Y.tolist()}, "y", "got list"),
    "a label without a class": ({"y": torch.tensor([0, 1, 2])}, "y", "from 0 to 1, .* got 0 to 2"),
    "a negative label": ({"y": torch.tensor([0, -1, 1])}, "y", "got -1 to 1"),
    "fewer labels": ({"y": Y[:2]}, "y", r"int64 \[3\]"),
    "one label": ({"y": Y[:1]}, "y", r"int64 \[3\]"),
    "an empty batch": ({"x": X[:0], "y": Y[:0]}, "x", "at least one input"),
    "one input without its batch": ({"x": X[0]}, "x", "a batch"),
    "NaN": ({"x": NAN}, "x", "finite"),
    "infinity": ({"x": INFINITE}, "x", "finite"),
    "an array": ({"x": X.numpy()}, "x", "got ndarray"),
    "bytes": ({"x": X.byte()}, "x", "torch.float64 as the network's weights"),
    "inputs of another precision": ({"x": X.float()}, "x", "torch.float64 as the network's weights"),
    "inputs of another shape": ({"x": torch.rand(3, 5).double()}, "x", r"does not take x of shape \[3, 5\]"),
    "a loss of torch's": ({"loss": nn.CrossEntropyLoss()}, "loss", "got CrossEntropyLoss"),
    "the class of a loss": ({"loss": ZeroOne}, "loss", "got the class ZeroOne itself"),
    "no loss": ({"loss": None}, "loss", "got None"),
    "no generator": ({"generator": None}, "generator", "got None"),
    "a seed": ({"generator": 3}, "generator", "got int"),
    "no network": ({"network": None}, "network", "got None"),
    "a function": ({"network": torch.relu}, "network", "must be a torch module"),
    "a network without weights": ({"network": nn.Sequential(nn.Flatten())}, "network", "nothing to train"),
    "another device": ({"y": Y.to("meta")}, "y", "on cpu, where the network is, got meta"),
}


def call(estimator: Any, **change: Any) -> Any:
    network = network_for(estimator)
    loss = CrossEntropy() if estimator.needs_derivatives else ZeroOne()
    given = {"network": network, "loss": loss, "x": X, "y": Y, "generator": torch.Generator()} | change
    return effective(estimator, network, loss).estimate(**given)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", options("estimator"))
def test_a_batch_that_cannot_be_used_is_refused_in_one_line(name: str, case: str) -> None:
    change, option, words = BAD[case]
    with pytest.raises(ConfigurationError, match=words) as refusal:
        call(configured(name), **change)
    assert refusal.value.option == option
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", ["check", "plan", "describe"])
@pytest.mark.parametrize("name", options("estimator"))
def test_what_is_no_network_or_loss_is_refused_outside_an_estimate_too(name: str, method: str) -> None:
    estimator = configured(name)
    network, loss = network_for(estimator), CrossEntropy()
    for case in (case for case, (change, *_) in BAD.items() if change.keys() <= {"network", "loss"}):
        change, option, words = BAD[case]
        if words == "nothing to train":  # which has its own words in each of them
            continue
        given = {"network": network, "loss": loss} | change
        for arguments, keywords in ((given.values(), {}), ((), given)):
            with pytest.raises(ConfigurationError, match=words) as refusal:
                getattr(estimator, method)(*arguments, **keywords)
            assert refusal.value.option == option


def test_numbers_whose_sum_overflows_are_finite() -> None:
    huge = torch.full((3, 3), 1e308, dtype=torch.float64)
    assert torch.isinf(huge.sum())
    call(LikelihoodRatio(copies=4), x=huge)


def test_logits_of_the_wrong_shape_are_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.Flatten(0)).double()
    with pytest.raises(ConfigurationError, match=r"must return logits \[batch, classes\], got \[1\]"):
        Backprop().estimate(network, CrossEntropy(), X, Y, generator=torch.Generator())


def test_an_error_that_is_no_fault_of_the_batch_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("of its own")

    monkeypatch.setattr(Backprop, "_step", broken)
    with pytest.raises(RuntimeError, match="of its own"):
        call(Backprop())


@pytest.mark.parametrize(("part", "value"), [("network", None), ("loss", nn.CrossEntropyLoss()), ("loss", ZeroOne)])
def test_a_module_is_not_made_of_what_is_no_network_or_loss(part: str, value: Any) -> None:
    parts: dict[str, Any] = {"network": small_network(nn.Tanh()), "estimator": Backprop(), "loss": CrossEntropy()}
    with pytest.raises(ConfigurationError) as refusal:
        GLRModule(**{**parts, part: value}, optimizer=torch.optim.SGD)
    assert refusal.value.option == part
