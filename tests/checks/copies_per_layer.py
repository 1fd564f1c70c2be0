"""A check of the mean over each layer's own copies."""

from typing import Any

import pytest
import torch
from torch import nn

from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy
from tests.checks.convolutional_cases import normalised
from tests.checks.estimator_cases import estimate


def check_copies_per_layer(kind: Any) -> None:
    """Mean over a layer's own K: with ever more copies in one layer alone its gradient has the length that it had."""
    generator = torch.Generator().manual_seed(0)
    built, x, y = normalised(nn.Tanh()), torch.rand(2, 1, 7, 7, generator=generator).double(), torch.tensor([0, 1])
    more: dict[str, Any] = {"injection": Layerwise()} if kind is LikelihoodRatio else {}
    copies = [2000, 500, 500, 500, 1000, 4000]
    reference, other = (
        estimate(kind(copies=number, sigma=0.5, **more), built, CrossEntropy(), x, y).gradients
        for number in (3000, copies)
    )
    for name in ("0.weight", "3.body.3.weight", "6.weight"):
        length = float((reference[name] * other[name]).sum() / reference[name].square().sum())
        assert length == pytest.approx(1.0, abs=0.25), f"the length of {name} was expected to stay"
