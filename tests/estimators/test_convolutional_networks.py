"""Estimates on networks with convolutions, poolings, blocks and normalisations, against hooks and autograd."""

import pytest

from glr_lightning.estimators import Estimator
from tests.checks.convolutional import ESTIMATORS, KINDS, check_convolutional
from tests.checks.convolutional_cases import NETWORKS


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_an_estimate_is_unbiased(network: str, kind: str, estimator: Estimator) -> None:
    if (network, estimator.objective) != ("normalised", "joint"):
        check_convolutional(estimator, network, kind)  # else noise everywhere leaves too little of some to be seen
