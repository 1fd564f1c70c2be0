"""What attacks are given: gradients against exact oracles, queries counted, vanishing gradients on record."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.noise import Gaussian, Laplace, Noise
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.threats import ImageRandom
from glr_lightning.threats.attacks.input_gradient import (
    cross_entropy,
    input_gradient,
    likelihood_ratio_gradient,
    margin,
    scales,
    straight_through,
)
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import GradientOptions
from tests.checks.refusals import refused
from tests.checks.zscores import assert_gradient

HIDDEN, CLASSES, SHAPE = 4, 3, (1, 2, 3)


def network(activation: nn.Module | None = None, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    first, last = nn.Linear(math.prod(SHAPE), HIDDEN), nn.Linear(HIDDEN, CLASSES)
    nn.init.normal_(last.weight, std=1.5)
    return nn.Sequential(nn.Flatten(), first, activation or HardThreshold(), last).double().eval()


def batch(n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def smoothed_gradient(net: nn.Sequential, x: Tensor, y: Tensor, sigma: Tensor, loss: Any) -> Tensor:
    """d/dx E[loss] with noise at the thresholds, exactly: a sum over all patterns of the hidden units."""
    image = x.clone().requires_grad_()
    on = Gaussian().cdf(net[1](net[0](image)) / sigma)
    total = torch.zeros(len(x), dtype=x.dtype)
    for pattern in itertools.product((0.0, 1.0), repeat=HIDDEN):
        h = torch.tensor(pattern, dtype=x.dtype)
        probability = torch.where(h > 0, on, 1 - on).prod(1)
        total = total + probability * loss(net[3](h.expand(len(x), -1)), y).detach()
    return torch.autograd.grad(total.sum(), image)[0]


def many(x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor, ImageRandom]:
    """One image n times, each time with randomness of its own: n independent gradients in one call."""
    return x[:1].repeat(n, 1, 1, 1), y[:1].repeat(n), ImageRandom(0, torch.arange(n))


class TestLikelihoodRatioGradient:
    """Unbiased for the smoothed loss, whatever jumps. False alarms: see zscores."""

    @pytest.mark.parametrize("loss", [cross_entropy, margin])
    def test_of_a_threshold_network_has_the_mean_that_enumeration_gives(self, loss: Any) -> None:
        net, (x, y) = network(), batch()
        sigma = scales(Graph.of(net), 0.5)[0]
        images, labels, random = many(x, y, 20_000)
        samples = likelihood_ratio_gradient(net, images, labels, loss, random=random, copies=8, smoothing=0.5)
        assert_gradient(samples.flatten(1), smoothed_gradient(net, x[:1], y[:1], sigma, loss).flatten(), resolution=0.1)

    def test_memory_is_bounded_by_parts_that_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, (x, y), random = network(), batch(7), ImageRandom(0, torch.arange(7))
        settings: dict[str, Any] = {"random": random, "copies": 8, "smoothing": 0.5}
        whole = likelihood_ratio_gradient(net, x, y, cross_entropy, **settings)
        rows: list[int] = []
        monkeypatch.setattr("glr_lightning.threats.attacks.input_gradient.CHUNK", 2 * 8 * HIDDEN)  # two images
        net[3].register_forward_hook(lambda _, __, out: rows.append(len(out)))
        torch.testing.assert_close(likelihood_ratio_gradient(net, x, y, cross_entropy, **settings), whole)
        assert max(rows) == 2 * 8

    @pytest.mark.parametrize("noise", [Gaussian(), Laplace()])
    def test_of_a_convolution_and_of_the_noise_that_is_kept_on(self, noise: Noise) -> None:
        """A pre-activation at two places, so that the mean is a sum over four patterns; stride and padding."""
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 1, 3, stride=2, padding=1), HardThreshold(), nn.Flatten(), nn.Linear(2, CLASSES)
        )
        net, (x, y) = net.double().eval(), batch()
        image = x[:1].clone().requires_grad_()
        on = noise.cdf(net[0](image) / 0.3).flatten()
        total = torch.zeros((), dtype=x.dtype)
        for pattern in itertools.product((0.0, 1.0), repeat=2):
            h = torch.tensor(pattern, dtype=x.dtype)
            total = total + torch.where(h > 0, on, 1 - on).prod() * cross_entropy(net[3](h[None]), y[:1])[0].detach()
        (exact,) = torch.autograd.grad(total, image)
        images, labels, random = many(x, y, 20_000)
        noisy = NoiseAveraged(net, noise, (0.3, 1e-9), 1).eval()
        options = GradientOptions(copies=8, eot=1)
        query = Query(noisy, images, source="likelihood_ratio", random=random, options=options)
        samples = query.gradient(images, labels)
        assert_gradient(samples.flatten(1), exact.flatten(), resolution=0.1)

    def test_of_a_smooth_network_has_the_mean_that_quadrature_gives(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, CLASSES)).double().eval()
        x, y = batch()
        sigma = scales(Graph.of(net), 0.5)[0]
        z = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]
        density = torch.exp(Gaussian().log_prob(z)) * (z[1] - z[0])
        image = x[:1].clone().requires_grad_()
        scores = net[3](net[2](net[1](net[0](image)) + sigma * z))
        (cross_entropy(scores, y[:1].expand(len(z))) * density.squeeze(1)).sum().backward()
        assert image.grad is not None
        images, labels, random = many(x, y, 20_000)
        samples = likelihood_ratio_gradient(net, images, labels, cross_entropy, random=random, copies=8, smoothing=0.5)
        assert_gradient(samples.flatten(1), image.grad.flatten(), resolution=0.1)

    def test_with_noise_at_inference_it_is_that_of_the_noisy_network(self) -> None:
        """The noise of both layers enters the losses; only that of the first is followed back to the pixels."""
        net, (x, y) = network(), batch()
        sigma = (torch.full((HIDDEN,), 0.7, dtype=torch.float64), 1e-9)
        images, labels, random = many(x, y, 20_000)
        settings: dict[str, Any] = {"random": random, "copies": 8, "smoothing": 123.0, "sigma": sigma}
        samples = likelihood_ratio_gradient(net, images, labels, cross_entropy, **settings)
        expected = smoothed_gradient(net, x[:1], y[:1], sigma[0], cross_entropy)
        assert_gradient(samples.flatten(1), expected.flatten(), resolution=0.1)

    def test_an_image_has_its_gradient_in_any_batch(self) -> None:
        net, (x, y) = network(), batch(9)
        settings: dict[str, Any] = {"copies": 4, "smoothing": 0.5}
        whole = likelihood_ratio_gradient(net, x, y, margin, random=ImageRandom(3, torch.arange(9)), **settings)
        some = torch.tensor([7, 2])
        part = likelihood_ratio_gradient(net, x[some], y[some], margin, random=ImageRandom(3, some), **settings)
        torch.testing.assert_close(part, whole[some], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(("copies", "option", "advice"), [(2, None, "raise copies"), (5, "copies", "use copies=6")])
    def test_refuses_copies_that_are_no_two_pairs(self, copies: int, option: str | None, advice: str) -> None:
        net, (x, y) = network(), batch()
        with refused(option, advice):
            likelihood_ratio_gradient(
                net, x, y, margin, random=ImageRandom(0, torch.arange(3)), copies=copies, smoothing=0.5
            )


class TestGradients:
    def test_margin_is_positive_exactly_where_the_prediction_is_wrong(self) -> None:
        scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
        assert margin(scores, torch.tensor([1, 2])).tolist() == [-1.0, 1.0]

    def test_scales_are_the_rows_norms(self) -> None:
        net = network()
        first, last = scales(Graph.of(net), 0.25)
        torch.testing.assert_close(first, 0.25 * net[1].weight.detach().norm(dim=1))
        torch.testing.assert_close(last, 0.25 * net[3].weight.detach().norm(dim=1))
        conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))
        assert scales(Graph.of(conv), 1.0)[0].shape == (3, 1, 1)

    def test_straight_through_keeps_the_scores_and_multiplies_by_the_slopes(self) -> None:
        net, (x, y) = network(), batch()
        sloped = straight_through(net, 0.5)
        assert torch.equal(sloped(x), net(x))
        sigma = scales(Graph.of(net), 0.5)[0]
        v = net[1](x.flatten(1)).detach()
        slope = torch.exp(Gaussian().log_prob(v / sigma)) / sigma
        by_logits = net(x).softmax(1) - F.one_hot(y, CLASSES)
        expected = ((by_logits @ net[3].weight) * slope) @ net[1].weight
        torch.testing.assert_close(input_gradient(sloped, x, y).flatten(1), expected.detach())

    def test_without_thresholds_straight_through_is_autograd(self) -> None:
        net, (x, y) = network(nn.Sigmoid()), batch()
        torch.testing.assert_close(
            Query(net, x, source="straight_through").gradient(x, y), Query(net, x).gradient(x, y)
        )


class TestQueryCount:
    def test_queries_are_forward_passes_of_an_image(self) -> None:
        net, (x, y) = network(), batch(5)
        query = Query(net, x, source="likelihood_ratio", options=GradientOptions(copies=6))
        query(x)
        query(x.repeat(3, 1, 1, 1))
        query.take(torch.tensor([1, 4])).gradient(x[[1, 4]], y[[1, 4]])
        query.take(torch.tensor([False, True, False, False, True])).take(torch.tensor([1]))(x[4:])
        assert query.count.queries.tolist() == [4, 10, 4, 4, 11]

    @pytest.mark.parametrize(("source", "queries"), [("autograd", 1), ("straight_through", 2), ("likelihood_ratio", 5)])
    def test_scores_and_gradient_share_a_pass_of_autograd(self, source: str, queries: int) -> None:
        """Other sources take the scores of another network, or of more passes, for the gradient."""
        (x, y), options = batch(4), GradientOptions(copies=4)
        both, apart = (Query(network(nn.Tanh()), x, source=source, options=options) for _ in range(2))
        scores, gradient = both.scores_and_gradient(x, y, margin)
        assert torch.equal(scores, apart(x))
        assert torch.equal(gradient, apart.gradient(x, y, margin))
        assert not scores.requires_grad
        assert both.count.queries.tolist() == [queries] * 4
        assert torch.equal(both.count.zero_gradient, apart.count.zero_gradient)

    def test_the_first_gradient_is_the_one_on_record(self) -> None:
        net, (x, y) = network(), batch(4)
        query = Query(net, x)
        assert query.count.zero_gradient.isnan().all()
        query.take(torch.tensor([2])).gradient(x[2:3], y[2:3])
        assert query.count.zero_gradient.nan_to_num(-1).tolist() == [-1, -1, 1, -1]
        smooth = Query(network(nn.Sigmoid()), x)
        smooth.gradient(x, y)
        smooth.note_first_gradient(torch.ones(4))
        assert smooth.count.zero_gradient.tolist() == [0, 0, 0, 0]

    def test_a_gradient_that_is_no_number_leads_nowhere(self) -> None:
        x, y = batch(4)
        query = Query(lambda x: torch.stack([(x - x).flatten(1).sum(1).sqrt(), x.flatten(1).sum(1)], 1), x)
        query.gradient(x, y.clamp(max=1))
        assert query.count.zero_gradient.tolist() == [1, 1, 1, 1]

    def test_an_attack_that_differentiates_by_itself_is_on_record_too(self) -> None:
        (x, y), options = batch(4), [(network(), 1.0), (network(nn.Sigmoid()), 0.0)]
        for net, zero in options:
            query = Query(net, x)
            input_gradient(query, x.repeat(2, 1, 1, 1), y.repeat(2))
            assert query.count.zero_gradient.tolist() == [zero] * 4

    def test_a_gradient_with_some_zeros_is_none_of_zero(self) -> None:
        x, y = batch()
        query = Query(lambda images: images.flatten(1)[:, :CLASSES], x)
        assert (query.gradient(x, y) == 0).any()
        assert not query.count.zero_gradient.any()


class TestNoiseAtInference:
    @staticmethod
    def noisy(passes: int = 2) -> NoiseAveraged:
        return NoiseAveraged(network(), Gaussian(), (0.5, 0.3), passes).eval()

    def test_every_query_has_fresh_noise_and_every_image_its_own(self) -> None:
        x, _ = batch(4)
        query = Query(self.noisy(), x)
        first, second, copies = query(x), query(x), query(x.repeat(2, 1, 1, 1))
        assert not torch.equal(first, second)
        assert not torch.equal(copies[:4], copies[4:])
        torch.testing.assert_close(Query(self.noisy(), x)(x), first)

    def test_a_part_of_a_batch_keeps_its_noise(self) -> None:
        x, _ = batch(6)
        rows = torch.tensor([4, 1])
        parts = [Query(self.noisy(), x).take(rows)(x[rows]), Query(self.noisy(), x)(x)[rows]]
        torch.testing.assert_close(*parts)

    @pytest.mark.parametrize(("passes", "draws"), [(1, 8), (3, 3), (8, 1), (9, 1)])
    def test_no_fewer_passes_than_asked_for(self, passes: int, draws: int) -> None:
        x, _ = batch()
        assert Query(self.noisy(passes), x, randomized=True).draws == draws

    def test_an_image_meets_the_same_noise_in_any_batch(self) -> None:
        x, y = batch(6)
        some = torch.tensor([4, 1])
        for source in ("straight_through", "likelihood_ratio"):
            settings: dict[str, Any] = {"source": source, "randomized": True}
            whole = Query(self.noisy(), x, random=ImageRandom(1, torch.arange(6)), **settings)
            part = Query(self.noisy(), x[some], random=ImageRandom(1, some), **settings)
            for _ in range(2):
                torch.testing.assert_close(part.gradient(x[some], y[some]), whole.gradient(x, y)[some])

    @pytest.mark.parametrize("source", ["straight_through", "likelihood_ratio"])
    def test_the_expectation_over_noise_has_the_variance_of_a_mean(self, source: str) -> None:
        """n = 2,000 images alike, and 2 passes a query: the ratio of variances is 4, within 6 standard errors."""
        x, y = batch()
        images, labels, random = many(x, y, 2_000)
        spread = {}
        for eot in (2, 8):
            options = GradientOptions(eot=eot, copies=4)
            settings: dict[str, Any] = {"source": source, "options": options, "random": random, "randomized": True}
            spread[eot] = Query(self.noisy(), images, **settings).gradient(images, labels).var(0).sum()
        assert float(spread[2] / spread[8]) == pytest.approx(4.0, rel=6 * math.sqrt(4 / 2_000) * 2)

    def test_autograd_of_thresholds_stays_zero(self) -> None:
        x, y = batch()
        assert not Query(self.noisy(), x, randomized=True).gradient(x, y).any()


@pytest.mark.parametrize(("option", "value"), [("smoothing", 0), ("copies", 7), ("eot", 0)])
def test_options_out_of_range_are_refused(option: str, value: int) -> None:
    with refused(option):
        GradientOptions(**{option: value})


def test_gradient_sources_that_need_layers_say_so() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    x, y = batch()
    with refused("gradient_source", "use autograd"):
        Query(Other().forward, x, source="straight_through")
    with refused("network", "got Other alone; put it into an nn.Sequential"):
        Query(Other(), x, source="straight_through")
    with refused("network", "got Other alone; put it into an nn.Sequential"):
        Query(Other(), x, source="likelihood_ratio").gradient(x, y)


class AsksForShapes(nn.Module):
    """A threshold network whose code asks for the shape of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.jump, self.last = nn.Linear(6, HIDDEN), HardThreshold(), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of x [batch, 1, 2, 3]."""
        if x.shape[1:] != SHAPE:
            raise ValueError(f"images {list(SHAPE)}, got {list(x.shape)}")
        return self.last(self.jump(self.first(x.flatten(1))))  # type: ignore[no-any-return]


def test_a_network_that_asks_for_shapes_is_attacked_as_its_plain_twin() -> None:
    """In a process that has trained nothing, the attack is the first to show it an image."""
    x, y = batch()
    own = AsksForShapes().double().eval()
    plain = nn.Sequential(nn.Flatten(), own.first, own.jump, own.last).eval()
    for source in ("straight_through", "likelihood_ratio"):
        asking, twin = (Query(net, x, source=source).gradient(x, y) for net in (own, plain))
        assert torch.equal(asking, twin)
        assert asking.any()
    random = ImageRandom(0, torch.arange(3))
    noisy = [
        NoiseAveraged(net, Gaussian(), (0.5, 0.5), 3).eval()(x, random) for net in (AsksForShapes().double(), plain)
    ]
    assert noisy[0].shape == noisy[1].shape
