"""The common corruptions against closed forms and against the libraries whose effect they describe."""

import colorsys
import io
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage
from scipy.stats import chi2, poisson
from torch import Tensor

from glr_lightning.config import build
from glr_lightning.errors import ConfigurationError
from glr_lightning.threats import ImageRandom
from glr_lightning.threats.corruptions.brightness import brightness
from glr_lightning.threats.corruptions.defocus_blur import defocus_blur, disk
from glr_lightning.threats.corruptions.elastic_transform import elastic_transform
from glr_lightning.threats.corruptions.filters import correlate, gaussian_filter, pad
from glr_lightning.threats.corruptions.gaussian_blur import gaussian_blur
from glr_lightning.threats.corruptions.jpeg_compression import jpeg_compression
from glr_lightning.threats.corruptions.motion_blur import STEEPEST, angles, line_kernels, motion_blur
from glr_lightning.threats.corruptions.pixelate import pixelate
from glr_lightning.threats.corruptions.shot_noise import MOST_PHOTONS, shot_noise
from tests.checks.zscores import FALSE_ALARM, assert_mean

CONF = Path(__file__).parents[2] / "conf" / "threat"
SHAPES = [(1, 28, 28), (1, 8, 8), (3, 64, 64), (3, 9, 14), (2, 5, 3), (1, 1, 1)]


def random_of(n: int, seed: int = 0) -> ImageRandom:
    return ImageRandom(seed, torch.arange(n))


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def smooth_bytes(*shape: int) -> Tensor:
    """Pictures of blobs, uint8 [n, C, H, W]."""
    field = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    field = gaussian_filter(field, 2.0)
    return (255 * (0.5 + 0.25 * field / field.std()).clamp(0, 1)).round().byte()


def presets() -> Iterator[Any]:
    """Every corruption at every level of every published preset."""
    for path in sorted(CONF.glob("*.yaml")):
        node = yaml.safe_load(path.read_text()).get(path.stem, {})
        for preset, levels in node.get("presets", {}).items():
            yield pytest.param(
                {**node, "preset": preset, "severities": list(range(1, len(levels) + 1))},
                id=f"{path.stem}-{preset}",
            )


class TestEveryPreset:
    @pytest.mark.parametrize("node", list(presets()))
    def test_runs_on_every_shape_whatever_the_batch(self, node: dict[str, Any]) -> None:
        threat, chosen = build(node, trusted=None), torch.tensor([4, 1, 1])
        for shape, (severity, parameters) in itertools.product(SHAPES, threat.levels):
            x = images(5, *shape)
            whole = threat.function(None, x.clone(), None, random=random_of(5), **parameters)
            assert (whole.shape, whole.dtype) == (x.shape, x.dtype)
            assert whole.min() >= 0
            assert whole.max() <= 1
            some = threat.function(None, x[chosen], None, random=ImageRandom(0, chosen), **parameters)
            # The image is moved by up to 2 sides on some levels, whose rounding is more than a pixel value's.
            torch.testing.assert_close(whole[chosen], some, rtol=0, atol=1e-5, msg=f"{shape}, severity {severity}")

    @pytest.mark.parametrize("node", list(presets()))
    def test_double_precision_agrees_with_single(self, node: dict[str, Any]) -> None:
        threat, x = build(node, trusted=None), images(4, 3, 16, 16, dtype=torch.float64)
        x = (255 * x).round() / 255
        for _, parameters in threat.levels:
            double = threat.function(None, x, None, random=random_of(4), **parameters)
            single = threat.function(None, x.float(), None, random=random_of(4), **parameters)
            assert double.dtype == torch.float64
            assert ((double.float() - single).abs() > 1e-4).double().mean() < 0.005  # a count of photons may flip

    def test_the_source_has_five_levels_and_mnist_c_one(self) -> None:
        found = [parameter.values[0] for parameter in presets()]
        assert {node["preset"] for node in found} == {"cifar10_c", "tiny_imagenet_c", "imagenet_c", "mnist_c"}
        for node in found:
            assert len(node["severities"]) == (1 if node["preset"] == "mnist_c" else 5)
        mnist = {node["function"].rsplit(".", 1)[1] for node in found if node["preset"] == "mnist_c"}
        assert mnist == {"shot_noise", "impulse_noise", "glass_blur", "motion_blur", "brightness"}


