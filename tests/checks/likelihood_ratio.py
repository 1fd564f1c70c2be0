"""Checks of the likelihood ratio's scores."""

import itertools
import math

import pytest
import torch
from scipy import integrate

from glr_lightning.activations import HardThreshold, PiecewiseConstant
from glr_lightning.estimators import (
    LikelihoodRatio,
    likelihood_ratio,
)
from glr_lightning.losses import ZeroOne
from glr_lightning.networks import mlp
from glr_lightning.noise import Noise
from tests.checks.zscores import repetitions


def check_coupled_score(noise: Noise, activation: PiecewiseConstant) -> None:
    """The mean of s over all z that put v0 + sigma z and v0 - sigma z into the same two cells, by quadrature."""

    def density(z: float) -> float:
        return float(noise.log_prob(torch.tensor(z, dtype=torch.float64)).exp())

    def scored(z: float) -> float:
        return density(z) * float(noise.score(torch.tensor(z, dtype=torch.float64)))

    sigma = 0.7
    for v in (-2.0, -0.3, 0.0, 0.1, 0.5, 1.3):  # at 0.1 the mirrored cuts of three levels meet
        cuts = [(cut - v) / sigma for cut in activation.cuts]
        edges = sorted({0.0, *cuts, *(-cut for cut in cuts)})  # 0, where a score may jump
        pieces = [(a, b) for a, b in itertools.pairwise((-math.inf, *edges, math.inf)) if b - a > 1e-9]
        z = torch.tensor([0.5 * (max(a, edges[0] - 2) + min(b, edges[-1] + 2)) for a, b in pieces], dtype=torch.float64)
        cells = list(zip(activation(v + sigma * z).tolist(), activation(v - sigma * z).tolist(), strict=True))
        got = likelihood_ratio.coupled_score(noise, list(torch.tensor(cuts, dtype=torch.float64)[:, None]), z)
        for score, cell in zip(got.tolist(), cells, strict=True):
            same = [piece for piece, other in zip(pieces, cells, strict=True) if other == cell]
            mass, total = (sum(integrate.quad(f, a, b)[0] for a, b in same) for f in (density, scored))
            assert score == pytest.approx(total / mass, rel=1e-6, abs=1e-9), (v, cell)


def variance(estimator: LikelihoodRatio) -> dict[str, float]:
    """Per layer, of a 196-20-10 threshold network on a batch of 8, by 200 repetitions."""
    torch.manual_seed(0)
    network = mlp(image_shape=(1, 14, 14), classes=10, hidden=[20], activation=HardThreshold())
    x, y = torch.rand(8, 1, 14, 14), torch.arange(8)
    samples = repetitions(estimator, network, ZeroOne(), x, y, number=200)
    return {layer: float(samples[f"{layer}.weight"].var(0).sum()) for layer in ("linear1", "linear2")}


def check_variance_never_larger(coarser: LikelihoodRatio, finer: LikelihoodRatio) -> None:
    """Rao-Blackwell, layer by layer; 200 repetitions know a sum over hundreds of weights to a few percent."""
    less, more = variance(coarser), variance(finer)
    for layer in more:
        assert less[layer] <= 1.1 * more[layer], f"the variance of {layer} was expected not to rise"
