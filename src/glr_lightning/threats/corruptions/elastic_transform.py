"""Elastic deformation: an affine jerk and a smooth random flow."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.corruptions.filters import gaussian_filter
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import NonNegative


@checked_parameters
def elastic_transform(
    model: object,
    x: Tensor,
    y: object,
    *,
    random: ImageRandom,
    alpha: NonNegative,
    sigma: NonNegative,
    affine: NonNegative,
) -> Tensor:
    """x(A^-1 (p + d(p))) at every pixel p, bilinear, mirrored beyond the edge; [B, C, H, W] in [0, 1].

    alpha, sigma and affine are fractions of n = min(H, W). d, for each axis of each image, is n alpha times a field
    of independent uniforms on [-1, 1), smoothed with standard deviation n sigma (truncated at 3, symmetric at
    the edge). A is the affine map that moves three corners of a square, (c + s, c + s), (c + s, c - s) and
    (c - s, c - s) with c half the image and s a third of n, both rounded down, by independent uniforms within
    n affine along each axis. model and y are ignored.

    Sources: Simard, Steinkraus & Platt, "Best practices for convolutional neural networks applied to visual document
    analysis", ICDAR 2003; with A: Hendrycks & Dietterich, "Benchmarking neural network robustness to common
    corruptions and perturbations", ICLR 2019. They move the image twice, first by A, then by d, and so interpolate
    twice, and their two steps treat the edge differently; here it is one step.
    """
    height, width = x.shape[2:]
    side = min(height, width)
    source = _pixels(height, width).to(x) + _flow(random, height, width, side * alpha, side * sigma).to(x)
    inverse = _inverse_affine(random, height, width, side * affine).to(x)
    source = source.flatten(1, 2) @ inverse[:, :2] + inverse[:, 2:]
    scale = torch.tensor([max(width - 1, 1), max(height - 1, 1)]).to(x) / 2.0
    grid = (source / scale - 1.0).view(len(x), height, width, 2)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=True).clamp(0.0, 1.0)


def _pixels(height: int, width: int) -> Tensor:
    """Where the pixels are, (w, h): [1, H, W, 2]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows], dim=-1)[None]


def _flow(random: ImageRandom, height: int, width: int, alpha: float, sigma: float) -> Tensor:
    """The flow d in pixels: [B, H, W, 2]; alpha and sigma in pixels."""
    if alpha == 0.0:
        return torch.zeros(1, device=random.index.device)
    field = 2.0 * random.once(ImageRandom.uniform, (2, height, width), 0) - 1.0
    return alpha * gaussian_filter(field, sigma, truncate=3.0, boundary="symmetric").permute(0, 2, 3, 1)


def _inverse_affine(random: ImageRandom, height: int, width: int, jitter: float) -> Tensor:
    """A^-1 as T [B, 3, 2], A^-1 p = (p, 1) T; jitter in pixels."""
    s = max(min(height, width) // 3, 1)
    corner = torch.tensor([[s, s], [s, -s], [-s, -s]]) + torch.tensor([width // 2, height // 2])
    corner = corner.to(random.index.device, torch.float32)
    moved = corner + jitter * (2.0 * random.uniform((3, 2), stream=1) - 1.0)
    inverse: Tensor = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corner)
    return inverse
