"""Statistical assertions: is the mean of these samples the number that mathematics says?

Convention. A test fixes n and the seed, so it passes always or never. `false_alarm` is the probability that a RIGHT
implementation with another seed would fail one call, shared out over the call's comparisons by Sidak's rule; the
suite makes fewer than 5,000 calls at the default 1e-6, so all of them together stay below 0.5 %. n is chosen from the
other side: from the smallest bias that must not pass unseen (`assert_gradient` computes that and insists on it).
"""

import math
import warnings
from collections.abc import Callable

import torch
from scipy.stats import norm
from torch import Tensor, nn

from glr_lightning.estimators import Estimator, EvolutionStrategies, LikelihoodRatio, LocalExpectation, Tiered
from glr_lightning.losses import Loss

FALSE_ALARM = 1e-6
ROUNDING = 1e-12
MAPPED = (LikelihoodRatio, LocalExpectation, EvolutionStrategies, Tiered)
"""Estimators of which `repetitions` makes thousands in one call."""


def critical(comparisons: int, false_alarm: float = FALSE_ALARM) -> float:
    """The |z| that the largest of so many right comparisons exceeds with probability `false_alarm`."""
    each = -math.expm1(math.log1p(-false_alarm) / comparisons)
    return float(norm.isf(each / 2))


def assert_mean(
    samples: Tensor,
    expected: Tensor | float,
    *,
    false_alarm: float = FALSE_ALARM,
    tolerance: float = 0.0,
    what: str = "mean",
) -> None:
    """The samples [n, ...] are independent draws with mean `expected` [...], component by component.

    Args:
        samples: n draws, hundreds, so that their mean is nearly Gaussian.
        expected: the mean, broadcastable to one draw.
        false_alarm: see above.
        tolerance: a bound on the error of `expected` itself.
        what: the name of the quantity in the message.
    """
    samples = samples.detach().double()
    n = len(samples)
    assert n >= 100, f"{what}: {n} samples are too few for a z-score"
    assert torch.isfinite(samples).all(), f"{what}: not finite"
    mean, error = samples.mean(0), samples.std(0) / math.sqrt(n)
    target = torch.as_tensor(expected, dtype=torch.float64).expand_as(mean)
    # a component that does not vary must be right to rounding
    excess = ((mean - target).abs() - tolerance - ROUNDING).clamp(min=0)
    z = torch.where(excess > 0, excess / error, 0.0).flatten()
    bound = critical(z.numel(), false_alarm)
    worst = int(z.argmax())
    assert z[worst] <= bound, (
        f"{what}: component {worst} of {z.numel()} has mean {mean.flatten()[worst]:.6g} "
        f"+- {error.flatten()[worst]:.2g}, expected {target.flatten()[worst]:.6g}: z = {z[worst]:.1f} > {bound:.1f}"
    )


def assert_gradient(
    samples: Tensor, expected: Tensor, *, resolution: float, tolerance: float = 0.0, what: str = "gradient"
) -> None:
    """The samples [n, parameters] have mean `expected`: by component, and in length along `expected`.

    The second view is the sharp one, because a wrong factor moves all components together. `resolution` is the
    relative bias of that length which must be seen with probability 0.999; a test whose n is too small for
    it fails, so that a pass means what it says.
    """
    assert_mean(samples, expected, tolerance=tolerance, what=what)
    length = float(expected.norm())
    assert length > 0, f"{what}: the expected gradient is 0, which no factor would change"
    along = samples @ expected / length**2
    assert_mean(along, 1.0, tolerance=tolerance * math.sqrt(expected.numel()) / length, what=f"{what}, in length")
    visible = (critical(1) + norm.isf(1e-3)) * float(along.std()) / math.sqrt(len(along))
    assert visible <= resolution, f"{what}: a bias of {visible:.0%} could pass, want {resolution:.0%}; raise n"


def assert_distribution(samples: Tensor, cdf: Callable[[Tensor], Tensor], *, what: str = "samples") -> None:
    """Kolmogorov-Smirnov: independent samples have this cdf; P(sqrt(n) D > c) = 2 exp(-2 c^2) = `FALSE_ALARM`."""
    u, n = cdf(samples.detach().double().flatten()).sort().values, samples.numel()
    grid = torch.arange(n, dtype=torch.float64) / n
    statistic = math.sqrt(n) * max(float((u - grid).max()), float((grid + 1 / n - u).max()))
    bound = math.sqrt(math.log(2 / FALSE_ALARM) / 2)
    assert statistic <= bound, f"{what}: Kolmogorov-Smirnov statistic {statistic:.2f} > {bound:.2f}"


def repetitions(
    estimator: Estimator, network: nn.Module, loss: Loss, x: Tensor, y: Tensor, *, number: int, seed: int = 0
) -> dict[str, Tensor]:
    """The gradients of `number` independent estimates, each [number, *parameter].

    Where loss values are all that is used (`MAPPED`) they are one call: under `torch.func.vmap(randomness="different")`
    the very same code draws new noise for every repetition. What differentiates inside cannot be mapped, but needs few
    repetitions. (Nor can a sampler that draws from anything but torch's generator.)
    """
    generator = torch.Generator().manual_seed(seed)

    def once(_: Tensor) -> dict[str, Tensor]:
        return estimator.estimate(network, loss, x, y, generator=generator).gradients

    if not isinstance(estimator, MAPPED):
        gradients = [once(torch.zeros(())) for _ in range(number)]
        return {name: torch.stack([gradient[name] for gradient in gradients]) for name in gradients[0]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.func.vmap(once, randomness="different")(torch.zeros(number))
