"""The threats by themselves: their randomness, their formulas, their configuration."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from scipy import ndimage
from scipy.special import ndtr
from torch import nn

from glr_lightning import config
from glr_lightning.errors import ConfigurationError
from glr_lightning.threats import Attack, AttackFacts, Clean, ImageRandom, Threat, attack, corruption
from glr_lightning.threats.attacks.fgsm import fgsm
from glr_lightning.threats.attacks.input_gradient import input_gradient
from glr_lightning.threats.attacks.lbfgs import lbfgs
from glr_lightning.threats.attacks.square import square
from glr_lightning.threats.clean import clean
from glr_lightning.threats.corruptions.brightness import brightness
from glr_lightning.threats.corruptions.contrast import contrast
from glr_lightning.threats.corruptions.filters import gaussian_filter
from glr_lightning.threats.corruptions.gaussian_noise import gaussian_noise
from glr_lightning.threats.corruptions.glass_blur import glass_blur, partner_draws, swap_coins
from glr_lightning.threats.corruptions.impulse_noise import impulse_noise
from tests.checks.refusals import refused

CONF = Path(__file__).parents[2] / "conf"

# The seeds are fixed, so a test passes always or never. A right implementation with another hash would fail a
# z-score at 4.5 with probability 6.8e-6, a Kolmogorov-Smirnov statistic at 2.5 with 2 exp(-12.5) = 7.5e-6;
# there are about 60 of them, so all together with less than 5e-4.
Z, KS = 4.5, 2.5


@pytest.fixture(autouse=True)
def same_networks_on_one_thread() -> Iterator[None]:
    """One thread: these tensors are so small that several would only wait for each other."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_of(n: int, seed: int = 0) -> ImageRandom:
    return ImageRandom(seed, torch.arange(n))


def z_of_mean(sample: torch.Tensor, mean: float, variance: float) -> float:
    return abs(float(sample.double().mean()) - mean) / math.sqrt(variance / sample.numel())


def ks(values: np.ndarray) -> float:
    """sqrt(n) sup |empirical - uniform| of values that should be uniform on [0, 1]."""
    values, n = np.sort(values), len(values)
    grid = np.arange(n) / n
    return math.sqrt(n) * max(np.max(values - grid), np.max(grid + 1 / n - values))


