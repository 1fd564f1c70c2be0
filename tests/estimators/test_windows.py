"""Layers whose units change windows of the next: equal to moving units by hand, unbiased if some are chosen."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, PiecewiseConstant, Sign
from glr_lightning.baselines import NoBaseline
from glr_lightning.estimators import LikelihoodRatio, Tiered, windows
from glr_lightning.estimators.settings import IdleSettingError
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.networks import Shift, convnet
from glr_lightning.noise import Gaussian, Laplace, Noise
from glr_lightning.propagation.graph import Graph
from tests.checks.estimator_cases import IMAGES, LABELS, Margin, X, check_gradient, enumerated, estimate, small_network
from tests.checks.refusals import refused
from tests.checks.zscores import repetitions

PIXELS = torch.randn(3, 1, 9, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
CLASS = torch.tensor([0, 1, 1])
BELOW, ABOVE = PiecewiseConstant((0.2,), (-0.5, 1.0)), PiecewiseConstant((-0.1,), (1.0, -1.0))
SIGMA, COPIES, ALL = 0.6, 2, 1_000_000


def read_by(reader: nn.Module, *end: nn.Module, layer: nn.Module | None = None, x: Tensor = PIXELS) -> nn.Sequential:
    """The layer, a threshold, a shift, the reader, a threshold, the end, and logits."""
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 4, 2, 1, 1) if layer is None else layer
    network = nn.Sequential(layer, BELOW, Shift(-0.3), reader, ABOVE, *end).double()
    network.append(nn.Linear(network(x).shape[1], 2).double())
    for parameter in network.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, dtype=torch.float64) / parameter[0].numel() ** 0.5
    return network


CONVOLUTIONS = {
    "stride 1": (3, 1, 0, 1),
    "stride 2": (3, 2, 1, 1),
    "wide padding": (5, 2, 2, 1),
    "places that none reads": (2, 3, 1, 1),
    "dilation": (2, 1, 1, 2),
    "dilation and stride": (2, 2, 0, 2),
    "oblong": ((3, 2), (2, 1), (0, 1), 1),
}
END = (nn.AvgPool2d(2, 1), nn.Flatten())
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], Tensor]] = {
    name: (lambda options=options: read_by(nn.Conv2d(4, 3, *options), *END), PIXELS)  # type: ignore[misc]
    for name, options in CONVOLUTIONS.items()
}
NETWORKS["linear"] = (
    lambda: read_by(nn.Linear(5, 6), layer=nn.Linear(8, 5), x=PIXELS[:, 0, 0]),
    PIXELS[:, 0, 0],
)
NETWORKS["linear at each place"] = (
    lambda: read_by(nn.Linear(5, 6), nn.Flatten(), layer=nn.Linear(8, 5), x=PIXELS[:, 0]),
    PIXELS[:, 0],
)


def flattened() -> nn.Sequential:
    torch.manual_seed(1)
    hidden = [nn.Conv2d(1, 3, 3, 2), HardThreshold(), nn.Flatten(), nn.Linear(36, 4), Sign(), nn.Linear(4, 2)]
    return nn.Sequential(*hidden).double()


NETWORKS["linear behind a map"] = (flattened, PIXELS)


def by_hand(network: nn.Sequential, noise: Noise, loss: Loss, x: Tensor, draws: Tensor) -> dict[str, Tensor]:
    """Each unit of the first layer set to either side of its threshold, and the rest of the network run again."""
    layer: Any = network[0]
    rest = network[1:]
    threshold: Any = network[1]
    (cut,) = threshold.cuts
    v0 = layer(x)
    signal = torch.zeros_like(v0)
    with torch.no_grad():
        density = noise.pdf((cut - v0) / SIGMA) / SIGMA
        for z in draws:
            v = v0 + SIGMA * z
            for unit in range(v[0].numel()):
                low, high = v.clone(), v.clone()
                low.view(len(v), -1)[:, unit], high.view(len(v), -1)[:, unit] = cut - 1, cut + 1
                change = (loss(rest(high), CLASS) - loss(rest(low), CLASS))[:, None]
                signal.view(len(v), -1)[:, unit : unit + 1] += change * density.view(len(v), -1)[:, unit : unit + 1]
    gradients = torch.autograd.grad(v0, [layer.weight, layer.bias], signal / (len(draws) * len(x)))
    return dict(zip(("0.weight", "0.bias"), gradients, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", [CrossEntropy(), Margin()], ids=["cross_entropy", "any_loss"])
def test_all_units_are_those_moved_by_hand(name: str, loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    make, x = NETWORKS[name]
    network, noise = make(), Laplace() if name == "stride 2" else Gaussian()
    bound = Tiered(noise=noise, sigma=SIGMA, copies=COPIES, windows=ALL).bind(network, loss)
    parts = bound.draw(x, torch.Generator().manual_seed(0))
    expected = by_hand(network, noise, loss, x, torch.cat([part.z[0] for part in parts if 0 in part.z]))
    for at_once in (windows.AT_ONCE, 1):
        monkeypatch.setattr(windows, "AT_ONCE", at_once)
        got = bound.step(x, CLASS, parts).gradients
        for parameter, value in expected.items():
            assert value.norm() > 1e-3
            torch.testing.assert_close(got[parameter], value, rtol=1e-11, atol=1e-13)


def two_convolutions() -> nn.Sequential:
    """2 x 2 places of 2 channels, whose 2 ** 8 patterns the oracle counts, read with stride and padding."""
    torch.manual_seed(57)
    layers = [nn.Conv2d(1, 2, 3, stride=2), HardThreshold(), nn.Conv2d(2, 1, 2, stride=2, padding=1), HardThreshold()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2)).double()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    return network


@pytest.mark.parametrize("units", [1, 3, 7])
def test_chosen_units_are_unbiased(units: int) -> None:
    network, sigma = two_convolutions(), (0.7, 0.6, 0.5)
    samples = repetitions(Tiered(sigma=sigma, copies=4, windows=units), network, ZeroOne(), IMAGES, LABELS, number=4000)
    expected = enumerated(network, LikelihoodRatio(sigma=sigma, injection=Layerwise()), IMAGES, LABELS)
    first = ("0.weight", "0.bias")
    check_gradient({name: samples[name] for name in first}, {name: expected[name] for name in first}, resolution=0.3)


def strided(activation: nn.Module, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    own = {"channels": [4, 8], "kernel": 3, "stride": 2, "hidden": [], "centre": 0.5} | options
    return convnet(image_shape=(1, 16, 16), classes=4, activation=activation, **own)  # type: ignore[arg-type]


STRIDED = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4


def test_a_third_of_the_units_leaves_less_variance_than_the_likelihood_ratio() -> None:
    x, y = STRIDED
    estimator = Tiered(sigma=0.25, copies=4)
    ratio, moved = (
        repetitions(replace(estimator, windows=units), strided(HardThreshold()), CrossEntropy(), x, y, number=200)
        for units in (None, 85)
    )
    for name in ("conv1.weight", "conv1.bias"):
        assert float(moved[name].var(0).sum()) < 0.3 * float(ratio[name].var(0).sum())
    for name in ("conv2.weight", "linear3.weight"):
        assert float(moved[name].var(0).sum()) == pytest.approx(float(ratio[name].var(0).sum()), rel=0.3)


def test_units_are_chosen_where_the_loss_depends_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven samples with large margins none counts, and the eighth gets nearly all units."""
    network, (x, y) = strided(HardThreshold()), STRIDED
    logits: Any = network[-1]
    with torch.no_grad():
        logits.weight.mul_(30)
        y = torch.where(torch.arange(8) < 7, network(x).argmax(1), y)
    informed = repetitions(Tiered(sigma=0.05, copies=4, windows=16), network, CrossEntropy(), x, y, number=200)
    monkeypatch.setattr(windows, "LEAST_SHARE", 1e6)
    blind = repetitions(Tiered(sigma=0.05, copies=4, windows=16), network, CrossEntropy(), x, y, number=200)
    assert float(informed["conv1.weight"].var(0).sum()) < 0.6 * float(blind["conv1.weight"].var(0).sum())


