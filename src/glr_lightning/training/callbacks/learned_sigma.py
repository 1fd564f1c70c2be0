"""Learned noise scales: sigma = exp(log sigma), one for each layer or one for each neuron of it.

They are parameters of the training module and not of the estimator, which stays a value: at every step the module
gives the present scales to `LikelihoodRatio` as its sigma, which returns dJ/dlog(sigma) from the same copies.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimator, LikelihoodRatio
from glr_lightning.estimators.base import per_site
from glr_lightning.propagation.chain import Chain
from glr_lightning.propagation.layer_vjp import unit_norms

LearnSigma = Literal["layer", "neuron"]


def log_scales(estimator: Estimator, network: nn.Module, per: str) -> nn.ParameterList:
    """The logarithm of every noisy layer's scale, starting from the estimator's sigma.

    Args:
        per: "layer", a number; or "neuron", a number for each output unit, of a convolution for each channel.

    Raises:
        ConfigurationError: another word, or an estimator that does not estimate these gradients.
    """
    if per not in get_args(LearnSigma):
        raise ConfigurationError(f"learn_sigma must be null, {' or '.join(get_args(LearnSigma))}, got {per!r}.")
    if not isinstance(estimator, LikelihoodRatio):
        raise ConfigurationError(
            f"learn_sigma={per} needs an estimator that gives the gradient of the noise scale, "
            f"{type(estimator).__name__} does not; use estimator=likelihood_ratio with copies=32, or learn_sigma=null."
        )
    chain = Chain.of(network)
    scales: tuple[float | Tensor, ...] = per_site(estimator.sigma, len(chain.sites))
    shapes = [unit_norms(chain.layer(site)).shape if per == "neuron" else () for site in range(len(scales))]
    return nn.ParameterList(torch.full(shape, math.log(float(s))) for shape, s in zip(shapes, scales, strict=True))


def summary(network: nn.Module, scales: list[Tensor]) -> dict[str, float]:
    """`sigma_<layer>`, of several scales in a layer their mean, and with `_min` and `_max` their range."""
    row = {}
    for name, scale in zip(Chain.of(network).site_names, scales, strict=True):
        row[f"sigma_{name}"] = float(scale.mean())
        if scale.dim():
            row |= {f"sigma_{name}_min": float(scale.min()), f"sigma_{name}_max": float(scale.max())}
    return row
