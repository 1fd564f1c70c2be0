"""What a unit can reach: never too few places, and a baseline that is what it is defined to be, free of own noise."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, Sign
from glr_lightning.baselines import Clean, LeaveOneOut
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import LikelihoodRatio, Tiered
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.networks import Residual, Shift, Sine, Standardise, convnet
from glr_lightning.noise import Noise
from glr_lightning.propagation import receptive_field as reach
from glr_lightning.propagation.chain import Chain, NoisyPass
from glr_lightning.propagation.receptive_field import Fields, fields_of
from glr_lightning.sampling import Antithetic, Draws, Independent, Sampler
from tests.checks.convolutional_cases import CLASS, NETWORKS, PIXELS, drawn, normalised, pooled, projected, residual
from tests.checks.estimator_cases import X, Y, estimate, flat, small_network
from tests.checks.zscores import assert_mean, repetitions

# ---- the places -----------------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 12, 11


def fields(network: nn.Sequential, x: Tensor, site: int = 0) -> Fields | None:
    chain = Chain.of(network)
    return fields_of(chain, chain.clean(x), site)


def claimed(found: Fields) -> Tensor:
    """[height, width, height', width'] bool: does a place of the layer reach a place of the readout, as is claimed?"""
    rows, columns = (part[:, of] > 0 for part, of in zip(found.members, found.of_place, strict=True))
    return rows.T[:, None, :, None] & columns.T[None, :, None, :]


def moved(network: nn.Sequential, x: Tensor, site: int = 0) -> Tensor:
    """The same of the network itself: all channels of a place of the layer are moved, a place at a time."""
    chain = Chain.of(network)
    clean = chain.clean(x[:1])
    v = clean.preactivations[site][0]
    places = torch.eye(v[0].numel(), dtype=v.dtype).view(-1, 1, *v.shape[1:])
    kick = 3.0 * places * torch.randn(len(v), 1, 1, generator=torch.Generator().manual_seed(1), dtype=v.dtype)
    state = (v + kick, *(h.expand(len(kick), *h.shape[1:]) for h in clean.waiting[site]))
    for position in range(chain.sites[site] + 1, chain.readout):
        state = chain.step(position, state)
    return ((state[0] - clean.readout).abs() > 1e-10).any(1).unflatten(0, v.shape[1:])


def under_a_readout(modules: Sequence[nn.Module], x: Tensor) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, 2, 1), *modules).double()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(body(x).flatten(1).shape[1], 2).double())


def window(rng: random.Random) -> dict[str, Any]:
    return {"kernel_size": rng.randint(1, 3), "stride": rng.choice([1, 1, 2, (2, 1), 3]), "padding": rng.choice([0, 1])}


def random_module(rng: random.Random, depth: int = 0) -> nn.Module:
    kind = rng.choice(["conv", "conv", "max", "average", "residual", "elementwise"])
    options = window(rng)
    if kind == "conv":
        return nn.Conv2d(2, 2, **options, dilation=rng.choice([1, 1, 2, (1, 2)]), groups=rng.choice([1, 2]))
    if kind in ("max", "average"):
        options["kernel_size"] = rng.choice([2, 3, [2, 3]])  # a list is what a configuration gives
        options["ceil_mode"] = rng.choice([True, False])
        return nn.MaxPool2d(**options, dilation=rng.choice([1, 2])) if kind == "max" else nn.AvgPool2d(**options)
    if kind == "residual" and depth < 2:
        kernel = rng.choice([1, 3])
        inner = [nn.Conv2d(2, 2, kernel, padding=kernel // 2), random_elementwise(rng)]
        if rng.random() < 0.4:
            inner.append(Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))))
        other = rng.choice([1, 3])  # the shortcut may reach further than the body
        shortcut = nn.Sequential(nn.Conv2d(2, 2, other, padding=other // 2))
        return Residual(nn.Sequential(*inner), shortcut if rng.random() < 0.5 else None)
    return random_elementwise(rng)


def random_elementwise(rng: random.Random) -> nn.Module:
    every = (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU, lambda: Shift(0.3), Sine, lambda: Standardise(0.5, 0.25))
    return rng.choice(every)()


def random_network(seed: int, x: Tensor) -> nn.Sequential:
    """A stack whose map has not shrunk to nothing."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        modules = [random_module(rng) for _ in range(rng.randint(1, 4))]
        try:
            network = under_a_readout(modules, x)
        except RuntimeError:  # a window larger than its map
            continue
        if network(x).isfinite().all():  # no maximum over nothing but padding
            return network


