"""A check of estimators on convolutional networks against oracles by hooks."""

import functools
from typing import Any

from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import Estimator, LikelihoodRatio, LocalExpectation, Tiered
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy, ZeroOne
from tests.checks.convolutional_cases import CLASS, NETWORKS, PIXELS, check_against, pathwise, plain_ratio, weighted
from tests.checks.zscores import repetitions

SIGMA = 0.5
RESOLUTION = 1.0  # in every combination a gradient of no length, or of twice its length, shows
ESTIMATORS: dict[str, Any] = {
    "likelihood_ratio layerwise": LikelihoodRatio(sigma=SIGMA, copies=4, injection=Layerwise()),
    "likelihood_ratio joint": LikelihoodRatio(sigma=SIGMA, copies=4),
    "tiered": Tiered(sigma=SIGMA, copies=4),
    "local_expectation": LocalExpectation(sigma=SIGMA, copies=4, units=4),
}


KINDS = {"threshold": (HardThreshold(), ZeroOne()), "tanh": (nn.Tanh(), CrossEntropy())}


@functools.cache
def oracle(network: str, kind: str, objective: str) -> dict[str, Tensor]:
    activation, loss = KINDS[kind]
    built = NETWORKS[network](activation)
    layers = list(weighted(built))
    passes = [layers] if objective == "joint" else [[layer] for layer in layers]
    draw, rows = (pathwise, 2000) if kind == "tanh" else (plain_ratio, 100_000 if objective == "joint" else 24_000)
    return draw(built, loss, passes, SIGMA, PIXELS, CLASS, rows)


def check_convolutional(estimator: Estimator, network: str, kind: str) -> None:
    activation, loss = KINDS[kind]
    number = {LikelihoodRatio: 9000, Tiered: 3000, LocalExpectation: 1000}[type(estimator)]
    samples = repetitions(estimator, NETWORKS[network](activation), loss, PIXELS, CLASS, number=number)
    check_against(samples, oracle(network, kind, estimator.objective), RESOLUTION, f"{network}, {kind}")