class TestFilters:
    @pytest.mark.parametrize(
        ("boundary", "numpy_name"), [("replicate", "edge"), ("mirror", "reflect"), ("symmetric", "symmetric")]
    )
    @pytest.mark.parametrize("shape", [(5, 4), (2, 3), (1, 1)])
    def test_pad_is_numpys_also_beyond_the_image(self, boundary: Any, numpy_name: str, shape: tuple[int, int]) -> None:
        x = images(2, 1, *shape)
        expected = np.pad(x.numpy(), ((0, 0), (0, 0), (7, 2), (0, 9)), mode=numpy_name)  # type: ignore[call-overload]
        assert torch.equal(pad(x, (7, 2), (0, 9), boundary), torch.from_numpy(expected))

    def test_correlate_takes_one_kernel_or_one_per_image(self) -> None:
        x, kernels = images(3, 2, 6, 7, dtype=torch.float64), images(3, 3, 2, dtype=torch.float64)
        windows = x.unfold(2, 3, 1).unfold(3, 2, 1)
        torch.testing.assert_close(correlate(x, kernels), torch.einsum("bchwij,bij->bchw", windows, kernels))
        torch.testing.assert_close(correlate(x, kernels[0]), torch.einsum("bchwij,ij->bchw", windows, kernels[0]))

    @pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 6.0])
    def test_gaussian_filter_with_symmetric_boundary(self, sigma: float) -> None:
        x = images(2, 3, 11, 8, dtype=torch.float64)
        common = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=3.0)
        np.testing.assert_allclose(gaussian_filter(x, sigma, 3.0, "symmetric").numpy(), common, atol=1e-12)


def impulse(n: int, side: int) -> Tensor:
    x = torch.zeros(n, 1, side, side, dtype=torch.float64)
    x[:, :, side // 2, side // 2] = 1.0
    return x


class TestBlurs:
    @pytest.mark.parametrize(
        ("function", "parameters"),
        [
            (gaussian_blur, {"sigma": 1.5}),
            (defocus_blur, {"radius": 2.5, "alias_blur": 0.5}),
            (defocus_blur, {"radius": 9, "alias_blur": 0.5}),
            (motion_blur, {"radius": 6, "sigma": 2.0}),
        ],
    )
    def test_keep_constants_and_light(self, function: Callable[..., Tensor], parameters: dict[str, Any]) -> None:
        constant = torch.full((4, 2, 7, 9), 0.3, dtype=torch.float64)
        blurred = function(None, constant, None, random=random_of(4), **parameters)
        torch.testing.assert_close(blurred, constant, rtol=0, atol=1e-7)
        light = function(None, impulse(4, 61), None, random=random_of(4), **parameters).sum(dim=(1, 2, 3))
        torch.testing.assert_close(light, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)

    def test_gaussian_blur_is_the_filter_clipped(self) -> None:
        x = images(3, 3, 9, 9)
        assert torch.equal(gaussian_blur(None, x, None, random=None, sigma=0.7), gaussian_filter(x, 0.7).clamp(0, 1))
        assert torch.equal(gaussian_blur(None, x, None, random=None, sigma=0.0), x)

    def test_disk_counts_lattice_points(self) -> None:
        """Without smoothing: Gauss's circle problem, 1, 5, 9, 21, 29, 49, 317 points."""
        for radius, points in ((0.9, 1), (1, 5), (1.5, 9), (2.5, 21), (3, 29), (4, 49), (10, 317)):
            kernel = disk(radius, 1e-3)
            assert set(kernel.unique().tolist()) == {0.0, 1 / points}
            assert int((kernel > 0).sum()) == points
            assert len(kernel) == 2 * (int(radius) + (1 if radius <= 8 else 2)) + 1

    def test_disk_of_one_pixel_is_its_smoothing(self) -> None:
        side = math.exp(-0.5 / 0.4**2)
        weights = torch.tensor([side, 1.0, side], dtype=torch.float64) / (1 + 2 * side)
        torch.testing.assert_close(disk(0.3, 0.4), torch.outer(weights, weights))

    @pytest.mark.parametrize(("radius", "alias_blur"), [(0.3, 0.4), (1.5, 0.1), (3, 0.5), (8, 0.5), (10, 0.5)])
    def test_disk_sums_to_one_and_has_the_symmetry_of_the_square(self, radius: float, alias_blur: float) -> None:
        kernel = disk(radius, alias_blur)
        assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-12)
        for same in (kernel.T, kernel.flip(0), kernel.flip(1)):
            torch.testing.assert_close(kernel, same)

    def test_defocus_is_scipys_convolution(self) -> None:
        x = images(2, 3, 9, 12, dtype=torch.float64)
        kernel = disk(1.5, 0.3).numpy()
        expected = ndimage.convolve(x.numpy(), kernel[None, None], mode="mirror")
        got = defocus_blur(None, x, None, random=None, radius=1.5, alias_blur=0.3)
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)

    def test_defocus_answers_an_impulse_with_its_kernel(self) -> None:
        got = defocus_blur(None, impulse(1, 13), None, random=None, radius=3, alias_blur=0.4)
        torch.testing.assert_close(got[0, 0], torch.nn.functional.pad(disk(3, 0.4), (2, 2, 2, 2)))


