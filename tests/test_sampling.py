"""How copies are drawn, what is subtracted from their losses, and where their noise enters."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import Tensor

from glr_lightning import sampling
from glr_lightning.baselines import Baseline, Clean, LeaveOneOut, NoBaseline
from glr_lightning.errors import ConfigurationError
from glr_lightning.injection import Injection
from glr_lightning.noise import Gaussian, Laplace, Noise, Uniform
from glr_lightning.sampling import Antithetic, Independent, Sampler, Sobol
from tests.checks.groups import member, options
from tests.checks.refusals import refused
from tests.checks.sampling import CPU, check_baseline_ignores_dependent_copies, generator
from tests.checks.zscores import assert_distribution, assert_mean

SAMPLERS = {name: member("sampling", name) for name in options("sampling")}
BASELINES = {name: member("baseline", name) for name in options("baseline")}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
every_baseline = pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES.keys())


# ---- sampling -------------------------------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_copy_has_the_density(sampler: Sampler, dtype: torch.dtype) -> None:
    noise = Laplace()
    draws = sampler(noise, 4, (2000, 3), generator=generator(), dtype=dtype)
    assert draws.z.shape == (4, 2000, 3)
    assert draws.z.dtype == dtype
    for copy in draws.z:
        assert_distribution(copy, noise.cdf)


@every_sampler
def test_copies_come_in_groups_of_the_stated_size(sampler: Sampler) -> None:
    draws = sampler(Gaussian(), 16, (2,), generator=generator())
    assert torch.equal(draws.group, sampler.group(16, CPU))
    assert draws.group.dtype == torch.int64
    assert draws.group.bincount().tolist() == [sampler.group_size(16)] * (16 // sampler.group_size(16))


@every_sampler
def test_a_part_of_the_copies_is_whole_groups_of_the_same_size(sampler: Sampler) -> None:
    size = sampler.group_size(16)
    part = sampler.part(1)
    draws = part(Gaussian(), size, (2,), generator=generator())
    assert part.group_size(size) == size
    assert draws.group.tolist() == [0] * size


@every_sampler
def test_different_groups_samples_and_places_are_independent(sampler: Sampler) -> None:
    # 20,000 draws show a correlation of 0.07 between any two of the numbers
    draws = sampler(Gaussian(), 4, (20_000, 2, 2), generator=generator())
    z = draws.z.permute(1, 0, 2, 3).flatten(1)  # [draws, copies * places]: 16 numbers that no group ties together
    owner = draws.group[:, None].expand(4, 4).flatten()
    place = torch.arange(4).repeat(4)
    tied = (owner[:, None] == owner) & (place[:, None] == place)
    products = (z[:, :, None] * z[:, None, :])[:, ~tied]
    assert_mean(products, 0.0, what="covariance")
    assert_mean((z[0::2] * z[1::2]) ** 2, 1.0, what="squares of successive samples")


def test_antithetic_copies_are_mirrored_pairs_and_a_pair_is_one_group() -> None:
    draws = Antithetic()(Gaussian(), 6, (3, 2), generator=generator())
    assert torch.equal(draws.z[3:], -draws.z[:3])
    assert draws.group.tolist() == [0, 1, 2, 0, 1, 2]


@every_sampler
def test_a_sampler_that_says_mirrored_draws_pairs(sampler: Sampler) -> None:
    draws = sampler(Gaussian(), 8, (3, 2), generator=generator())
    total = torch.zeros(8, 3, 2).index_add_(0, draws.group, draws.z)
    assert sampler.mirrored == bool((total == 0).all())


def test_independent_copies_are_groups_of_their_own() -> None:
    draws = Independent()(Gaussian(), 3, (4,), generator=generator())
    assert draws.group.tolist() == [0, 1, 2]
    assert not torch.equal(draws.z[0].abs(), draws.z[1].abs())


@every_sampler
def test_draws_come_from_the_generator_alone(sampler: Sampler) -> None:
    before = torch.get_rng_state()
    first, again, other = (sampler(Gaussian(), 4, (5,), generator=generator(s)).z for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@every_sampler
@pytest.mark.parametrize("copies", [-1, 0, 1, 3, 7])
def test_copies_that_leave_a_group_incomplete_are_refused(sampler: Sampler, copies: int) -> None:
    if copies >= 1 and isinstance(sampler, Independent):
        sampler.check(Gaussian(), copies)
        return
    with pytest.raises(ConfigurationError, match=f"got copies={copies};") as refusal:
        sampler.check(Gaussian(), copies)
    advice = re.search(r"use copies=(\d+)", str(refusal.value))
    assert advice is not None
    sampler.check(Gaussian(), int(advice[1]))


@pytest.mark.parametrize(("copies", "works"), [(1, 6), (4, 6), (7, 9)])
def test_copies_are_advised_that_fill_whole_groups(copies: int, works: int) -> None:
    class Triples(Independent):
        def group_size(self, copies: int) -> int:
            return 3

    with refused("copies", f"use copies={works} "):
        Triples().check(Gaussian(), copies)


@final
@dataclass(frozen=True)
class Gumbel(Noise):
    """A density that is not symmetric: f(z) = exp(-z - e^-z)."""

    symmetric = False

    @property
    def fisher_information(self) -> float:
        return 1.0

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.icdf(torch.rand(tuple(shape), generator=generator, dtype=dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        return -z - torch.exp(-z)

    def score(self, z: Tensor) -> Tensor:
        return 1 - torch.exp(-z)

    def cdf(self, z: Tensor) -> Tensor:
        return self.log_cdf(z).exp()

    def log_cdf(self, z: Tensor) -> Tensor:
        return -torch.exp(-z)

    def hazard(self, z: Tensor) -> Tensor:
        return torch.exp(self.log_prob(z)) / -torch.expm1(self.log_cdf(z))

    def icdf(self, u: Tensor) -> Tensor:
        return -torch.log(-torch.log(u))

    def slope_radius(self, u: Tensor) -> Tensor:
        raise AssertionError("a density that is not symmetric has no such radius")


def test_antithetic_pairs_of_an_asymmetric_density_are_refused() -> None:
    Independent().check(Gumbel(), 4)
    with refused("sampling", "Gumbel", "use sampling=independent"):
        Antithetic().check(Gumbel(), 4)


# ---- sobol ----------------------------------------------------------------------------------------------------------


def points(copies: int, dimensions: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The u of one randomisation for 7 samples, [copies, 7, dimensions]."""
    draws = Sobol(1)(Uniform(), copies, (7, dimensions), generator=generator(), dtype=dtype)
    return 0.5 * (draws.z + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_dimension_has_one_point_in_each_of_as_many_cells(dtype: torch.dtype) -> None:
    for m in (0, 1, 5, 8):
        cell = (points(2**m, 300, dtype=dtype) * 2**m).floor().long()
        assert torch.equal(cell.sort(dim=0).values, torch.arange(2**m)[:, None, None].expand(2**m, 7, 300))


def test_the_first_two_dimensions_have_one_point_in_each_box_of_any_shape() -> None:
    # a (0, m, 2)-net, which scrambling and shifting leave one
    m, u = 6, points(64, 2)
    for a in range(m + 1):
        box = (u[..., 0] * 2**a).floor() * 2 ** (m - a) + (u[..., 1] * 2 ** (m - a)).floor()
        assert torch.equal(box.sort(dim=0).values, torch.arange(64.0).double()[:, None].expand(64, 7))


def test_without_randomisation_they_are_the_points_of_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    monkeypatch.setattr(sampling, "_random_bits", zeros)
    got = (points(32, 9)[:, 0] * 32).floor()
    known = torch.quasirandom.SobolEngine(9).draw(32, dtype=torch.float64) * 32
    assert {tuple(row) for row in got.tolist()} == {tuple(row) for row in known.tolist()}


def test_each_digit_is_random_up_to_the_last() -> None:
    # of 4 points the first is 0, so a random digit is 1 in 3 of 8; digits 0 and 1 stratify. 400 nets: sd below 0.02
    net = sampling._scrambled_net(8, 4, 50, generator())
    ones = torch.stack([(net >> place & 1).double().mean() for place in range(sampling.BITS)])
    torch.testing.assert_close(ones, torch.tensor([0.375] * (sampling.BITS - 2) + [0.5] * 2).double(), atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_outermost_points_are_mirrored_and_finite(dtype: torch.dtype) -> None:
    u = sampling._to_open_interval(torch.tensor([0, 2**30 - 1], dtype=torch.int32), dtype)
    z = Gaussian().icdf(u)
    assert u.dtype == dtype
    assert float(u[0]) == 1 - float(u[1])
    assert -7 < float(z[0]) < -5
    torch.testing.assert_close(z[0], -z[1])


def test_a_smooth_mean_converges_faster_and_layers_are_not_paired_up() -> None:
    """Var of the mean of 64 copies, summed over 4 dimensions of each of two calls; independent copies have 1 / 64."""
    both, single = [], []
    random = generator()
    for _ in range(200):
        first, second = (Sobol(1)(Gaussian(), 64, (30, 4), generator=random).z for _ in range(2))
        single.append(torch.tanh(first).mean(0))
        both.append((first * second).mean(0))
    assert float((torch.stack(single) ** 2).mean()) < 0.01 * float(torch.tanh(first).var()) / 64
    assert float((torch.stack(both) ** 2).mean()) == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize(("randomisations", "copies", "works"), [(2, 12, "16"), (3, 8, "12"), (1, 5, "8"), (4, 2, "4")])
def test_points_that_are_no_power_of_two_are_refused(randomisations: int, copies: int, works: str) -> None:
    advice = (f"use copies={works} ", "or sampling=independent")
    with refused("copies", *advice):
        Sobol(randomisations).check(Gaussian(), copies)
    with refused("copies", *advice):
        Sobol(randomisations)(Gaussian(), copies, (2, 2), generator=generator())


def test_more_dimensions_than_the_sequence_has_are_refused_with_what_to_use() -> None:
    Sobol().check_site(21_201)
    with refused("estimator.sampling", "21,201", "21,202", "use sampling=independent or antithetic"):
        Sobol()(Gaussian(), 4, (1, 21_202), generator=generator())
    for value in (0, -1, 1.5, True, "2"):
        with refused("randomisations"):
            Sobol(value)  # type: ignore[arg-type]


# ---- baselines ------------------------------------------------------------------------------------------------------


@every_sampler
@every_baseline
def test_a_baseline_uses_only_copies_that_are_independent_of_its_own(baseline: Baseline, sampler: Sampler) -> None:
    check_baseline_ignores_dependent_copies(baseline, sampler)


@pytest.mark.parametrize("group", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2], [2, 0, 0, 1, 2, 2], [0, 0, 0, 0, 0, 1]])
def test_leave_one_out_is_the_mean_loss_of_the_other_groups(group: list[int]) -> None:
    loss = torch.rand(6, 3, generator=generator()).double()
    got = LeaveOneOut()(loss, torch.tensor(group), None)
    for k in range(6):
        for n in range(3):
            others = [float(loss[j, n]) for j in range(6) if group[j] != group[k]]
            assert float(got[k, n]) == pytest.approx(math.fsum(others) / len(others), abs=1e-12)


