"""Filters that corruptions share: every channel by itself, with the boundaries of the usual image libraries."""

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Boundary = Literal["replicate", "mirror", "symmetric"]


def pad(x: Tensor, rows: tuple[int, int], columns: tuple[int, int], boundary: Boundary) -> Tensor:
    """Pad [..., H, W] by `rows` (before, after) and `columns` (before, after), also by more than H or W.

    A row a b c d goes on as d d d ("replicate"), d c b ("symmetric") or c b a ("mirror").
    """
    height, width = (_source(n, *width, boundary) for n, width in zip(x.shape[-2:], (rows, columns), strict=True))
    return x.index_select(-2, height.to(x.device)).index_select(-1, width.to(x.device))


def correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """sum_ij kernel[i, j] x[h + i, w + j], where the kernel fits: [B, C, H - k + 1, W - l + 1].

    kernel: [k, l] for all images, or [B, k, l], one for each; the channels of an image share it.
    """
    batch, channels, height, width = x.shape
    kernel = kernel.to(x).expand(batch, *kernel.shape[-2:]).repeat_interleave(channels, dim=0)
    planes = x.reshape(1, batch * channels, height, width)  # planes as channels: one depthwise convolution
    return F.conv2d(planes, kernel[:, None], groups=batch * channels).view(batch, channels, *_valid(x, kernel))


def gaussian_weights(sigma: float, radius: int) -> Tensor:
    """exp(-k^2 / (2 sigma^2)) for |k| <= radius, normalised: float64 [2 radius + 1]."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    return weight / weight.sum()


def gaussian_filter(x: Tensor, sigma: float, truncate: float = 4.0, boundary: Boundary = "replicate") -> Tensor:
    """Separable Gaussian blur over both image axes of [B, C, H, W], each channel by itself.

    `gaussian_weights` up to floor(truncate sigma + 1/2). The defaults are those of scikit-image's filters.gaussian
    (where "replicate" is called nearest, and "symmetric" reflect). Where the radius is 0 x returns as it is.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    rows, columns = (_smoothing(n, sigma, radius, boundary).to(x) for n in x.shape[-2:])
    return rows @ x @ columns.T


@lru_cache(maxsize=32)
def _smoothing(n: int, sigma: float, radius: int, boundary: Boundary) -> Tensor:
    """The Gaussian filter of a line of n pixels as a matrix, float64 [n, n]: products are faster than convolutions."""
    source = _source(n, radius, radius, boundary).unfold(0, 2 * radius + 1, 1)
    weight = gaussian_weights(sigma, radius).expand_as(source)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, source, weight)


def _valid(x: Tensor, kernel: Tensor) -> tuple[int, int]:
    return x.shape[-2] - kernel.shape[-2] + 1, x.shape[-1] - kernel.shape[-1] + 1


def _source(n: int, before: int, after: int, boundary: Boundary) -> Tensor:
    """Which of n pixels stands at each place from -before to n + after - 1."""
    place = torch.arange(-before, n + after)
    if boundary == "replicate":
        return place.clamp(0, n - 1)
    last = 2 * n - 1 if boundary == "symmetric" else max(2 * (n - 1), 1)
    period = 2 * n if boundary == "symmetric" else last
    place %= period
    return torch.minimum(place, last - place)