class TestMotionBlur:
    def test_equals_the_definition(self) -> None:
        """Pixel by pixel along the line, from each image's own angle."""
        x, radius, sigma = images(4, 2, 9, 11, dtype=torch.float64), 3, 1.7
        weights = np.exp(-0.5 * (np.arange(7) / sigma) ** 2)
        weights /= weights.sum()
        expected = np.zeros_like(x.numpy())
        for image, angle in enumerate(angles(random_of(4)).double().tolist()):
            for i, weight in enumerate(weights):
                rows = np.clip(np.arange(9) + round(i * math.sin(angle)), 0, 8)
                columns = np.clip(np.arange(11) + round(i * math.cos(angle)), 0, 10)
                expected[image] += weight * x.numpy()[image][:, rows][:, :, columns]
        got = motion_blur(None, x, None, random=random_of(4), radius=radius, sigma=sigma)
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)

    def test_answers_an_impulse_with_its_kernel_turned_round(self) -> None:
        kernel = line_kernels(angles(random_of(3)), 4, 2.0)
        got = motion_blur(None, impulse(3, 17), None, random=random_of(3), radius=4, sigma=2.0)
        reach = kernel.shape[1] // 2
        torch.testing.assert_close(got[:, 0, 8 - reach : 9 + reach, :9].float(), kernel.flip(1, 2))
        assert got[:, :, :, 9:].max() == 0

    def test_straight_and_diagonal_trails(self) -> None:
        flat, steep = line_kernels(torch.tensor([0.0, STEEPEST]), 2, 1.0).double()
        weights = torch.exp(-0.5 * torch.arange(5, dtype=torch.float64) ** 2)
        weights /= weights.sum()
        torch.testing.assert_close(flat[3], weights, rtol=0, atol=1e-7)
        # i / sqrt 2 = 0, 0.7, 1.4, 2.1, 2.8, thus the pixels 0, 1, 1, 2, 3 of the diagonal
        trail = torch.stack([weights[0], weights[1] + weights[2], weights[3], weights[4]])
        torch.testing.assert_close(steep[3:].diagonal(), trail, rtol=0, atol=1e-7)
        torch.testing.assert_close(steep.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-6)

    def test_angles_are_uniform_within_45_degrees(self) -> None:
        angle = angles(random_of(4000)).double()
        assert angle.abs().max() <= STEEPEST
        assert_mean(angle, 0.0)
        assert_mean(angle**2, STEEPEST**2 / 3)


