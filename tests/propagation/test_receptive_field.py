"""What a unit can reach: never too few places, and a baseline that is what it is defined to be, free of own noise."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, Sign
from glr_lightning.baselines import Clean, LeaveOneOut
from glr_lightning.estimators import LikelihoodRatio, Tiered
from glr_lightning.estimators.passes import CleanBatch
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.networks import convnet
from glr_lightning.propagation import receptive_field as reach
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.receptive_field import Fields, fields_of
from glr_lightning.propagation.values import NoisyPass
from glr_lightning.sampling import Antithetic, Independent, Sampler
from tests.checks.convolutional_cases import CLASS, NETWORKS, PIXELS, drawn, normalised, pooled, projected, residual
from tests.checks.estimator_cases import X, Y, estimate, flat, small_network
from tests.checks.receptive_field import (
    FUNCTIONS,
    HEIGHT,
    WIDTH,
    check_functional,
    check_never_too_small,
    check_own_noise_is_no_part_of_the_baseline,
    claimed,
    fields,
    moved,
    under_a_readout,
    weights_of,
)
from tests.checks.refusals import refused
from tests.checks.zscores import assert_mean, repetitions

# ---- the places -----------------------------------------------------------------------------------------------------


def test_a_claim_is_never_too_small() -> None:
    check_never_too_small()


@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2)])
@pytest.mark.parametrize("padding", [0, 1])
def test_without_dilation_the_claim_of_a_convolution_is_exact(kernel: Any, stride: Any, padding: int) -> None:
    """Also where a stride larger than the kernel steps over places, which then reach nothing."""
    if padding and (kernel == 1 or kernel == (3, 2)):
        padding = 0
    x = torch.rand(1, 1, HEIGHT, WIDTH, dtype=torch.float64)
    between = nn.Conv2d(2, 2, kernel, stride, padding)
    network = under_a_readout([between, nn.Tanh(), nn.Conv2d(2, 2, 2)], x)
    found = fields(network, x)
    assert found is not None
    assert torch.equal(claimed(found), moved(network, x))


def test_a_dilated_convolution_claims_the_hull_of_the_places_it_reaches() -> None:
    x = torch.rand(1, 1, HEIGHT, WIDTH, dtype=torch.float64)
    network = under_a_readout([nn.Conv2d(2, 2, 3, dilation=2, padding=2)], x)
    found = fields(network, x)
    assert found is not None
    got, changed = claimed(found), moved(network, x)
    for axis in (2, 3):
        places = changed.any(5 - axis)[4, 4]  # of a place whose neighbours are all on the map
        ends = places.nonzero().flatten()
        assert got.any(5 - axis)[4, 4].nonzero().flatten().tolist() == list(range(int(ends[0]), int(ends[-1]) + 1))


def test_a_layer_inside_a_block_does_not_reach_what_waits() -> None:
    network = projected(nn.Tanh())
    for site in range(4):
        found = fields(network, PIXELS, site)
        assert found is not None
        assert torch.equal(claimed(found), moved(network, PIXELS, site)), site
    assert int(claimed(found)[0, 0].sum()) == 1  # 1 x 1, in the shortcut


@pytest.mark.parametrize(
    "between",
    [
        [nn.GroupNorm(1, 2)],
        [nn.LayerNorm((2, HEIGHT, WIDTH))],
        [nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular")],
        [nn.AdaptiveAvgPool2d(4), nn.Tanh()],
        [nn.Flatten(), nn.Linear(2 * HEIGHT * WIDTH, 8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 2, 1)],
        [nn.Softmax(dim=3)],
        [nn.Conv2d(2, 2, (HEIGHT, WIDTH))],
    ],
    ids=["group_norm", "layer_norm", "circular", "adaptive", "flat", "softmax", "whole image"],
)
def test_where_places_mix_nothing_is_claimed(between: list[nn.Module]) -> None:
    x = torch.rand(1, 1, HEIGHT, WIDTH, dtype=torch.float64)
    assert fields(under_a_readout(between, x), x) is None


def test_logits_of_another_kind_have_no_fields() -> None:
    x = torch.rand(1, 1, HEIGHT, WIDTH, dtype=torch.float64)
    below = [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3)]
    for above in ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], [nn.Flatten(), nn.Linear(112, 2), nn.LogSoftmax(1)]):
        assert fields(nn.Sequential(*below, *above).double(), x) is None
    assert fields(nn.Sequential(*below, nn.Flatten(), nn.Linear(112, 2)).double(), x) is not None


# ---- the baseline ---------------------------------------------------------------------------------------------------


def a_pass(network: nn.Sequential, sites: tuple[int, ...], sigma: float = 0.7, copies: int = 3) -> tuple[Any, Any, Any]:
    """(graph, noise-free pass, a pass with noise at the sites)."""
    graph = Graph.of(network)
    clean = graph.clean(PIXELS)
    generator, v0 = torch.Generator().manual_seed(5), clean.preactivations
    z = {site: torch.randn(copies, *v0[site].shape, generator=generator, dtype=v0[site].dtype) for site in sites}
    return graph, clean, graph.noisy(clean, z, (sigma,) * len(graph.sites))


def by_definition(graph: Graph, clean: Any, noisy: NoisyPass, found: Fields, loss: Loss) -> Tensor:
    """[copies, batch, 1, height, width]: the loss of a map whose places R(i) are those of the noise-free pass; by copy,
    sample and unit."""
    end = nn.Sequential(*(graph.nodes[number].module for number in graph.end))
    inside = claimed(found)
    h, logits = (value.unflatten(0, (-1, len(CLASS))) for value in (noisy.readout, noisy.logits))
    out = torch.zeros(len(h), len(CLASS), 1, *inside.shape[:2], dtype=h.dtype)
    for k, n, row, column in itertools.product(*map(range, (len(h), len(CLASS), *inside.shape[:2]))):
        without = torch.where(inside[row, column], clean.readout[n], h[k, n])
        own_noise = logits[k, n] - end(h[k, n][None])[0]  # at the logits, in joint mode
        out[k, n, 0, row, column] = loss((end(without[None])[0] + own_noise)[None], CLASS[n, None])[0]
    return out.detach()


@pytest.mark.parametrize("loss", [CrossEntropy(), ZeroOne()], ids=["cross_entropy", "zero_one"])
@pytest.mark.parametrize("make", [pooled, residual, projected], ids=lambda make: make.__name__)
def test_losses_without_are_what_their_definition_says(
    make: Callable[[nn.Module], nn.Sequential], loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make(HardThreshold())
    sites = len(Graph.of(network).sites)
    for noisy_sites in (*((site,) for site in range(sites - 1)), tuple(range(sites))):
        graph, clean, noisy = a_pass(network, noisy_sites)
        for site in noisy_sites[: sites - 1]:
            found = fields_of(graph, graph.shapes(PIXELS), site)
            assert found is not None
            expected = by_definition(graph, clean, noisy, found, loss)
            for at_once in (2**24, 1):
                monkeypatch.setattr(reach, "AT_ONCE", at_once)
                got = found.spread(found.losses_without(graph, clean, noisy, loss, CLASS))
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("baseline", [LeaveOneOut(), Clean()], ids=["leave_one_out", "clean"])
@pytest.mark.parametrize("sampling", [Antithetic(), Independent()], ids=["antithetic", "independent"])
@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
@pytest.mark.parametrize("make", [pooled, residual], ids=lambda make: make.__name__)
def test_no_own_noise_is_in_the_baseline(make: Any, injection: Injection, sampling: Sampler, baseline: Any) -> None:
    """Independent copies have no partners: then copy 6 is one of those that the baseline of copy 2 may know."""
    if isinstance(sampling, Antithetic):
        check_own_noise_is_no_part_of_the_baseline(injection, sampling, baseline, make)
        return
    network = make(HardThreshold())
    estimator = LikelihoodRatio(copies=8, sampling=sampling, injection=injection, baseline=baseline)
    generator, sites = torch.Generator().manual_seed(6), Graph.of(network).clean(PIXELS).preactivations
    draws = {v.shape: torch.randn(8, *v.shape, generator=generator, dtype=v.dtype) for v in sites}
    losses, weights = weights_of(estimator, network, 0, draws)
    other = draws[sites[0].shape].clone()
    other[2, :, :, 1, 1] *= -3
    new_losses, new_weights = weights_of(estimator, network, 0, draws | {sites[0].shape: other})
    change = (new_weights - weights)[2, :, 0, 1, 1]
    torch.testing.assert_close(change, (new_losses - losses)[2], rtol=1e-10, atol=1e-12)


def test_under_bf16_autocast_the_baseline_has_the_parameters_precision() -> None:
    network = residual(HardThreshold()).float()
    graph = Graph.of(network)
    loss, sigma, generator = CrossEntropy(), (0.7,) * len(graph.sites), torch.Generator().manual_seed(0)
    sites = tuple(range(len(sigma)))
    estimator = LikelihoodRatio(copies=4, baseline=Clean())
    with torch.autocast("cpu", torch.bfloat16):
        clean = graph.clean(PIXELS.float())
        found = fields_of(graph, graph.shapes(PIXELS.float()), 0)
        assert found is not None
        batch = CleanBatch(graph, clean, sigma, loss, CLASS)
        (part,) = estimator.draws_of_pass(graph, PIXELS.float(), sites, generator)
        noisy, losses = batch.run(part.z)
        got = estimator._weight(batch, noisy, losses, estimator.sampling.group(len(losses), losses.device), found)
        gradients = estimate(estimator, network, loss, PIXELS.float(), CLASS).gradients
    wide = replace(clean, readout=clean.readout.float())
    again = noisy._replace(readout=noisy.readout.float(), logits=noisy.logits.float())
    expected = losses[..., None, None, None] - by_definition(graph, wide, again, found, loss)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


# ---- what it is good for --------------------------------------------------------------------------------------------


def strided() -> nn.Sequential:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "channels": [4, 8],
        "kernel": 3,
        "stride": 2,
        "hidden": [],
        "activation": HardThreshold(),
    }
    return convnet(image_shape=(1, 16, 16), classes=4, centre=0.5, **options)


@pytest.mark.parametrize("kind", [LikelihoodRatio, Tiered])
def test_it_lowers_the_variance_of_a_strided_network_and_leaves_the_mean(kind: Any) -> None:
    """200 repetitions know a sum of variances to a few percent, and the difference of means to 4e-6 false alarms."""
    x, y = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2])
    network, options = strided(), {"injection": Layerwise()} if kind is LikelihoodRatio else {}
    with_, without = (
        repetitions(
            kind(sigma=0.5, copies=8, reach=on, **options), network, CrossEntropy(), x, y, number=200, seed=int(on)
        )
        for on in (True, False)
    )
    assert float(without["conv1.weight"].var(0).sum()) > 5 * float(with_["conv1.weight"].var(0).sum())
    for name in ("conv1.weight", "conv1.bias"):
        assert_mean(with_[name] - without[name], 0.0, what=name)


@pytest.mark.parametrize(
    "estimator",
    [LikelihoodRatio(copies=4), LikelihoodRatio(copies=4, injection=Layerwise()), Tiered(copies=4)],
    ids=repr,
)
def test_where_it_is_of_no_use_the_estimate_is_the_plain_one_bit_for_bit(estimator: Any) -> None:
    hidden = [nn.Conv2d(1, 2, 3, stride=2), Sign(), nn.Flatten(), nn.Linear(18, 3), Sign(), nn.Linear(3, 2)]
    mixed = [nn.Conv2d(1, 2, 3, stride=2), nn.GroupNorm(1, 2), Sign(), nn.Flatten(), nn.Linear(18, 2)]
    for network, layers, x, y in (
        (small_network(HardThreshold()), "02", X, Y),
        (drawn(nn.Sequential(*hidden), seed=1), "035", PIXELS, CLASS),
        (drawn(nn.Sequential(*mixed), seed=1), "04", PIXELS, CLASS),  # the normalisation itself mixes nothing above it
    ):
        plain, other = (
            estimate(replace(estimator, reach=on), network, CrossEntropy(), x, y).gradients for on in (False, True)
        )
        names = [f"{layer}.{parameter}" for layer in layers for parameter in ("weight", "bias")]
        assert torch.equal(flat(plain, names), flat(other, names))
        assert flat(plain, names).norm() > 0


def test_only_the_layers_below_a_normalisation_lose_it() -> None:
    network = normalised(HardThreshold())
    assert [fields(network, PIXELS, site) is None for site in range(5)] == [True, True, True, False, False]


def test_reach_is_true_or_false() -> None:
    with refused("reach"):
        LikelihoodRatio(reach=1)  # type: ignore[arg-type]


def test_reach_reports_every_network_of_the_cases() -> None:
    for make in NETWORKS.values():
        graph = Graph.of(make(nn.Tanh()))
        logits = len(graph.sites) - 1  # whose place is no map
        assert fields_of(graph, graph.shapes(PIXELS), logits) is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_functions_reach_is_never_claimed_too_small(name: str) -> None:
    known = check_functional(name)
    assert known > 0 or name not in ("plain", "residual", "mean_added")