def check_never_too_small(seeds: Sequence[int] = range(80)) -> None:
    x = torch.rand(1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known, inside = 0, 0
    for seed in seeds:
        network = random_network(seed, x)
        for site in range(len(Chain.of(network).sites) - 1):
            found = fields(network, x, site)
            if found is not None:
                known, changed = known + 1, moved(network, x, site)
                inside += int((claimed(found) & ~changed).sum() == 0)
                assert not (changed & ~claimed(found)).any(), f"a place is missing: seed {seed}, site {site}, {network}"
    assert known >= len(seeds)  # or nothing was tested
    assert inside > 0.8 * known  # most claims are no larger than they need be; dilated windows and maxima leave gaps


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


@final
@dataclass(frozen=True)
class Written(Sampler):
    """Hands out draws that were written down for each layer by its shape; groups as another sampler's."""

    inner: Sampler
    draws: dict[torch.Size, Tensor]

    def group_size(self, copies: int) -> int:
        return self.inner.group_size(copies)

    def group(self, copies: int, device: torch.device) -> Tensor:
        return self.inner.group(copies, device)

    def __call__(
        self, noise: Noise, copies: int, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype
    ) -> Draws:
        return Draws(self.draws[torch.Size(shape)], self.group(copies, torch.device("cpu")))


def a_pass(network: nn.Sequential, sites: tuple[int, ...], sigma: float = 0.7, copies: int = 3) -> tuple[Any, Any, Any]:
    """(chain, noise-free pass, a pass with noise at the sites)."""
    chain = Chain.of(network)
    clean = chain.clean(PIXELS)
    generator = torch.Generator().manual_seed(5)

    def draw(v0: Tensor) -> Tensor:
        return torch.randn(copies, *v0.shape[1:], generator=generator, dtype=v0.dtype)

    return chain, clean, chain.noisy(clean, sites, (sigma,) * len(chain.sites), draw)


def by_definition(chain: Chain, clean: Any, noisy: NoisyPass, found: Fields, loss: Loss) -> Tensor:
    """[copies, batch, 1, height, width]: the loss of a map whose places R(i) are those of the noise-free pass; by copy,
    sample and unit."""
    end = nn.Sequential(*chain.modules[chain.readout :])
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
    sites = len(Chain.of(network).sites)
    for noisy_sites in (*((site,) for site in range(sites - 1)), tuple(range(sites))):
        chain, clean, noisy = a_pass(network, noisy_sites)
        for site in noisy_sites[: sites - 1]:
            found = fields_of(chain, clean, site)
            assert found is not None
            expected = by_definition(chain, clean, noisy, found, loss)
            for at_once in (2**24, 1):
                monkeypatch.setattr(reach, "AT_ONCE", at_once)
                got = found.spread(found.losses_without(chain, clean, noisy, loss, CLASS))
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def weights_of(
    estimator: LikelihoodRatio, network: nn.Sequential, site: int, draws: dict[torch.Size, Tensor]
) -> tuple[Tensor, Tensor]:
    """(losses [copies, batch], the weight of every draw's score [copies, batch, 1, height, width])."""
    chain = Chain.of(network)
    clean, sigma, loss = chain.clean(PIXELS), (0.7,) * len(chain.sites), CrossEntropy()
    estimator = replace(estimator, sampling=Written(estimator.sampling, draws))
    sites = next(sites for sites in estimator.injection.passes(len(sigma)) if site in sites)
    copies, options = (estimator.copies, estimator.copies), (loss, CLASS, torch.Generator())
    noisy, losses, group = estimator._losses(chain, clean, sites, sigma, copies, *options)  # type: ignore[arg-type]
    found = fields_of(chain, clean, site)
    assert found is not None
    return losses, estimator._weight(chain, clean, noisy, losses, group, loss(clean.logits, CLASS), found, loss, CLASS)


def check_own_noise_is_no_part_of_the_baseline(
    injection: Injection, sampling: Sampler, baseline: Any = None, make: Any = residual
) -> None:
    """L - b moves by what L moves, to rounding, when the noise of a unit and of its partner is drawn again."""
    network = make(HardThreshold())
    options = {"copies": 8, "sampling": sampling, "injection": injection, "baseline": baseline or LeaveOneOut()}
    estimator = LikelihoodRatio(**options)
    generator, sites = torch.Generator().manual_seed(6), Chain.of(network).clean(PIXELS).preactivations
    half = {v.shape: torch.randn(4, *v.shape, generator=generator, dtype=v.dtype) for v in sites}
    draws = {shape: torch.cat([z, -z]) for shape, z in half.items()}  # copies 2 and 6 are partners
    shape, moved_losses = sites[0].shape, 0
    losses, weights = weights_of(estimator, network, 0, draws)
    for row, column in itertools.product(range(shape[2]), range(shape[3])):
        other = draws[shape].clone()
        fresh = 3 * torch.randn(shape[:2], generator=generator, dtype=other.dtype)  # all channels of the place
        for copy, side in ((2, 1), (6, -1)):
            other[copy, :, :, row, column] = side * fresh
        new_losses, new_weights = weights_of(estimator, network, 0, draws | {shape: other})
        change = (new_weights - weights)[:, :, 0, row, column][[2, 6]]
        torch.testing.assert_close(change, (new_losses - losses)[[2, 6]], rtol=1e-10, atol=1e-12, msg="own noise")
        moved_losses += int((new_losses != losses).sum())
    assert moved_losses > 4


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
    generator, sites = torch.Generator().manual_seed(6), Chain.of(network).clean(PIXELS).preactivations
    draws = {v.shape: torch.randn(8, *v.shape, generator=generator, dtype=v.dtype) for v in sites}
    losses, weights = weights_of(estimator, network, 0, draws)
    other = draws[sites[0].shape].clone()
    other[2, :, :, 1, 1] *= -3
    new_losses, new_weights = weights_of(estimator, network, 0, draws | {sites[0].shape: other})
    change = (new_weights - weights)[2, :, 0, 1, 1]
    torch.testing.assert_close(change, (new_losses - losses)[2], rtol=1e-10, atol=1e-12)


def test_under_bf16_autocast_the_baseline_is_computed_in_the_parameters_precision() -> None:
    network = residual(HardThreshold()).float()
    chain = Chain.of(network)
    loss, sigma, generator = CrossEntropy(), (0.7,) * len(chain.sites), torch.Generator().manual_seed(0)
    estimator = LikelihoodRatio(copies=4, baseline=Clean())
    with torch.autocast("cpu", torch.bfloat16):
        clean = chain.clean(PIXELS.float())
        found = fields_of(chain, clean, 0)
        assert found is not None
        sites, copies = tuple(range(len(sigma))), (4, 4)
        noisy, losses, group = estimator._losses(chain, clean, sites, sigma, copies, loss, CLASS, generator)
        got = estimator._weight(chain, clean, noisy, losses, group, losses[0], found, loss, CLASS)
        gradients = estimate(estimator, network, loss, PIXELS.float(), CLASS).gradients
    wide = replace(clean, readout=clean.readout.float())
    again = noisy._replace(readout=noisy.readout.float(), logits=noisy.logits.float())
    expected = losses[..., None, None, None] - by_definition(chain, wide, again, found, loss)
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
    with pytest.raises(ConfigurationError, match=r"estimator\.reach must be true or false"):
        LikelihoodRatio(reach=1)  # type: ignore[arg-type]


def test_reach_reports_every_network_of_the_cases() -> None:
    for make in NETWORKS.values():
        chain = Chain.of(make(nn.Tanh()))
        clean = chain.clean(PIXELS)
        assert fields_of(chain, clean, len(chain.sites) - 1) is None  # of the logits, whose place is no map