def test_what_is_no_reader_keeps_the_likelihood_ratio() -> None:
    named = OrderedDict(layer=nn.Conv2d(1, 4, 2, 1, 1), below=BELOW, reader=nn.Conv2d(4, 4, 3), above=ABOVE)
    end = {"flatten": nn.Flatten(), "logits": nn.Linear(4 * 8 * 7, 2)}

    def reader(**others: nn.Module) -> int | None:
        return windows.reader_of(Graph.of(nn.Sequential(OrderedDict({**named, **others, **end})).double()), 0)

    assert reader() == 1
    assert reader(below=nn.Tanh()) is None
    assert reader(above=nn.Sigmoid()) is None
    assert reader(below=PiecewiseConstant((-0.4, 0.5), (-1.0, 0.2, 1.5))) is None
    assert reader(reader=nn.Conv2d(4, 4, 3, groups=2)) is None
    assert reader(reader=nn.GroupNorm(2, 4)) is None
    assert reader(below=nn.Sequential(HardThreshold(), nn.MaxPool2d(2))) is None
    assert reader(above=nn.Sequential(HardThreshold(), nn.MaxPool2d(2))) is None
    assert reader(above=nn.Sequential(HardThreshold(), nn.Conv2d(4, 4, 1), HardThreshold())) is None