def test_leave_one_out_of_losses_by_place_is_that_of_each_place() -> None:
    loss = torch.rand(6, 3, 5, generator=generator()).double()
    group = torch.tensor([0, 1, 2, 0, 1, 2])
    got = LeaveOneOut()(loss, group, None)
    for place in range(5):
        torch.testing.assert_close(got[..., place], LeaveOneOut()(loss[..., place], group, None))


def test_leave_one_out_refuses_a_single_group() -> None:
    LeaveOneOut().check(2)
    with refused(None, "at least 2 independent groups", "raise copies"):
        LeaveOneOut().check(1)


@every_baseline
def test_a_baseline_needs_no_more_groups_than_it_says(baseline: Baseline) -> None:
    copies = baseline.required_groups
    baseline.check(copies)
    loss = torch.rand(copies, 3, generator=generator())
    clean = torch.rand(3, generator=generator(1)) if baseline.needs_clean else None
    got = baseline(loss, torch.arange(copies), clean)
    assert got.dtype == loss.dtype
    assert torch.isfinite(got.expand_as(loss)).all()


def test_no_baseline_is_0_and_the_clean_baseline_is_the_clean_loss() -> None:
    loss, clean, group = torch.rand(4, 3), torch.rand(3), torch.arange(4)
    assert torch.equal(NoBaseline()(loss, group, None).expand_as(loss), torch.zeros(4, 3))
    assert torch.equal(Clean()(loss, group, clean).expand_as(loss), clean.expand(4, 3))
    assert Clean.needs_clean
    assert not NoBaseline.needs_clean


# ---- injection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [1, 2, 5])
@pytest.mark.parametrize("name", options("injection"))
def test_every_site_is_noisy_in_exactly_one_pass(name: str, sites: int) -> None:
    injection: Injection = member("injection", name)
    passes = injection.passes(sites)
    assert sorted(site for one in passes for site in one) == list(range(sites))
    assert all(one and list(one) == sorted(one) for one in passes)


def test_joint_is_one_pass_and_layerwise_one_per_site() -> None:
    assert member("injection", "joint").passes(3) == [(0, 1, 2)]
    assert member("injection", "layerwise").passes(3) == [(0,), (1,), (2,)]
