"""Samplers: how the K noise copies of one step are drawn, and which of them depend on each other.

A sampler returns the draws together with a dependence group per copy: copies of different groups are
independent, copies of one group need not be. A baseline for copy k may use only the losses of other groups
(Law 2), so the groups travel with the draws.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from glr_lightning.errors import ConfigurationError
from glr_lightning.noise import Noise
from glr_lightning.validation import Checked, Count


@dataclass(frozen=True)
class Draws:
    """Standardised noise and its dependence groups.

    Attributes:
        z: [copies, batch, *site], copy-major: `z.flatten(0, 1)` is a view with the rows of copy 0 first (Law 5).
        group: [copies] int64, 0 .. groups - 1.
    """

    z: Tensor
    group: Tensor


class Sampler(Checked, ABC):
    """Draws noise copies in groups: copies of one group depend on each other, groups are independent."""

    mirrored: ClassVar[bool] = False
    """Whether every group is a pair (z, -z)."""
    max_dimensions: ClassVar[float] = math.inf
    """The largest number of pre-activations that a site of one sample may have."""

    @abstractmethod
    def group_size(self, copies: int) -> int:
        """Size of a dependence group when drawing `copies`."""

    def part(self, groups: int) -> "Sampler":
        """The sampler that draws `groups` whole groups rather than all, for drawing the copies in chunks."""
        return self

    def check(self, noise: Noise, copies: int) -> None:
        """Refuse a number of copies that does not fill whole groups.

        Raises:
            ConfigurationError: copies is not a positive multiple of the group size.
        """
        size = self.group_size(copies)
        if copies < 1 or copies % size:
            works = size * max(-(-copies // size), 2)  # a baseline compares two groups
            raise ConfigurationError(
                f"{type(self).__name__.lower()} sampling needs copies to be a positive multiple of "
                f"{size}, got copies={copies}; use copies={works} "
                "or sampling=independent.",
                option="copies",
            )

    def check_site(self, dimensions: int) -> None:
        """Refuse a site with too many pre-activations per sample.

        Raises:
            ConfigurationError: `dimensions` is above `max_dimensions`.
        """
        if dimensions > self.max_dimensions:
            raise ConfigurationError(
                f"{type(self).__name__.lower()} sampling has at most {self.max_dimensions:,} dimensions, and one "
                f"sample has {dimensions:,} pre-activations at a noisy layer; use sampling=independent or antithetic.",
                option="estimator.sampling",
            )

    @abstractmethod
    def group(self, copies: int, device: torch.device) -> Tensor:
        """Return the dependence group of each copy, [copies] int64."""

    @abstractmethod
    def __call__(
        self,
        noise: Noise,
        copies: int,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Draw noise of shape [copies, *shape], shape = (batch, *site)."""