class TestShotNoise:
    @pytest.mark.parametrize("photons", [15, 60.5, 500])
    @pytest.mark.parametrize("value", [0.004, 0.13, 0.3])
    def test_mean_and_variance(self, value: float, photons: float) -> None:
        """White clips one count in 10^5 at most, which moves neither by a hundredth of its standard error."""
        x, rate = torch.full((300, 1, 14, 14), value, dtype=torch.float64), value * photons
        count = shot_noise(None, x, None, random=random_of(300), photons=photons).flatten() * photons
        assert_mean(count, rate)
        assert_mean((count - rate) ** 2, rate)

    @pytest.mark.parametrize(("value", "photons"), [(0.11, 6), (0.5, 5), (0.25, 4), (0.7, 25)])
    def test_probabilities(self, value: float, photons: int) -> None:
        """Pearson's chi-square against the law, clipped; rates 0.66 (a sum), 2.5 (both), 1 (a table row), 17.5."""
        x = torch.full((400, 1, 20, 20), value)
        count = (shot_noise(None, x, None, random=random_of(400), photons=photons) * photons).round().long().flatten()
        law = poisson.pmf(np.arange(photons + 1), value * photons)
        law[-1] = poisson.sf(photons - 1, value * photons)
        expected = law * len(count)
        found = torch.bincount(count, minlength=photons + 1).double().numpy()
        keep = expected >= 10
        found, expected = ([*a[keep], a[~keep].sum()] for a in (found, expected))
        statistic = sum((f - e) ** 2 / e for f, e in zip(found, expected, strict=True) if e > 0)
        assert statistic <= chi2.isf(FALSE_ALARM, sum(e > 0 for e in expected) - 1)

    def test_black_stays_and_neighbours_are_independent(self) -> None:
        x = torch.zeros(300, 2, 10, 10)
        assert shot_noise(None, x, None, random=random_of(300), photons=7).max() == 0
        count = shot_noise(None, x + 0.4, None, random=random_of(300), photons=30).double() * 30 - 12
        assert_mean((count[:, 0] * count[:, 1]).flatten(), 0.0)
        assert_mean((count[..., 1:] * count[..., :-1]).flatten(), 0.0)

    def test_brightest_and_most(self) -> None:
        x = torch.ones(50, 1, 20, 20)
        for photons in (0.5, 1, MOST_PHOTONS):
            moved = shot_noise(None, x, None, random=random_of(50), photons=photons)
            share = float(poisson.sf(math.ceil(photons) - 1, photons))  # clipped at, or exactly, white
            assert_mean((moved == 1).double().flatten(), share)


class TestBrightness:
    def test_is_the_value_of_hsv(self) -> None:
        x = images(3, 3, 6, 6, dtype=torch.float64)
        x[0, :, 0, 0] = 0.0
        x[0, :, 0, 1] = torch.tensor([0.0, 1.0, 0.0])
        x[0, :, 0, 2] = 1.0
        for shift in (0.05, 0.5, -0.4):
            moved = brightness(None, x, None, random=None, shift=shift)
            for before, after in zip(
                x.permute(0, 2, 3, 1).reshape(-1, 3).tolist(),
                moved.permute(0, 2, 3, 1).reshape(-1, 3).tolist(),
                strict=True,
            ):
                hue, saturation, value = colorsys.rgb_to_hsv(*before)
                expected = colorsys.hsv_to_rgb(hue, saturation, min(max(value + shift, 0.0), 1.0))
                assert after == pytest.approx(expected, abs=1e-12)

    def test_grey_is_shifted(self) -> None:
        x = images(2, 1, 5, 5)
        x[0, 0, 0, 0] = 0.0
        torch.testing.assert_close(brightness(None, x, None, random=None, shift=0.3), (x + 0.3).clamp(0, 1))