class TestImageRandom:
    def test_is_splitmix64_down_a_tree_of_seed_image_stream_element(self) -> None:
        def mix(z: int) -> int:
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            return z ^ (z >> 31)

        def child(key: int, number: int) -> int:
            return mix((key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64)

        # SplitMix64's published first output from state 0.
        assert child(0, 0) == 0xE220A8397B1DCDAF
        for seed in (0, -3, 2**63 + 5):
            for image in (0, 7, 2**40):
                got = ImageRandom(seed, torch.tensor([image])).uniform((5,), stream=3)[0]
                key = child(child(child(seed % 2**64, 0), image), 3)
                assert got.tolist() == [(child(key, e) >> 40) / 2**24 for e in range(5)]

    def test_uniform_moments_and_distribution(self) -> None:
        u = random_of(1000).uniform((20, 5), stream=0)
        assert u.dtype == torch.float32
        assert u.min() >= 0
        assert u.max() < 1
        assert z_of_mean(u, 1 / 2, 1 / 12) < Z
        assert z_of_mean((u - 0.5).double() ** 2, 1 / 12, 1 / 180) < Z
        assert ks(u.flatten().double().numpy()) < KS

    def test_open_uniform_stays_inside_where_rounding_would_reach_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first and last of 2**24 steps; one number in 17 million is the last."""
        monkeypatch.setattr(ImageRandom, "uniform", lambda *_: torch.tensor([[0.0, 1.0 - 2.0**-24]]))
        low, high = ImageRandom(0, torch.arange(1)).open_uniform((2,), 0)[0].tolist()
        assert 0 < low < high < 1

    def test_normal_moments_and_distribution(self) -> None:
        z = random_of(1000).normal((20, 5), stream=0)
        assert z.dtype == torch.float32
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert z_of_mean(z.double() ** power, mean, variance) < Z
        assert ks(ndtr(z.flatten().double().numpy())) < KS

    def test_integers_are_uniform(self) -> None:
        draws = random_of(1000).integers(-2, 5, (100,), stream=0)
        for value in range(-2, 5):
            assert z_of_mean(draws == value, 1 / 7, 6 / 49) < Z
        assert set(draws.unique().tolist()) == set(range(-2, 5))

    @pytest.mark.parametrize("lag", [1, 2, 28])
    def test_neighbours_are_uncorrelated(self, lag: int) -> None:
        z = random_of(1000).normal((100,), stream=0)
        pairs = {
            "image": (z[lag:], z[:-lag]),
            "element": (z[:, lag:], z[:, :-lag]),
            "diagonal": (z[lag:, lag:], z[:-lag, :-lag]),
            "stream": (z, random_of(1000).normal((100,), stream=lag)),
            "seed": (z, random_of(1000, seed=lag).normal((100,), stream=0)),
        }
        for name, (left, right) in pairs.items():
            assert z_of_mean(left * right, 0, 1) < Z, name
            assert z_of_mean((left**2 - 1) * (right**2 - 1), 0, 4) < Z, name

    def test_depends_on_the_image_alone(self) -> None:
        every = random_of(50)
        chosen = torch.tensor([41, 3, 3, 17])
        some = ImageRandom(0, chosen)
        for draw in (
            lambda r: r.uniform((3, 4), stream=1),
            lambda r: r.normal((3, 4), stream=1),
            lambda r: r.integers(0, 9, (3, 4), stream=1),
        ):
            assert torch.equal(draw(every)[chosen], draw(some))
        assert torch.equal(every.uniform((9,), stream=0)[:, :4], every.uniform((4,), stream=0))

    def test_leaves_the_global_generator_alone(self) -> None:
        before = torch.get_rng_state()
        random_of(3).normal((4,), stream=0)
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize(
        ("seed", "index", "option"),
        [
            (0.5, torch.arange(2), "seed"),
            (True, torch.arange(2), "seed"),
            (0, torch.zeros(2), "index"),
            (0, torch.zeros(2, 2, dtype=torch.int64), "index"),
        ],
    )
    def test_refuses(self, seed: int, index: torch.Tensor, option: str) -> None:
        with refused(option):
            ImageRandom(seed, index)

    def test_refuses_an_empty_range(self) -> None:
        with refused(None, "integers need low < high"):
            random_of(1).integers(3, 3, (1,), stream=0)


class TestNoise:
    def test_gaussian_noise_has_its_standard_deviation(self) -> None:
        x = torch.full((200, 1, 20, 20), 0.5)
        noise = gaussian_noise(None, x, None, random=random_of(200), std=0.07) - x  # |z| < 6.7: nothing is clipped
        assert z_of_mean(noise, 0, 0.07**2) < Z
        assert z_of_mean(noise.double() ** 2, 0.07**2, 2 * 0.07**4) < Z

    def test_gaussian_noise_is_clipped(self) -> None:
        moved = gaussian_noise(None, torch.zeros(10, 1, 20, 20), None, random=random_of(10), std=3.0)
        assert moved.min() == 0
        assert moved.max() == 1
        assert z_of_mean(moved == 0, 0.5, 0.25) < Z

    def test_impulse_noise_strikes_its_share_by_a_fair_coin(self) -> None:
        x, amount = torch.full((200, 3, 20, 20), 0.5), 0.07
        moved = impulse_noise(None, x, None, random=random_of(200), amount=amount)
        for value in (0.0, 1.0):
            share = amount / 2
            assert z_of_mean(moved == value, share, share * (1 - share)) < Z
        assert z_of_mean(moved == 0.5, 1 - amount, amount * (1 - amount)) < Z
        struck = (moved != 0.5).double() - amount  # channels by themselves
        assert z_of_mean(struck[:, 0] * struck[:, 1], 0, (amount * (1 - amount)) ** 2) < Z

    @pytest.mark.parametrize("amount", [0.0, 1.0])
    def test_impulse_noise_at_its_ends(self, amount: float) -> None:
        x = torch.full((4, 1, 5, 5), 0.5)
        assert ((impulse_noise(None, x, None, random=random_of(4), amount=amount) != x) == bool(amount)).all()

    def test_levels_share_their_luck(self) -> None:
        x = torch.full((4, 1, 9, 9), 0.5)
        weak, strong = (impulse_noise(None, x, None, random=random_of(4), amount=a) != x for a in (0.1, 0.4))
        assert (strong | ~weak).all()


class TestContrast:
    def test_closed_form_per_image_and_channel(self) -> None:
        x = torch.tensor([[[[0.0, 0.4], [0.2, 0.6]], [[1.0, 1.0], [0.0, 0.0]]]])  # means 0.3 and 0.5
        expected = torch.tensor([[[[0.15, 0.35], [0.25, 0.45]], [[0.75, 0.75], [0.25, 0.25]]]])
        torch.testing.assert_close(contrast(None, x, None, random=None, factor=0.5), expected)

    def test_one_keeps_zero_flattens_and_more_is_clipped(self) -> None:
        x = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(contrast(None, x, None, random=None, factor=1.0), x)
        flat = contrast(None, x, None, random=None, factor=0.0)
        torch.testing.assert_close(flat, x.mean(dim=(2, 3), keepdim=True).expand_as(x))
        wild = contrast(None, x, None, random=None, factor=9.0)
        assert wild.min() == 0
        assert wild.max() == 1


def slow_glass_blur(
    x: np.ndarray, draws: list[np.ndarray], coins: list[np.ndarray], sigma: float, max_delta: int, iterations: int
) -> np.ndarray:
    """The definition, for one image [C, H, W], pixel by pixel; draws and coins [rows, columns], one a pass."""
    _, height, width = x.shape
    blur = (0, sigma, sigma)
    x = ndimage.gaussian_filter(x, blur, mode="nearest", truncate=4.0)
    side = 2 * max_delta
    for k in range(iterations):
        for a, h in enumerate(range(height - max_delta, max_delta, -1)):
            for b, w in enumerate(range(width - max_delta, max_delta, -1)):
                if not coins[k][a, b]:
                    continue
                dy, dx = draws[k][a, b] // side - max_delta, draws[k][a, b] % side - max_delta
                here = x[:, h, w].copy()
                x[:, h, w] = x[:, h + dy, w + dx]
                x[:, h + dy, w + dx] = here
    return np.clip(ndimage.gaussian_filter(x, blur, mode="nearest", truncate=4.0), 0, 1)


class TestGlassBlur:
    @pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 12), (1, 8, 8)])
    @pytest.mark.parametrize(
        ("sigma", "max_delta", "iterations"),
        [(0.05, 1, 1), (0.4, 1, 2), (0.7, 2, 1), (0.9, 2, 3), (0.6, 3, 2), (0.3, 1, 0)],
    )
    @pytest.mark.parametrize("swap_probability", [1.0, 0.5])
    def test_equals_the_definition(
        self, shape: tuple[int, ...], sigma: float, max_delta: int, iterations: int, swap_probability: float
    ) -> None:
        x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        random = random_of(3, seed=5)
        constants = {"sigma": sigma, "max_delta": max_delta, "iterations": iterations}
        fast = glass_blur(None, x, None, random=random, **constants, swap_probability=swap_probability)
        place = (random, shape[1], shape[2], max_delta)
        draws = [partner_draws(*place, k).numpy() for k in range(iterations)]
        coins = [swap_coins(*place, k, swap_probability).numpy() for k in range(iterations)]
        slow = [
            slow_glass_blur(image.numpy().copy(), [d[i] for d in draws], [c[i] for c in coins], **constants)
            for i, image in enumerate(x)
        ]
        np.testing.assert_allclose(fast.numpy(), np.stack(slow), atol=1e-12)

    def test_partners_are_drawn_from_the_half_open_square(self) -> None:
        draws = torch.stack([partner_draws(random_of(400), 10, 12, 2, number) for number in range(3)])
        assert draws.shape == (3, 400, 6, 8)
        assert draws.min() == 0
        assert draws.max() == 15

    def test_swaps_happen_with_their_probability(self) -> None:
        x = torch.rand(5, 1, 9, 9, generator=torch.Generator().manual_seed(0))
        still = glass_blur(None, x, None, random=random_of(5), sigma=0, max_delta=1, iterations=2, swap_probability=0)
        assert torch.equal(still, x)
        coins = torch.stack([swap_coins(random_of(400), 10, 12, 2, number, 0.3) for number in range(3)])
        assert z_of_mean(coins, 0.3, 0.21) < Z

    def test_passes_are_one_stream_of_draws(self) -> None:
        passes = torch.cat([partner_draws(random_of(3), 10, 12, 2, number).flatten(1) for number in range(3)], dim=1)
        assert torch.equal(passes, random_of(3).integers(0, 16, (3, 6, 8), stream=0).flatten(1))

    def test_without_blur_it_moves_pixels_and_makes_none(self) -> None:
        x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        moved = glass_blur(None, x, None, random=random_of(5), sigma=0.05, max_delta=1, iterations=2)
        assert torch.equal(moved.flatten(1).sort(dim=1).values, x.flatten(1).sort(dim=1).values)
        assert (moved != x).double().mean() > 0.5

    def test_an_image_too_small_to_swap_is_only_blurred(self) -> None:
        x = torch.rand(2, 1, 4, 9, generator=torch.Generator().manual_seed(0))
        moved = glass_blur(None, x, None, random=random_of(2), sigma=0.5, max_delta=2, iterations=2)
        torch.testing.assert_close(moved, gaussian_filter(gaussian_filter(x, 0.5), 0.5))

    @pytest.mark.parametrize("sigma", [0.0, 0.05, 0.13, 0.25, 0.4, 0.9, 3.0])
    def test_gaussian_filter_is_the_common_one(self, sigma: float) -> None:
        x = torch.rand(2, 3, 11, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        common = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
        np.testing.assert_allclose(gaussian_filter(x, sigma).numpy(), common, atol=1e-12)


class TestFGSM:
    def test_two_linear_classes_reach_the_optimum(self) -> None:
        """The margin d x, d = w_y - w_other, falls by epsilon ||d||_1; no corner of the ball does better."""
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
        x = 0.3 + 0.4 * torch.rand(50, 1, 4, 4, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 2, (50,), generator=generator)
        weight, epsilon = model[1].weight.detach(), 0.2
        difference = (weight[y] - weight[1 - y]).view_as(x)
        moved = fgsm(model, x, y, random=None, epsilon=epsilon)
        torch.testing.assert_close(moved, x - epsilon * difference.sign())

        fall = ((x - moved) * difference).flatten(1).sum(1)
        torch.testing.assert_close(fall, epsilon * difference.flatten(1).abs().sum(1))
        corners = torch.randint(0, 2, (200, *x.shape), generator=generator).double() * 2 - 1
        assert ((epsilon * corners * difference).flatten(2).sum(2) <= fall + 1e-12).all()

    def test_gradient_of_softmax_regression(self) -> None:
        """d/dx of the cross-entropy of W x is W^T (softmax(W x) - onehot(y))."""
        generator = torch.Generator().manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
        x = torch.rand(7, 3, 2, 2, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 5, (7,), generator=generator)
        error = model(x).detach().softmax(1) - nn.functional.one_hot(y, 5)
        expected = (error @ model[1].weight.detach()).view_as(x)
        torch.testing.assert_close(input_gradient(model, x, y), expected)
        torch.testing.assert_close(input_gradient(model, x[:2], y[:2]), expected[:2])
        assert all(p.grad is None for p in model.parameters())

    def test_stays_in_the_ball_and_the_box(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        moved = fgsm(model, x, torch.zeros(20, dtype=torch.int64), random=None, epsilon=0.3)
        assert (moved - x).abs().max() <= 0.3 + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1

    def test_no_path_means_no_step(self) -> None:
        class Blind(nn.Module):
            def __init__(self, layer: nn.Module) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.layer((x.flatten(1) > 0.5).float())

        x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
        for layer in (nn.Linear(4, 2), nn.Identity()):  # a graph without x, and no graph
            assert torch.equal(fgsm(Blind(layer), x, y, random=None, epsilon=0.1), x)

    def test_refuses_inference_mode_rather_than_take_it_for_a_zero_gradient(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        with torch.inference_mode(), pytest.raises(ConfigurationError, match="inference_mode"):
            fgsm(model, torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), random=None, epsilon=0.1)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (gaussian_noise, {"std": -0.1}),
        (gaussian_noise, {"std": "abc"}),
        (brightness, {"shift": math.nan}),
        (gaussian_noise, {"std": math.inf}),
        (impulse_noise, {"amount": 1.1}),
        (impulse_noise, {"amount": math.nan}),
        (contrast, {"factor": -1.0}),
        (glass_blur, {"sigma": -1.0, "max_delta": 1, "iterations": 1}),
        (glass_blur, {"sigma": 0.5, "max_delta": 0, "iterations": 1}),
        (glass_blur, {"sigma": 0.5, "max_delta": 1, "iterations": -1}),
        (glass_blur, {"sigma": 0.5, "max_delta": 1, "iterations": 1, "swap_probability": 1.1}),
    ],
)
def test_functions_refuse_parameters_out_of_range(function, parameters) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigurationError) as refusal:
        function(None, torch.rand(1, 1, 6, 6), None, random=random_of(1), **parameters)
    assert refusal.value.option in parameters


class TestThreat:
    presets = {"mild": [{"std": 0.1}, {"std": 0.2}]}  # noqa: RUF012

    def test_corruption_numbers_its_severities(self) -> None:
        assert [level for level, _ in corruption(gaussian_noise, "mild", self.presets).levels] == [1, 2]
        threat = corruption(gaussian_noise, "mild", self.presets, severities=[2, 1])
        assert list(threat.levels) == [(2, {"std": 0.2}), (1, {"std": 0.1})]
        assert (threat.kind, threat.level_name, threat.preset) == ("corruption", "severity", "mild")

    @pytest.mark.parametrize("epsilon", [0.1, [0.1], [0.1, 1]])
    def test_attack_takes_one_epsilon_or_several(self, epsilon: float | list[float]) -> None:
        threat = attack(fgsm, epsilon=epsilon, gradient_source="transfer")
        bounds = epsilon if isinstance(epsilon, list) else [epsilon]
        assert list(threat.levels) == [(b, {"epsilon": b}) for b in bounds]
        assert (threat.kind, threat.level_name, threat.norm) == ("attack", "epsilon", "linf")

    def test_an_attack_without_bound_refuses_one(self) -> None:
        with refused("epsilon", "use epsilon=null"):
            attack(lbfgs, epsilon=0.1)

    @pytest.mark.parametrize("epsilon", [0, -0.1, math.nan, math.inf, True, "0.1", [], ["0.1"], [0.1, None], None])
    def test_attack_refuses_epsilon(self, epsilon: object) -> None:
        with refused("epsilon", "a number above 0, or a "):
            attack(fgsm, epsilon=epsilon, gradient_source="transfer")  # type: ignore[arg-type]

    @pytest.mark.parametrize("severities", [[], [0], [3], [1.0], [True], ["1"], "1", 1])
    def test_corruption_refuses_severities(self, severities: object) -> None:
        with refused("severities"):
            corruption(gaussian_noise, "mild", self.presets, severities)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("make", "option", "advice"),
        [
            (
                lambda: corruption(gaussian_noise, "wild", {"mild": [], "odd": []}),
                "preset",
                "choose from 'mild', 'odd'",
            ),
            (
                lambda: corruption(gaussian_noise, "a", {"a": [{"sdt": 1}]}, [1]),
                "presets.a[0].sdt",
                "Did you mean std?",
            ),
            (lambda: corruption(impulse_noise, "a", {"a": [{}]}, [1]), None, "impulse_noise cannot be called"),
            (
                lambda: attack(fgsm, epsilon=0.1, gradient_source="guess"),
                "gradient_source",
                "one of 'none', 'transfer'",
            ),
            (
                lambda: attack(square, epsilon=0.1, gradient_source="straight_through"),
                "gradient_source",
                "choose from 'none'",
            ),
            (lambda: attack(fgsm, epsilon=0.1, norm="l7"), "norm", "one of "),
            (lambda: attack(fgsm, epsilon=0.1, norm="l2"), "norm", "choose from 'linf'"),
            (lambda: attack(lambda model, x, y, *, random: x), "function", "put @glr_lightning.threats.declare"),
            (lambda: attack("my_package.nowhere.attack"), "function", "'my_package.nowhere.attack'"),
            (lambda: attack(fgsm, epsilon=0.1, steps=3), "steps", "there is no option"),
            (lambda: AttackFacts(norms=("l7",)), "norm", "'l7'; choose from"),
            (lambda: AttackFacts(gradient_sources=("guess",)), "gradient_source", "'guess'; choose from"),
            (lambda: Clean(levels=()), "levels", "give at least one"),
            (lambda: Attack(function=clean, gradient_sources=()), "gradient_sources", "use 'none'"),
            (lambda: Attack(function=clean, norm="l2"), None, "give every level its epsilon"),
        ],
    )
    def test_refuses(self, make: Callable[[], object], option: str | None, advice: str) -> None:
        with refused(option, advice):
            make()


CORRUPTIONS = ["gaussian_noise", "impulse_noise", "glass_blur", "contrast"]
ALL_CORRUPTIONS = [
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "gaussian_blur"),
    *("brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
]


class TestConfiguration:
    @pytest.fixture
    def threats(self, tmp_path: Path):  # type: ignore[no-untyped-def]
        """threats(*overrides) -> the instantiated node; the configuration's default is threat: [standard]."""
        search = f"hydra: {{searchpath: ['file://{CONF}']}}"
        (tmp_path / "main.yaml").write_text(f"defaults: [_self_, {{threat: [standard]}}]\n{search}\n")

        def build(*overrides: str) -> dict[str, Threat]:
            with initialize_config_dir(str(tmp_path), version_base="1.3"):
                nodes = config.resolve(compose("main", list(overrides)))["threat"]
                return {name: config.build(node, trusted=None) for name, node in nodes.items()}

        return build

    @pytest.mark.parametrize(
        ("override", "names"),
        [
            ("threat=[standard]", ["clean", "fgsm", *CORRUPTIONS]),
            ("threat=standard", ["clean", "fgsm", *CORRUPTIONS]),
            ("threat=[clean,fgsm]", ["clean", "fgsm"]),
            ("threat=corruptions", CORRUPTIONS),
            ("threat=corruptions_all", ALL_CORRUPTIONS),
            ("threat=[clean,corruptions]", ["clean", *CORRUPTIONS]),
            ("threat=[corruptions,contrast]", CORRUPTIONS),
            ("threat=contrast", ["contrast"]),
            ("~threat.fgsm", ["clean", *CORRUPTIONS]),
        ],
    )
    def test_threats_are_chosen_by_list(self, threats, override: str, names: list[str]) -> None:  # type: ignore[no-untyped-def]
        assert list(threats(override)) == names

    def test_levels_are_chosen_by_override(self, threats) -> None:  # type: ignore[no-untyped-def]
        chosen = threats(
            "threat.fgsm.epsilon=[0.1,0.2]",
            "threat.fgsm.gradient_source=autograd",
            "threat.contrast.preset=tiny_imagenet_c",
            "threat.contrast.severities=[5]",
        )
        assert [level for level, _ in chosen["fgsm"].levels] == [0.1, 0.2]
        assert chosen["fgsm"].gradient_sources == ("autograd",)
        assert list(chosen["contrast"].levels) == [(5, {"factor": 0.05})]

    def test_presets_are_the_published_ones(self, threats) -> None:  # type: ignore[no-untyped-def]
        published = {
            "cifar10_c": {
                "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
                "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
                "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
                "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
            },
            "tiny_imagenet_c": {
                "gaussian_noise": [0.04, 0.08, 0.12, 0.15, 0.18],
                "impulse_noise": [0.01, 0.02, 0.05, 0.08, 0.14],
                "glass_blur": [(0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)],
                "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
            },
        }
        assert threats()["contrast"].preset == "cifar10_c"
        for preset, constants in published.items():
            chosen = threats("threat=corruptions", *(f"threat.{name}.preset={preset}" for name in constants))
            for name, values in constants.items():
                got = [tuple(parameters.values()) for _, parameters in chosen[name].levels]
                assert got == [value if isinstance(value, tuple) else (value,) for value in values]
                assert chosen[name].preset == preset
