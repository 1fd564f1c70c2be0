"""The Square attack: its published schedule and shapes, and how far it gets."""

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.threats.attacks.square import bump, square, square_share
from tests.checks.attack_cases import pictures, random_of, threshold_net


class TestSquare:
    def test_the_schedule_is_the_published_one(self) -> None:
        """Andriushchenko et al. 2020, section B.2: the iterations of 10,000 after which p is halved."""
        table = {10: 1, 50: 2, 200: 4, 500: 8, 1000: 16, 2000: 32, 4000: 64, 6000: 128, 8000: 256, 9999: 512}
        for last, divisor in table.items():
            assert square_share(0.8, last, 10_000) == 0.8 / divisor
            if last != 9999:
                assert square_share(0.8, last + 1, 10_000) == 0.4 / divisor
            assert square_share(0.8, last // 10, 1_000) == square_share(0.8, last // 10 * 10, 10_000)
        assert square_share(0.3, 0, 10_000) == 0.3

    def test_a_horizon_of_the_queries_is_the_default(self) -> None:
        model, x = threshold_net(), pictures(20)
        y = model(x).argmax(1)
        options = {"random": random_of(20), "epsilon": 0.05, "queries": 100}
        same, longer = (square(model, x, y, horizon=horizon, **options) for horizon in (100, 1000))
        assert torch.equal(square(model, x, y, **options), same)
        assert not torch.equal(longer, same)

    def test_bump_by_its_definition(self) -> None:
        """Rectangles that grow by one pixel a side from the centre of each half, weighing 1, 1/4, 1/9, ..."""
        for side in (3, 5, 9, 12):
            expected = torch.zeros(side, side)
            for first, rows, sign in ((0, side // 2, 1.0), (side // 2, side - side // 2, -1.0)):
                half = torch.zeros(rows, side)
                for k in range(max(rows, side) // 2 + 1):
                    top, left = rows // 2 - k, side // 2 - k
                    half[max(top, 0) : rows // 2 + k + 1, max(left, 0) : side // 2 + k + 1] += 1 / (k + 1) ** 2
                expected[first : first + rows] = sign * half / half.norm()
            torch.testing.assert_close(bump(side), expected / expected.norm())

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12), (1, 3, 3), (2, 1, 4)])
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_any_shape(self, norm: str, shape: tuple[int, int, int]) -> None:
        x, model = pictures(6, shape), threshold_net(shape)
        y = model(x).argmax(1)
        moved = square(model, x, y, random=random_of(6), epsilon=0.1, norm=norm, queries=40)
        assert ((moved != x).flatten(1).any(1)).all()

    def test_squares_reach_every_pixel(self) -> None:
        """The corner pixel alone decides: to fool, a step must set it."""

        class Corner(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                v = x[:, 0, -1, -1] - 0.5
                return torch.stack([-v, v], dim=1)

        x = torch.full((20, 1, 8, 8), 0.45)
        y = torch.zeros(20, dtype=torch.int64)
        for norm, epsilon in (("linf", 0.1), ("l2", 0.4)):
            moved = square(Corner(), x, y, random=random_of(20), epsilon=epsilon, norm=norm, queries=500)
            assert (Corner()(moved).argmax(1) == 1).all()
