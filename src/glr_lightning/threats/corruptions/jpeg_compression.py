"""What lossy compression leaves of an image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom

# ITU-T T.81 (1992), Annex K, tables K.1 and K.2.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Red, green, blue to luminance and two chrominances: JFIF 1.02 (1992), after ITU-R BT.601.
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg_compression(
    model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom | None, quality: int
) -> Tensor:
    """x after baseline JPEG and back, in 8 bits; [B, C, H, W] in [0, 1]; model, y and random are ignored.

    Blocks of 8 x 8, their discrete cosine transform rounded to multiples of the standard tables, scaled by
    libjpeg's `quality` (1 to 100, 75 is its default); with three channels as YCbCr, the chrominance at half the
    resolution (4:2:0) and interpolated bilinearly. With any other number each channel is a grey image. The
    edge pixels fill incomplete blocks. The entropy coding loses nothing and is left out.

    Everything is a sum of integers times fixed-point constants, exact in float64: no batch size and no order of
    summation changes a coefficient's rounding.

    Sources: ITU-T T.81 (1992); the corruption: Hendrycks & Dietterich, "Benchmarking neural network robustness to
    common corruptions and perturbations", ICLR 2019, through Pillow and libjpeg. From libjpeg this differs by
    roundings within its transform: pixels by 0.1 (grey) to 0.8 (colour noise) of 255 in the mean.

    Raises ConfigurationError unless quality is an integer in 1..100.
    """
    if type(quality) is not int or not 1 <= quality <= 100:
        raise ConfigurationError(f"jpeg_compression needs an integer quality within 1..100, got {quality!r}.")
    pixels = _round(255.0 * x).to(torch.float32 if x.is_mps else torch.float64)  # Apple's devices have no float64
    decoded = _colour(pixels, quality) if x.shape[1] == 3 else _recode(pixels, scaled(LUMINANCE, quality))
    return (decoded / 255.0).to(x.dtype)


def scaled(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """libjpeg's table for a quality: [8, 8], integers within 1..255. 50 is the table itself."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255)


def _colour(rgb: Tensor, quality: int) -> Tensor:
    """[B, 3, H, W] in 0..255, decoded."""
    height, width = rgb.shape[2:]
    ycbcr = _mix(rgb, TO_YCBCR) + rgb.new_tensor([0.0, 128.0, 128.0])[:, None, None]
    luminance, chrominance = _round(ycbcr).clamp(0.0, 255.0).split([1, 2], dim=1)
    luminance = _recode(luminance, scaled(LUMINANCE, quality))
    chrominance = _recode(_halve(chrominance), scaled(CHROMINANCE, quality))[..., : (width + 1) // 2]
    chrominance = _round(F.interpolate(chrominance, scale_factor=2, mode="bilinear", align_corners=False))
    decoded = _mix(torch.cat([luminance, chrominance[..., :height, :width] - 128.0], dim=1), TO_RGB)
    return _round(decoded).clamp(0.0, 255.0)


def _halve(planes: Tensor) -> Tensor:
    """Means of 2 x 2 pixels. Halves go down in even columns and up in odd ones, as libjpeg's, so that none is favoured.

    The width is filled up to whole blocks before, not after, again as by libjpeg.
    """
    quarters = 4.0 * F.avg_pool2d(_fill(planes, 2, 16), 2)
    return ((quarters + 1.0 + torch.arange(quarters.shape[3]).to(planes) % 2) / 4.0).floor()


def _mix(planes: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """A 3 x 3 matrix of colours, in libjpeg's 16 bits after the point."""
    return torch.einsum("ij,bjhw->bihw", _fixed_point(torch.tensor(matrix, dtype=torch.float64), 16).to(planes), planes)


def _recode(planes: Tensor, table: Tensor) -> Tensor:
    """[B, C, H, W] in 0..255 through the quantised cosine transform and back to integers in 0..255."""
    height, width = planes.shape[2:]
    filled = _fill(planes, 8, 8) - 128.0
    tiles = filled.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # [B, C, rows, columns, 8, 8]
    step, basis = table.flatten().to(planes), _cosines().to(planes)
    levels = _round(tiles.flatten(4) @ basis.T / step)
    tiles = ((levels * step) @ basis).view_as(tiles)
    decoded = tiles.transpose(3, 4).reshape_as(filled) + 128.0
    return _round(decoded).clamp(0.0, 255.0)[..., :height, :width]


def _fill(planes: Tensor, rows: int, columns: int) -> Tensor:
    """The border pixel repeated to the right and below, up to a multiple of these numbers."""
    height, width = planes.shape[2:]
    return F.pad(planes, (0, -width % columns, 0, -height % rows), mode="replicate")


def _cosines() -> Tensor:
    """The orthonormal DCT-II of flat 8 x 8 blocks: [64 frequencies, 64 pixels], 32 bits after the point."""
    i = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(torch.outer(i, 2.0 * i + 1.0) * math.pi / 16.0) / 2.0
    basis[0] /= math.sqrt(2.0)
    return _fixed_point(torch.kron(basis, basis), 32)


def _fixed_point(values: Tensor, bits: int) -> Tensor:
    return (values * 2.0**bits).round() / 2.0**bits


def _round(values: Tensor) -> Tensor:
    """To the nearest integer, halves away from zero, as libjpeg: integer pixels make halves common."""
    return values.sign() * (values.abs() + 0.5).floor()
