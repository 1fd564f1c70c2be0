"""Gradients stored as numbers: no change of the code may change results in silence.

For each network, activation and estimator the sum of each gradient and its dot product with a fixed vector, in float64.
Where results are meant to change, such as by other random streams, write them anew and say so in CHANGELOG.md:

    python -m tests.estimators.test_stored_gradients
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, Sign
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import (
    Backprop,
    Estimator,
    EvolutionStrategies,
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
from glr_lightning.networks import convnet, mlp, resnet5
from glr_lightning.noise import Logistic
from tests.checks.estimator_cases import estimate
from tests.checks.traced_networks import Recurrent
from tests.checks.traced_networks import Residual as FunctionalResidual

FILE = Path(__file__).with_name("stored_gradients.json")
SHAPE, CLASSES = (1, 6, 6), 3
ACTIVATIONS: dict[str, nn.Module] = {"threshold": HardThreshold(), "sign": Sign(), "tanh": nn.Tanh(), "relu": nn.ReLU()}
ESTIMATORS: dict[str, Estimator] = {
    "joint": LikelihoodRatio(copies=8),
    "joint_plain_logistic": LikelihoodRatio(noise=Logistic(), copies=8, score="plain", sigma=0.7),
    "joint_chunks": LikelihoodRatio(copies=16, chunk=8),
    "layerwise": LikelihoodRatio(copies=4, injection=Layerwise()),
    "local_expectation": LocalExpectation(),
    "local_expectation_of_some": LocalExpectation(copies=2, units=3),
    "tiered": Tiered(copies=4),
    "hybrid": Hybrid(copies=4),
    "noisy_backprop": NoisyBackprop(copies=4),
    "forward_gradient": ForwardGradient(copies=4),
    "straight_through": StraightThrough(sigma=0.7),
    "evolution_strategies": EvolutionStrategies(copies=4),
    "backprop": Backprop(),
}


def networks(activation: nn.Module) -> dict[str, nn.Module]:
    shape: dict[str, Any] = {"image_shape": SHAPE, "classes": CLASSES}
    every = {
        "mlp": mlp(**shape, hidden=(5, 4), activation=activation),
        "convnet": convnet(**shape, channels=(2, 3), kernel=3, stride=1, hidden=(), activation=activation),
        "resnet5": resnet5(**shape, channels=(2, 3), stride=2, activation=activation),
        "functional": nn.Sequential(nn.Flatten(), nn.Linear(36, 6), FunctionalResidual(activation)),
        "recurrent": nn.Sequential(nn.Flatten(), nn.Linear(36, 6), Recurrent(activation)),
    }
    for network in every.values():
        numbers = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.data = 0.6 * torch.randn(parameter.shape, generator=numbers, dtype=torch.float64)
    return every


def numbers_of(gradients: dict[str, Tensor]) -> dict[str, list[float]]:
    """The sum, and the dot product with cos(1), cos(2), ..."""
    found = {}
    for name, gradient in gradients.items():
        vector = torch.arange(1.0, gradient.numel() + 1, dtype=torch.float64).cos()
        found[name] = [float(gradient.sum()), float(gradient.flatten() @ vector)]
    return found


def case(activation: str, network: nn.Module, estimator: Estimator) -> dict[str, list[float]] | None:
    """The numbers, or None where the estimator refuses the network."""
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 1])
    try:
        return numbers_of(estimate(estimator, network, CrossEntropy(), x, y, seed=2).gradients)
    except ConfigurationError:
        return None


def computed(activation: str) -> dict[str, Any]:
    return {
        f"{activation} {name} {kind}": case(activation, network, estimator)
        for name, network in networks(ACTIVATIONS[activation]).items()
        for kind, estimator in ESTIMATORS.items()
    }


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_that_were_stored(activation: str) -> None:
    stored = {key: value for key, value in json.loads(FILE.read_text()).items() if key.startswith(f"{activation} ")}
    found = computed(activation)
    assert stored.keys() == found.keys()
    for key, expected in stored.items():
        assert (expected is None) == (found[key] is None), key
        for name, numbers in (expected or {}).items():
            got = found[key][name]
            assert all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(got, numbers, strict=True)), (
                f"{key}, {name}: {got} in place of {numbers}"
            )


def test_enough_is_stored() -> None:
    stored = json.loads(FILE.read_text())
    for kind in ESTIMATORS:
        assert sum(value is not None for key, value in stored.items() if key.split()[2] == kind) >= 8, kind


if __name__ == "__main__":
    every = {key: value for activation in ACTIVATIONS for key, value in computed(activation).items()}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in every.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
