"""Options with one value per layer: spreads of the first biases."""

from typing import Any

import pytest
import torch

from glr_lightning.activations import HardThreshold
from glr_lightning.data import Digits
from glr_lightning.errors import ConfigurationError
from glr_lightning.networks import mlp


def test_hidden_biases_start_spread_out_and_the_logits_do_not() -> None:
    torch.manual_seed(0)
    data = Digits(batch_size=1)
    network = mlp(
        image_shape=data.image_shape, classes=10, hidden=[400, 300], activation=HardThreshold(), spread=[4.0, 1.5]
    )
    for name, bound in (("linear1", 4.0), ("linear2", 1.5)):
        bias = network.get_submodule(name).get_parameter("bias").detach()
        assert bias.abs().max() <= bound
        assert bias.std() == pytest.approx(bound / 3**0.5, rel=0.1)  # 400 draws: 4 standard errors
    assert network.get_submodule("linear3").get_parameter("bias").abs().max() <= 1 / 300**0.5


@pytest.mark.parametrize("spread", [[1.0], [1.0, -1.0], 0, "wide", True, float("inf")])
def test_spreads_that_cannot_be_are_refused(spread: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        mlp(image_shape=(1, 8, 8), classes=10, hidden=[5, 4], activation=HardThreshold(), spread=spread)
    assert refusal.value.option == "spread"