class TestPixelate:
    def test_by_hand(self) -> None:
        x = torch.tensor(
            [[0.0, 0.2, 0.4, 0.4], [0.2, 0.4, 0.4, 0.4], [1.0, 0.0, 0.1, 0.3], [0.0, 1.0, 0.5, 0.7]],
            dtype=torch.float64,
        )[None, None]
        half = torch.tensor([[0.2, 0.4], [0.5, 0.4]], dtype=torch.float64).repeat_interleave(2, 0)
        torch.testing.assert_close(pixelate(None, x, None, random=None, factor=0.5)[0, 0], half.repeat_interleave(2, 1))
        # 3 cells of 4/3 pixels; the centres 1/2, 3/2, 5/2, 7/2 lie in cells 0, 1, 1, 2
        cells = pixelate(None, x, None, random=None, factor=0.75)[0, 0]
        expected = torch.tensor([[0.0, 0.3, 0.3, 0.4], [0.6, 0.225, 0.225, 0.35], [0.0, 0.75, 0.75, 0.7]]).double()
        torch.testing.assert_close(cells, expected[[0, 1, 1, 2]])
        torch.testing.assert_close(
            pixelate(None, x, None, random=None, factor=0.2)[0, 0], x.mean().expand(4, 4).contiguous()
        )

    @pytest.mark.parametrize("factor", [0.3, 0.65, 0.95, 1.0])
    def test_twice_is_once(self, factor: float) -> None:
        x = images(2, 3, 28, 15, dtype=torch.float64)
        once = pixelate(None, x, None, random=None, factor=factor)
        torch.testing.assert_close(pixelate(None, once, None, random=None, factor=factor), once)
        assert torch.equal(once, x) == (factor == 1.0)

    @pytest.mark.parametrize(
        ("shape", "factor"), [((1, 28, 28), 0.95), ((1, 28, 28), 0.65), ((3, 64, 64), 0.7), ((3, 32, 32), 0.85)]
    )
    def test_is_pillows_box_filter_up_to_its_bytes(self, shape: tuple[int, int, int], factor: float) -> None:
        picture = smooth_bytes(1, *shape)
        small = (int(shape[2] * factor), int(shape[1] * factor))
        image = Image.fromarray(picture[0].permute(1, 2, 0).squeeze(2).numpy())
        image = image.resize(small, Image.Resampling.BOX).resize((shape[2], shape[1]), Image.Resampling.BOX)
        expected = torch.tensor(np.array(image)).view(shape[1], shape[2], -1).permute(2, 0, 1)
        moved = 255 * pixelate(None, picture.double() / 255, None, random=None, factor=factor)[0]
        assert (moved - expected).abs().max() <= 1.0 + 1e-9  # Pillow rounds twice


