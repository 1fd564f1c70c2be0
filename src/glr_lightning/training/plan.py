"""What a training is going to do, in a few lines for the screen."""

from torch import nn

from glr_lightning.estimators import Estimator
from glr_lightning.losses import Loss

OBJECTIVES = {
    "noise_free": "the loss itself, without noise",
    "joint": "E[L] under noise at all layers",
    "layerwise": "for each layer E[L] under noise at that layer alone",
    "discontinuities": "E[L] under noise where something jumps",
    "weights": "E[L] under noise on the weights",
}


def plan(estimator: Estimator, network: nn.Module, loss: Loss) -> list[str]:
    """The estimator's objective, where each layer's gradient comes from, and why it is biased, if it is."""
    objective = OBJECTIVES.get(estimator.objective, estimator.objective)
    lines = [f"{type(estimator).__name__} descends {objective}."]
    layers: dict[str, list[str]] = {}
    for layer, source in estimator.plan(network, loss).items():
        layers.setdefault(source, []).append(layer)
    lines += [f"  {', '.join(names)}: {source}" for source, names in layers.items()]
    bias = estimator.bias(network)
    return [*lines, f"  biased: {bias}"] if bias else lines
