"""How the K noise copies of one step are drawn, and which of them depend on each other.

A sampler returns the draws together with a dependence group per copy: copies of different groups are
independent, copies of one group need not be. A baseline for copy k may use only the losses of other groups
(Law 2), so the groups travel with the draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.noise import Noise


@dataclass(frozen=True)
class Draws:
    """Standardised noise and its dependence groups.

    Attributes:
        z: [copies, batch, *site], copy-major: `z.flatten(0, 1)` is a view with the rows of copy 0 first (Law 5).
        group: [copies] int64, 0 .. groups - 1.
    """

    z: Tensor
    group: Tensor


class Sampler(ABC):
    """Draws noise copies. `group_size` copies depend on each other; groups are independent."""

    group_size: ClassVar[int]

    def check(self, noise: Noise, copies: int) -> None:
        """Refuse a number of copies that does not fill whole groups.

        Raises:
            ConfigurationError: copies is not a positive multiple of the group size.
        """
        if copies < 1 or copies % self.group_size:
            raise ConfigurationError(
                f"{type(self).__name__.lower()} sampling needs copies to be a positive multiple of "
                f"{self.group_size}, got copies={copies}; use copies={max(copies + copies % self.group_size, 2)} "
                "or sampling=independent."
            )

    @abstractmethod
    def group(self, copies: int, device: torch.device) -> Tensor:
        """The dependence group of each copy, [copies] int64."""

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

    group_size = 1

    def group(self, copies: int, device: torch.device) -> Tensor:
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
        z = noise.sample((copies, *shape), generator=generator, dtype=dtype)
        return Draws(z, self.group(copies, z.device))


@dataclass(frozen=True)
class Antithetic(Sampler):
    """Mirrored pairs: copy k + K/2 carries -z of copy k, so the even part of the loss cancels exactly.

    A pair is ONE group. Leaving out only the own loss across pairs returns K / (K - 1) times the gradient.
    """

    group_size = 2

    def check(self, noise: Noise, copies: int) -> None:
        super().check(noise, copies)
        if not noise.symmetric:
            raise ConfigurationError(
                f"antithetic sampling needs a symmetric density, {type(noise).__name__} is not; "
                "use sampling=independent."
            )

    def group(self, copies: int, device: torch.device) -> Tensor:
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
        half = noise.sample((copies // 2, *shape), generator=generator, dtype=dtype)
        return Draws(torch.cat([half, -half]), self.group(copies, half.device))