class TestJPEG:
    @pytest.mark.parametrize("quality", [1, 7, 25, 50, 80, 100])
    @pytest.mark.parametrize("shape", [(1, 28, 28), (1, 27, 30), (1, 8, 8), (3, 64, 64), (3, 33, 47), (3, 8, 8)])
    def test_equals_pillow(self, shape: tuple[int, ...], quality: int) -> None:
        pictures = smooth_bytes(8, *shape)
        got = 255 * jpeg_compression(None, pictures.double() / 255, None, random=None, quality=quality)
        for picture, found in zip(pictures, got.round().byte(), strict=True):
            array, file = picture.permute(1, 2, 0).numpy(), io.BytesIO()
            Image.fromarray(array if len(picture) == 3 else array[:, :, 0]).save(file, "JPEG", quality=quality)
            expected = np.array(Image.open(file)).reshape(array.shape)
            assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)

    def test_keeps_the_type_and_takes_no_images(self) -> None:
        for dtype in (torch.float32, torch.float64):
            assert jpeg_compression(None, images(2, 3, 8, 8, dtype=dtype), None, random=None, quality=50).dtype == dtype
        assert jpeg_compression(None, images(0, 3, 8, 8), None, random=None, quality=50).shape == (0, 3, 8, 8)

    def test_quality_100_nearly_keeps_and_less_keeps_less(self) -> None:
        for channels in (1, 2):  # with three channels the halved chrominance is lost at any quality
            pictures = smooth_bytes(4, channels, 24, 24).double() / 255
            losses = [
                float((jpeg_compression(None, pictures, None, random=None, quality=q) - pictures).abs().mean() * 255)
                for q in (100, 80, 50, 20, 5)
            ]
            assert losses == sorted(losses)
            assert losses[0] < 0.5

    def test_no_batch_and_no_order_changes_a_rounding(self) -> None:
        x = images(40, 3, 20, 20)
        whole = jpeg_compression(None, x, None, random=None, quality=40)
        assert torch.equal(whole.flip(0), jpeg_compression(None, x.flip(0), None, random=None, quality=40))
        assert torch.equal(whole[7:8], jpeg_compression(None, x[7:8], None, random=None, quality=40))

    def test_other_numbers_of_channels_are_grey_images(self) -> None:
        x = images(3, 4, 11, 9)
        grey = jpeg_compression(None, x.flatten(0, 1)[:, None], None, random=None, quality=30)
        assert torch.equal(jpeg_compression(None, x, None, random=None, quality=30), grey.view_as(x))


def ramp(side: int) -> Tensor:
    """Two channels that hold each pixel's own row and column, from 0 to 1."""
    line = torch.linspace(0, 1, side, dtype=torch.float64)
    return torch.stack([line[:, None].expand(side, side), line.expand(side, side)])


