"""The coupled score of mirrored pairs (DisARM): the mean score of a draw, given its cell and its partner's."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from glr_lightning.activations import is_above
from glr_lightning.noise import Noise


def coupled_score(noise: Noise, cuts: Sequence[Tensor], z: Tensor) -> Tensor:
    """Mean score of a draw z, given the cell between the cuts t_i in which z lies, and the one in which -z lies.

    A cut is a z at which v0 + sigma z crosses a threshold. Those of the mirrored partner are -t_i, so together they
    part the line at +-|t_i|. That partition is even and s odd, so between the innermost two the mean is 0 and beyond,

        E[s | cells] = sign(z) E[s | a < |z| < b],   a and b the nearest of the |t_i|, b infinite beyond the last.

    For one cut it is sign(z) f(t) / (1 - F(|t|)) where |z| > |t|.

    Args:
        noise: a symmetric density.
        cuts: standardised, each broadcastable to z.
        z: [copies, ...].
    """
    edges = torch.stack([cut.abs() for cut in cuts]).sort(dim=0).values.unbind()
    sizes = [_mean_score_between(noise, a, b) for a, b in itertools.pairwise(edges)] + [noise.hazard(edges[-1])]
    distance = z.abs()
    size = torch.zeros_like(sizes[0])
    for edge, beyond in zip(edges, sizes, strict=True):
        size = torch.lerp(size, beyond, is_above(distance, edge))  # exact at weights 0 and 1
    return torch.copysign(size, z)


def _mean_score_between(noise: Noise, a: Tensor, b: Tensor) -> Tensor:
    """E[s | a < z < b] for 0 <= a <= b, which may meet: the score of the middle where a ratio would be all rounding."""
    narrow = b - a < torch.finfo(a.dtype).eps ** 0.4
    return torch.where(narrow, noise.score(0.5 * (a + b)), noise.conditional_score(a, torch.where(narrow, a + 1, b)))
