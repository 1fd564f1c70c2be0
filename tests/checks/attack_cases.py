"""Networks and pictures that the tests of the attacks share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.threats import ImageRandom

SHAPE = (1, 6, 6)


Attack = Callable[..., Tensor]


def random_of(n: int, seed: int = 0) -> ImageRandom:
    return ImageRandom(seed, torch.arange(n))


def linear(classes: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> nn.Sequential:
    """A linear classifier in float64, whose scores at the grey image are 0."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(math.prod(shape), classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    return nn.Sequential(nn.Flatten(), layer).eval()


def threshold_net(shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 30), HardThreshold(), nn.Linear(30, 5)).eval()


def pictures(n: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 1) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def inner_pictures(n: int, seed: int = 1) -> Tensor:
    """Near the grey image, so far from the box that no attack of these tests meets it."""
    return 0.5 + 0.05 * (pictures(n, SHAPE, seed).double() - 0.5)


def distances(model: nn.Sequential, x: Tensor, y: Tensor, norm: str, target: Tensor | None = None) -> Tensor:
    """How far the nearest image of another class, or of the target, is.

    The boundary between classes a and b is margin / ||w_a - w_b|| away, in the dual norm. That is the untargeted answer
    as a minimum over b; the targeted one holds for two classes, where there is no third in the way.
    """
    weight = model[1].weight.detach()
    scores = model(x).detach()
    gaps = scores.gather(1, y[:, None]) - scores
    dual = (weight[y][:, None] - weight[None]).norm(p=1 if norm == "linf" else 2, dim=2)
    away = (gaps / dual).masked_fill(torch.arange(scores.shape[1]) == y[:, None], torch.inf)
    return away.amin(1) if target is None else away.gather(1, target[:, None]).squeeze(1)
