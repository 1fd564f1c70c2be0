"""The derivative along the path under noise that hooks add to the network itself, call by call."""

import itertools

import torch
from torch import Tensor, nn

from glr_lightning.estimators import NoisyBackprop
from glr_lightning.losses import CrossEntropy
from glr_lightning.propagation.layer_vjp import has_weights

COPIES, SIGMA = 6, 0.3


def check_noise_at_every_call(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """The graph's pass with noise, and its gradients, are torch's own with the noise at every call of a layer."""
    bound = NoisyBackprop(sigma=SIGMA, copies=COPIES).bind(network, CrossEntropy())
    (part,) = bound.draw(x, torch.Generator().manual_seed(1))
    got = bound.step(x, y, [part])
    calls = iter(part.z.values())
    hooks = [
        layer.register_forward_hook(lambda _, __, v: v + SIGMA * _like(next(calls).flatten(0, 1), v))
        for layer in network.modules()
        if has_weights(layer)
    ]
    logits = network(x.repeat(COPIES, *itertools.repeat(1, x.dim() - 1)))
    names, parameters = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    loss = CrossEntropy()(logits, y.repeat(COPIES)).mean()
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    for hook in hooks:
        hook.remove()
    assert next(calls, None) is None
    torch.testing.assert_close(got.logits, network(x))
    torch.testing.assert_close(got.gradients, expected)


def _like(z: Tensor, v: Tensor) -> Tensor:
    """Noise [rows, ...] where the rows of v are: in front, several for a sample, or on the second axis."""
    if z.dim() > v.dim():
        return z.flatten(0, 1)
    return z if z.shape == v.shape else z.movedim(0, 1)
