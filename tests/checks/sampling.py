"""A check of samplers and baselines together."""

import torch

from glr_lightning.baselines import Baseline
from glr_lightning.noise import Gaussian
from glr_lightning.sampling import Sampler

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_baseline_ignores_dependent_copies(baseline: Baseline, sampler: Sampler, copies: int = 8) -> None:
    """Law 2: the baseline of a copy does not move when the losses of the copies that it depends on do.

    Which copies depend on each other is read off the draws, not off the sampler's word: 4,000 samples show a
    correlation of 0.1 at any place, and the samplers' own are 1, or 0.3 and more between points of one net.
    """
    loss, clean = torch.rand(copies, 5, generator=generator(1)).double(), torch.rand(5, generator=generator(2)).double()
    z = sampler(Gaussian(), copies, (4000, 3), generator=generator()).z
    dependent = ((z[:, None] * z[None]).mean(2).abs() > 0.1).any(-1)
    group = sampler.group(copies, CPU)
    for k in range(copies):
        moved = torch.where(dependent[k][:, None], loss + 10.0, loss)
        before, after = (baseline(values, group, clean).expand_as(loss)[k] for values in (loss, moved))
        torch.testing.assert_close(before, after, rtol=0, atol=1e-12, msg=f"the baseline of copy {k} moved")