class Written(nn.Module):
    """Shifts and other shapes in plain torch."""

    def __init__(self, time_first: bool = False) -> None:
        super().__init__()
        self.layer, self.reader, self.logits = nn.Linear(8, 5), nn.Linear(45, 6), nn.Linear(6, 2)
        self.threshold, self.time_first = HardThreshold(), time_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.threshold(self.layer(x.transpose(0, 1) if self.time_first else x)) - 0.5
        h = h.transpose(0, 1) if self.time_first else h
        return self.logits(self.threshold(self.reader(h.flatten(1))))


def test_networks_may_be_written_in_plain_torch() -> None:
    torch.manual_seed(5)
    written, x = Written().double(), PIXELS[:, 0]
    parts = [written.layer, HardThreshold(), Shift(-0.5), nn.Flatten(), written.reader, HardThreshold(), written.logits]
    estimator = Tiered(copies=4, windows=9)
    got, expected = (
        estimate(estimator, network, CrossEntropy(), x, CLASS) for network in (written, nn.Sequential(*parts))
    )
    assert got.gradients["layer.weight"].norm() > 0
    torch.testing.assert_close(got.gradients["layer.weight"], expected.gradients["0.weight"], rtol=1e-12, atol=0)
    with refused("estimator.windows", "no convolution or linear layer", error=IdleSettingError):
        estimator.check(Written(time_first=True).double(), CrossEntropy(), x)


def test_the_plan_names_the_layer() -> None:
    plan = Tiered(windows=9).plan(strided(HardThreshold(), channels=[4, 4, 4]), CrossEntropy())
    assert [source.split(",")[0] for source in plan.values()] == [
        "likelihood ratio",
        "local expectation",
        "local expectation",
        "local expectation at the logits",
    ]
    assert plan["conv2"] == "local expectation, from loss values: 9 units a sample, by their windows"


def test_two_mirrored_copies_are_enough_without_a_likelihood_ratio() -> None:
    """Leaving one of two groups out takes two, which windows do not need."""
    x, y = STRIDED
    estimator, network = Tiered(copies=2, windows=20), strided(HardThreshold())
    estimator.check(network, CrossEntropy(), x)
    assert estimate(estimator, network, CrossEntropy(), x, y).diagnostics["forwards"] == (1 + 3 * 2) * len(x)
    assert estimator.parts(2, 2) == [2]
    with refused(None, "at least 2 independent groups"):
        Tiered(copies=2)
    with refused(None, "at least 2 independent groups"):
        estimator.check(strided(HardThreshold(), channels=[4, 4, 4]), CrossEntropy(), x)


def test_a_number_without_effect_is_refused() -> None:
    x, _ = STRIDED
    with refused("estimator.windows", "no convolution or linear layer", error=IdleSettingError):
        Tiered(windows=4).check(small_network(HardThreshold()), CrossEntropy(), X)
    with refused("estimator.windows", "more than the 256 units of 'conv1'; use 256"):
        Tiered(windows=257).check(strided(HardThreshold()), CrossEntropy(), x)
    Tiered(windows=256).check(strided(HardThreshold()), CrossEntropy(), x)
    with refused("estimator.baseline", "no layer has a likelihood ratio", error=IdleSettingError):
        Tiered(windows=4, baseline=NoBaseline()).check(strided(HardThreshold()), CrossEntropy(), x)


@pytest.mark.parametrize("units", [5, ALL])
def test_the_step_is_one_graph(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **options: compiler(step, backend="eager", **options))
    network, estimator = two_convolutions(), Tiered(copies=4, windows=units)
    bound = estimator.bind(network, CrossEntropy(), compile=True)
    noise = bound.draw(IMAGES, torch.Generator().manual_seed(0))
    eager = estimator.bind(network, CrossEntropy()).step(IMAGES, LABELS, noise)
    for parameter, gradient in bound.step(IMAGES, LABELS, noise).gradients.items():
        torch.testing.assert_close(gradient, eager.gradients[parameter], rtol=1e-12, atol=1e-12)


def test_copies_are_held_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOVED_ELEMENTS", 1)
    bound = Tiered(copies=6, windows=5).bind(two_convolutions(), CrossEntropy())
    parts = [part for part in bound.draw(IMAGES, torch.Generator().manual_seed(0)) if 0 in part.z]
    assert [part.copies for part in parts] == [2, 2, 2]
    assert {part.chosen[0].shape for part in parts} == {(4, 5)}  # 5 units of 2 samples and 2 copies, over 4 places