class TestElasticTransform:
    @pytest.mark.parametrize("shape", SHAPES[:-1])
    def test_without_strength_it_is_the_identity(self, shape: tuple[int, ...]) -> None:
        x = images(3, *shape)
        moved = elastic_transform(None, x, None, random=random_of(3), alpha=0.0, sigma=0.1, affine=0.0)
        torch.testing.assert_close(moved, x, rtol=0, atol=2e-5)

    def test_keeps_constants(self) -> None:
        x = torch.full((3, 1, 10, 12), 0.3)
        moved = elastic_transform(None, x, None, random=random_of(3), alpha=0.5, sigma=0.05, affine=0.2)
        torch.testing.assert_close(moved, x, rtol=0, atol=1e-6)

    def test_affine_part_moves_the_three_corners_where_it_says(self) -> None:
        """On a ramp the result shows where each pixel came from: an affine map that takes q_k = p_k + u_k to p_k."""
        side, affine, n = 41, 0.05, 6
        x = ramp(side).expand(n, 2, side, side)
        moved = elastic_transform(None, x, None, random=random_of(n), alpha=0.0, sigma=0.0, affine=affine)
        source = moved.flip(1) * (side - 1)  # (column, row) that each pixel shows
        inner = slice(14, 27)  # far enough from the edge, whose mirror would fold the ramp
        rows, columns = torch.meshgrid(torch.arange(14.0, 27), torch.arange(14.0, 27), indexing="ij")
        design = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).reshape(-1, 3).double()
        values = source[:, :, inner, inner].flatten(2).transpose(1, 2)
        fit = torch.linalg.lstsq(design.expand(n, -1, -1), values).solution
        torch.testing.assert_close(design @ fit, values, rtol=0, atol=1e-4)  # affine
        c, s = 20.0, 13.0
        corners = torch.tensor([[c + s, c + s], [c + s, c - s], [c - s, c - s]], dtype=torch.float64)
        jitter = side * affine * (2 * random_of(n).uniform((3, 2), stream=1).double() - 1)
        landed = torch.cat([corners + jitter, torch.ones(n, 3, 1, dtype=torch.float64)], dim=2) @ fit
        torch.testing.assert_close(landed, corners.expand(n, 3, 2), rtol=0, atol=1e-3)

    def test_flow_is_smoothed_noise(self) -> None:
        """Without smoothing, the displacement is uniform: mean 0, variance (n alpha)^2 / 3, axes independent."""
        side, alpha, n = 40, 0.05, 60
        x = ramp(side).expand(n, 2, side, side)
        moved = elastic_transform(None, x, None, random=random_of(n), alpha=alpha, sigma=0.0, affine=0.0)
        shift = ((moved - x) * (side - 1) / (side * alpha))[:, :, 5:-5, 5:-5]
        rows, columns = shift.transpose(0, 1).flatten(1)
        for axis in (rows, columns):
            assert_mean(axis, 0.0)
            assert_mean(axis**2, 1 / 3)
        assert_mean(rows * columns, 0.0)
        field = 2 * random_of(n).uniform((2, side, side), stream=0).double() - 1
        sigma = 1.5
        smooth = elastic_transform(None, x, None, random=random_of(n), alpha=alpha, sigma=sigma / side, affine=0.0)
        common = ndimage.gaussian_filter(field.numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=3.0)
        got = ((smooth - x) * (side - 1) / (side * alpha))[:, :, 5:-5, 5:-5].flip(1)
        np.testing.assert_allclose(got.numpy(), common[:, :, 5:-5, 5:-5], atol=1e-4)

    @pytest.mark.parametrize("preset", ["cifar10_c", "tiny_imagenet_c"])
    def test_severity_is_how_much_neighbours_part(self, preset: str) -> None:
        """The published levels trade the affine jerk, which moves pixels far but together, for a rougher flow.

        So neither the distance that pixels move nor the change of the image grows, but this does: the second
        differences of the displacement, which an affine map does not have.
        """
        levels = yaml.safe_load((CONF / "elastic_transform.yaml").read_text())["elastic_transform"]["presets"][preset]
        side, n = 64, 20
        x = ramp(side).expand(n, 2, side, side)
        parted = []
        for parameters in levels:
            moved = elastic_transform(None, x, None, random=random_of(n), **parameters)[:, :, 24:40, 24:40]
            parted.append(float((moved[..., 2:] - 2 * moved[..., 1:-1] + moved[..., :-2]).abs().mean()))
        assert parted == sorted(parted)
        assert parted[0] < 1e-6 < parted[1]


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (shot_noise, {"photons": 0}),
        (shot_noise, {"photons": MOST_PHOTONS + 1}),
        (shot_noise, {"photons": math.nan}),
        (gaussian_blur, {"sigma": -0.1}),
        (gaussian_blur, {"sigma": math.inf}),
        (defocus_blur, {"radius": -1, "alias_blur": 0.1}),
        (defocus_blur, {"radius": 1, "alias_blur": 0.0}),
        (defocus_blur, {"radius": math.nan, "alias_blur": 0.1}),
        (motion_blur, {"radius": 0, "sigma": 1.0}),
        (motion_blur, {"radius": 2.5, "sigma": 1.0}),
        (motion_blur, {"radius": 2, "sigma": 0.0}),
        (brightness, {"shift": math.nan}),
        (pixelate, {"factor": 0.0}),
        (pixelate, {"factor": 1.1}),
        (jpeg_compression, {"quality": 0}),
        (jpeg_compression, {"quality": 101}),
        (jpeg_compression, {"quality": 50.0}),
        (elastic_transform, {"alpha": -1.0, "sigma": 0.1, "affine": 0.1}),
        (elastic_transform, {"alpha": 1.0, "sigma": math.inf, "affine": 0.1}),
        (elastic_transform, {"alpha": 1.0, "sigma": 0.1, "affine": math.nan}),
    ],
)
def test_parameters_out_of_range_are_refused(function: Callable[..., Tensor], parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        function(None, images(1, 1, 6, 6), None, random=random_of(1), **parameters)
    assert refused.value.option in parameters