@dataclass(frozen=True)
class Independent(Sampler):
    """All copies independent: every copy is a group of its own."""

    def group_size(self, copies: int) -> int:
        """1: every copy is a group."""
        return 1

    def group(self, copies: int, device: torch.device) -> Tensor:
        """Number the copies."""
        return torch.arange(copies, device=device)

    def __call__(
        self,
        noise: Noise,
        copies: int,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Draw all copies at once."""
        z = noise.sample((copies, *shape), generator=generator, dtype=dtype)
        return Draws(z, self.group(copies, z.device))


@dataclass(frozen=True)
class Antithetic(Sampler):
    """Mirrored pairs: copy k + K/2 carries -z of copy k, so the even part of the loss cancels exactly.

    A pair is ONE group. Leaving out only the own loss across pairs returns K / (K - 1) times the gradient.
    """

    mirrored = True

    def group_size(self, copies: int) -> int:
        """2: a pair."""
        return 2

    def check(self, noise: Noise, copies: int) -> None:
        """Refuse an odd number of copies, and a density that is not symmetric."""
        super().check(noise, copies)
        if not noise.symmetric:
            raise ConfigurationError(
                f"antithetic sampling needs a symmetric density, {type(noise).__name__} is not; "
                "use sampling=independent.",
                option="sampling",
            )

    def group(self, copies: int, device: torch.device) -> Tensor:
        """Copies k and k + K/2 are pair k."""
        return torch.arange(copies // 2, device=device).repeat(2)

    def __call__(
        self,
        noise: Noise,
        copies: int,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Draw half of the copies and mirror them."""
        half = noise.sample((copies // 2, *shape), generator=generator, dtype=dtype)
        return Draws(torch.cat([half, -half]), self.group(copies, half.device))


@dataclass(frozen=True)
class Sobol(Sampler):
    """Randomised quasi-Monte-Carlo: z = F^-1(u) with the u of K / R copies spread evenly over the unit cube.

    The cube has one dimension per number of the site of ONE sample. The first 2^m points of a Sobol sequence have
    one point in each interval of length 2^-m along each dimension, and the copies of one randomisation are such a
    set. Three randomisations, drawn anew at every call (so for every step and layer), keep that property:

    - A digital shift, u xor s with s uniform and its own for each randomisation, sample and dimension. It alone makes
      each single copy exactly uniform and independent over samples, dimensions and layers, whatever else is fixed,
      so an estimate that is unbiased with independent copies still is. The copies of one randomisation depend on each
      other and are ONE group.
    - A linear scramble (Matousek, Journal of Complexity 14, 1998): a random lower-triangular binary matrix per
      dimension and randomisation (they are small), so that groups are independent outright. The samples of a batch
      share it, which correlates nothing: given the matrices, the shift still leaves every sample's estimate its mean.
    - A random order of the points (Owen's Latin supercube sampling, 1998), because the layers are separate calls on
      the same dimensions, and in the same order point k would pair related numbers of two layers.

    Args:
        randomisations: R, the independent groups; leave-one-out needs 2. K / R must be a power of two.
    """

    randomisations: Count = 2

    max_dimensions = SobolEngine.MAXDIM

    def group_size(self, copies: int) -> int:
        """The copies of one randomisation, K / R."""
        return max(copies // self.randomisations, 1)

    def part(self, groups: int) -> "Sobol":
        """The sampler with `groups` randomisations."""
        return replace(self, randomisations=groups)

    def check(self, noise: Noise, copies: int) -> None:
        """Refuse copies that are not a power of two in each randomisation."""
        points = 1 << max(-(-copies // self.randomisations) - 1, 0).bit_length()  # the next power of two
        if copies != points * self.randomisations:
            works = ", ".join(str(self.randomisations << m) for m in range(4))
            raise ConfigurationError(
                f"sobol sampling needs a power of two of copies in each of its sampling.randomisations="
                f"{self.randomisations}, got copies={copies}; use copies={points * self.randomisations} "
                f"({works}, ... work) or sampling=independent.",
                option="copies",
            )

    def group(self, copies: int, device: torch.device) -> Tensor:
        """The copies of one randomisation follow each other."""
        return torch.arange(self.randomisations, device=device).repeat_interleave(copies // self.randomisations)

    def __call__(
        self,
        noise: Noise,
        copies: int,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Draw the randomised points and return their quantiles."""
        self.check(noise, copies)
        dimensions = math.prod(shape[1:])
        self.check_site(dimensions)
        net = _scrambled_net(self.randomisations, copies // self.randomisations, dimensions, generator)
        shift = _random_bits((self.randomisations, 1, shape[0], dimensions), generator)
        u = _to_open_interval(net[:, :, None] ^ shift, torch.promote_types(dtype, torch.float32))
        z = noise.icdf(u).to(dtype).view(copies, *shape)
        return Draws(z, self.group(copies, z.device))


BITS = SobolEngine.MAXBIT
"""Binary digits of a point; digit j = 0, 1, ... has the place value 2^(BITS - 1 - j)."""


def _scrambled_net(randomisations: int, points: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Linearly scrambled Sobol points in random order, [randomisations, points, dimensions] int32."""
    m = points.bit_length() - 1
    digits = _direction_digits(dimensions, m, generator.device)
    # column j of a lower-triangular matrix with unit diagonal: digit j is 1, the digits after it are random
    unit = 1 << torch.arange(BITS - 1, BITS - 1 - m, -1, dtype=torch.int32, device=generator.device)[:, None]
    columns = (_random_bits((randomisations, m, dimensions), generator) & (unit - 1)) | unit
    directions = torch.zeros_like(columns)
    for j in range(m):
        directions = directions ^ (digits[:, j] * columns[:, j, None])
    net = torch.zeros(randomisations, 1, dimensions, dtype=torch.int32, device=generator.device)
    for i in range(m):
        net = torch.cat([net, net ^ directions[:, i, None]], dim=1)
    order = torch.rand(randomisations, points, generator=generator, device=generator.device).argsort(dim=1)
    return net.take_along_dim(order[..., None], dim=1)


@functools.cache
def _direction_digits(dimensions: int, m: int, device: torch.device) -> Tensor:
    """Digit j of direction number i, [i, j, dimensions] of 0 and 1. The first m have only the first m digits."""
    numbers = cast(Any, SobolEngine)(dimensions).sobolstate[:, :m].T.to(torch.int32)
    place = torch.arange(BITS - 1, BITS - 1 - m, -1, dtype=torch.int32)
    digits: Tensor = (numbers[:, None] >> place[:, None]) & 1
    return digits.to(device)


def _random_bits(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(2**BITS, tuple(shape), generator=generator, dtype=torch.int32, device=generator.device)


def _to_open_interval(points: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the middle of the cell of each point, with as many digits as the dtype holds exactly: never 0 or 1.

    Rounding 30 digits to a float32 would return 1 for the largest, whose quantile is infinite.
    """
    digits = min(BITS, round(-math.log2(torch.finfo(dtype).eps)))
    return ((points >> (BITS - digits)).to(dtype) + 0.5) * 2.0**-digits
