"""The likelihood-ratio method as it was first published, written slowly: the outer product of every row on its own.

Peng, Xiao, Heidergott, Hong, Lam, INFORMS Journal on Computing 34(1), 2022. A layer is z = x W + noise, W [in, out],
noise on every layer at once, the logits included; a constant 1 appended to the image is the first layer's bias, and
later layers have none. Every copy of every image is a row of its own. For Laplace noise of scale b, and for Gaussian
noise of standard deviation s, with the mean over all rows:

    dW = mean(L x sign(noise)^T) / b            dW = mean(L x noise^T) / s^2
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def estimate(
    weights: list[Tensor],
    images: Tensor,
    labels: Tensor,
    noise: list[Tensor],
    *,
    density: Literal["laplace", "gaussian"],
    scale: float,
    activation: Callable[[Tensor], Tensor],
    loss: Literal["cross_entropy", "zero_one"],
) -> list[Tensor]:
    """The gradient of every W.

    Args:
        weights: W of each layer, [in, out].
        images: [batch, pixels].
        labels: [batch].
        noise: for each layer the noise itself (not standardised) of each row, [copies * batch, out], first copy first.
    """
    copies = len(noise[0]) // len(images)
    x = torch.cat([torch.cat([images, torch.ones_like(images[:, :1])], dim=1)] * copies)
    y = torch.cat([labels] * copies)

    inputs = []
    for w, xi in zip(weights, noise, strict=True):
        inputs.append(x)
        z = x @ w + xi
        x = activation(z)
    losses = torch.stack([loss_of(row, int(label), loss) for row, label in zip(z, y, strict=True)])

    gradients = []
    for x, xi in zip(inputs, noise, strict=True):
        score = xi.sign() / scale if density == "laplace" else xi / scale**2
        gradients.append((losses[:, None, None] * x[:, :, None] * score[:, None, :]).mean(0))
    return gradients


def loss_of(logits: Tensor, label: int, loss: str) -> Tensor:
    if loss == "cross_entropy":
        return torch.logsumexp(logits, 0) - logits[label]
    return (logits.argmax() != label).to(logits.dtype)


def threshold(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


class SGD:
    """W <- W - lr (dW + decay W)."""

    def __init__(self, lr: float, weight_decay: float) -> None:
        self.lr, self.weight_decay = lr, weight_decay

    def step(self, w: Tensor, gradient: Tensor) -> Tensor:
        return w - self.lr * (gradient + self.weight_decay * w)


class Adagrad(SGD):
    """The first step of Adagrad: the sum of squared gradients is that of one gradient."""

    def step(self, w: Tensor, gradient: Tensor) -> Tensor:
        decayed = gradient + self.weight_decay * w
        return w - self.lr * decayed / (decayed.square().sqrt() + 1e-10)
