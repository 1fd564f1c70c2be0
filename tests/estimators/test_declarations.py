"""What an estimator declares of itself: its family, whether it needs derivatives, its objective and its bias."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.estimators.base import FAMILIES, OBJECTIVES
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.validation import parameters
from tests.checks.estimator_cases import estimate, network_for, small_network
from tests.checks.groups import configured, options


class NoDerivative(torch.autograd.Function):
    """The identity, of which no derivative can be taken."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise AssertionError("a derivative was taken")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise AssertionError("a derivative was taken")


@dataclasses.dataclass(frozen=True)
class ValueOnly(CrossEntropy):
    """Cross-entropy that raises when it is differentiated."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = NoDerivative.apply(super().__call__(logits, labels))
        return loss


@pytest.mark.parametrize("name", options("estimator"))
def test_an_estimator_that_needs_no_derivatives_takes_none(name: str) -> None:
    estimator = configured(name)
    network = network_for(estimator)
    if estimator.needs_derivatives:
        with pytest.raises(AssertionError, match="a derivative was taken"):
            estimate(estimator, network, ValueOnly())
    else:
        assert estimate(estimator, network, ValueOnly()).gradients.keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize("name", options("estimator"))
def test_every_estimator_declares_a_family_and_an_objective(name: str) -> None:
    assert configured(name).family in FAMILIES
    assert configured(name).objective in OBJECTIVES


def test_only_methods_that_see_loss_values_alone_are_likelihood_ratios() -> None:
    kinds = [configured(name) for name in options("estimator")]
    assert not any(kind.needs_derivatives for kind in kinds if kind.family == "likelihood ratio")


def test_the_description_names_every_objective_the_layers_and_a_bias() -> None:
    class Biased(LikelihoodRatio):
        def bias(self, network: nn.Module) -> str:
            return "of the planted kind."

    assert Biased(copies=4).describe(small_network(HardThreshold()), ZeroOne()) == [
        "Biased descends E[L] under noise at all layers.",
        "  0, 2: likelihood ratio, from loss values",
        "  biased: of the planted kind.",
    ]


@pytest.mark.parametrize("name", options("estimator"))
def test_a_list_that_repeats_one_value_is_that_value(name: str) -> None:
    for option, parameter in parameters(type(configured(name))).items():
        if parameter.takes_one_for_all:
            layerwise = {"injection": Layerwise()} if option == "copies" and name == "likelihood_ratio" else {}
            one = dataclasses.replace(configured(name), **layerwise)
            value = getattr(one, option)
            network = network_for(one)
            estimates = [
                estimate(each, network, CrossEntropy()).gradients
                for each in (one, dataclasses.replace(one, **{option: (value, value)}))
            ]
            assert all(torch.equal(estimates[0][key], estimates[1][key]) for key in estimates[0]), option


def test_an_objective_and_a_family_of_ones_own_are_taken_as_they_are() -> None:
    class Own(LikelihoodRatio):
        family = "of my own"
        objective = "the worst of all losses"

    assert (
        Own(copies=4).describe(small_network(HardThreshold()), ZeroOne())[0] == "Own descends the worst of all losses."
    )
