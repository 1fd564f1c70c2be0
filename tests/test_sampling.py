"""How copies are drawn, what is subtracted from their losses, and where their noise enters."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import Tensor

from glr_lightning.baselines import Baseline, Clean, LeaveOneOut, NoBaseline
from glr_lightning.errors import ConfigurationError
from glr_lightning.injection import Injection
from glr_lightning.noise import Gaussian, Laplace, Noise
from glr_lightning.sampling import Antithetic, Independent, Sampler
from groups import member, options
from zscores import assert_distribution, assert_mean

SAMPLERS = {name: member("sampling", name) for name in options("sampling")}
BASELINES = {name: member("baseline", name) for name in options("baseline")}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
every_baseline = pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES.keys())
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- a check that the planted defects must turn red -----------------------------------------------------------------


def check_baseline_ignores_dependent_copies(baseline: Baseline, sampler: Sampler, copies: int = 8) -> None:
    """Law 2: the baseline of a copy does not move when the losses of the copies that it depends on do.

    Which copies depend on each other is read off the draws, not off the sampler's word.
    """
    loss, clean = torch.rand(copies, 5, generator=generator(1)).double(), torch.rand(5, generator=generator(2)).double()
    z = sampler(Gaussian(), copies, (5, 3), generator=generator()).z.flatten(1)
    group = sampler.group(copies, CPU)
    for k in range(copies):
        dependent = torch.tensor([torch.equal(z[j].abs(), z[k].abs()) for j in range(copies)])
        moved = torch.where(dependent[:, None], loss + 10.0, loss)
        before, after = (baseline(values, group, clean).expand_as(loss)[k] for values in (loss, moved))
        torch.testing.assert_close(before, after, rtol=0, atol=1e-12, msg=f"the baseline of copy {k} moved")


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
    draws = sampler(Gaussian(), 12, (2,), generator=generator())
    assert torch.equal(draws.group, sampler.group(12, CPU))
    assert draws.group.dtype == torch.int64
    assert draws.group.bincount().tolist() == [sampler.group_size] * (12 // sampler.group_size)


@every_sampler
def test_copies_of_different_groups_and_all_samples_and_places_are_independent(sampler: Sampler) -> None:
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
def test_a_number_of_copies_that_leaves_a_group_incomplete_is_refused_with_one_that_works(
    sampler: Sampler, copies: int
) -> None:
    if copies >= 1 and copies % sampler.group_size == 0:
        sampler.check(Gaussian(), copies)
        return
    with pytest.raises(ConfigurationError, match=f"got copies={copies};") as refusal:
        sampler.check(Gaussian(), copies)
    advice = re.search(r"use copies=(\d+)", str(refusal.value))
    assert advice is not None
    sampler.check(Gaussian(), int(advice[1]))


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
    with pytest.raises(ConfigurationError, match=r"Gumbel is not; use sampling=independent"):
        Antithetic().check(Gumbel(), 4)


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


def test_leave_one_out_refuses_a_single_group_and_says_how_many_copies_it_takes() -> None:
    LeaveOneOut().check(2)
    with pytest.raises(ConfigurationError, match=r"at least 2 independent groups .* got 1; raise copies"):
        LeaveOneOut().check(1)


@every_baseline
def test_a_baseline_needs_no_more_groups_than_it_says_and_broadcasts_to_the_losses(baseline: Baseline) -> None:
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
