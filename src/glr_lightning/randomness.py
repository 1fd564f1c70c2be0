"""Random streams, each a function of what names it, so that a resumed run repeats them."""

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from glr_lightning.errors import ConfigurationError


def step_generator(seed: int, step: int, rank: int, device: torch.device, use: str = "") -> torch.Generator:
    """Return the generator of one use in one step of one process; use "" is the noise of the estimators."""
    return seeded(torch.Generator(device), seed, step, rank, use)


def seeded(generator: torch.Generator, seed: int, step: int, rank: int, use: str = "") -> torch.Generator:
    """Seed a generator to be the `step_generator` of a step, and return it; nothing is made."""
    return generator.manual_seed(_hash(f"{seed}/{step}/{rank}" + (f"/{use}" if use else "")))


def generator_for(device: torch.device, *what: Any) -> torch.Generator:
    """Return a generator that depends on `what` is drawn alone, by its repr."""
    return torch.Generator(device).manual_seed(_hash(repr(what)))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())


def _signed(value: int) -> int:
    """The 64-bit pattern of an integer as torch's int64 holds it."""
    return (value + 2**63) % 2**64 - 2**63


# SplitMix64: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix(bits: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser in place: a bijection of 64-bit patterns. The masks make the shifts logical."""
    bits ^= (bits >> 30).bitwise_and_(2**34 - 1)
    bits *= _FIRST
    bits ^= (bits >> 27).bitwise_and_(2**37 - 1)
    bits *= _SECOND
    bits ^= (bits >> 31).bitwise_and_(2**33 - 1)
    return bits


Recall = Callable[[Hashable, Callable[[], Tensor]], Tensor]
"""Returns what is known by a key, or what a function makes now."""


@final
@dataclass(frozen=True, eq=False)
class ImageRandom:
    """Random numbers for a batch of images. Every method is pure: the same call returns the same numbers.

    seed: any integer (taken modulo 2**64). index: int64 [B], each image's position in its data set; results
    lie on its device. `stream` (an integer) tells the independent uses within one threat apart; threats share
    streams on purpose, so that the levels of one corruption differ in strength and not in luck.

    recall: keeps what `once` computes, where there is something that keeps it.

    Integers and uniforms are equal to the bit on every device. Normals pass through a logarithm and a cosine,
    which devices round differently; computing them in float64 and returning float32 leaves that difference
    about one chance in 10**8 a number to show, and then by one unit in the last place.

    Raises ConfigurationError if the seed is no integer or the index no vector of int64.
    """

    seed: int
    index: Tensor
    recall: Recall | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigurationError(
                f"seed must be an integer, got {self.seed!r}; give for example seed=0.", option="seed"
            )
        if self.index.dtype != torch.int64 or self.index.dim() != 1:
            raise ConfigurationError(
                f"index must be an int64 vector [B], got {self.index.dtype} {list(self.index.shape)}; "
                "give the images' positions in the data set, for example torch.arange(len(x)).",
                option="index",
            )

    def once(self, draw: Callable[..., Tensor], *what: Any) -> Tensor:
        """Return draw(self, *what), computed once for all levels of a threat; nobody may write into it.

        draw: a pure function of these arguments, such as `ImageRandom.normal`. what: hashable.
        """
        if self.recall is None:
            return draw(self, *what)
        return self.recall((draw, *what), lambda: draw(self, *what))

    def uniform(self, shape: Sequence[int], stream: int, skip: int = 0) -> Tensor:
        """Uniform on [0, 1), float32 [B, *shape]: multiples of 2**-24, all of them exact; after the first `skip`."""
        return (self._bits(shape, stream, skip) >> 40).bitwise_and_(2**24 - 1).to(torch.float32).mul_(2.0**-24)

    def open_uniform(self, shape: Sequence[int], stream: int) -> Tensor:
        """Uniform on (0, 1), for inverse distribution functions.

        It is `uniform` moved by half a step, except that the last value would round to 1 in float32, and stays.
        """
        return self.uniform(shape, stream).add_(2.0**-25).clamp_(max=1.0 - 2.0**-24)

    def normal(self, shape: Sequence[int], stream: int) -> Tensor:
        """Standard normal, float32 [B, *shape]: sqrt(-2 log u) cos(2 pi v), Box & Muller 1958. |z| < 6.7."""
        bits = self._bits(shape, stream)
        exact = torch.float32 if bits.is_mps else torch.float64  # Apple's devices have no float64
        radius = ((bits >> 32).bitwise_and_(2**32 - 1) + 1).to(exact).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = bits.bitwise_and_(2**32 - 1).to(exact).mul_(2.0**-32 * 2.0 * math.pi)
        return radius.mul_(angle.cos_()).to(torch.float32)

    def integers(self, low: int, high: int, shape: Sequence[int], stream: int, skip: int = 0) -> Tensor:
        """Uniform on {low, ..., high - 1}, int64 [B, *shape]; after the first `skip` of the stream.

        32 bits are scaled, so that probabilities are off by less than 2**-32.
        Raises ConfigurationError unless 0 < high - low < 2**31.
        """
        if not 0 < high - low < 2**31:
            raise ConfigurationError(f"integers need low < high < low + 2**31, got low={low}, high={high}.")
        bits = (self._bits(shape, stream, skip) >> 32).bitwise_and_(2**32 - 1)
        return (bits.mul_(high - low) >> 32).add_(low)

    def _bits(self, shape: Sequence[int], stream: int, skip: int = 0) -> Tensor:
        """64 random bits, int64 [B, *shape]: element e is output skip + e of the generator of (seed, i, stream)."""
        start = torch.tensor(_signed(self.seed), device=self.index.device)
        image = _mix(_mix(start + _GAMMA) + (self.index + 1) * _GAMMA)
        key = _mix(image + _signed((stream + 1) * _GAMMA))
        element = torch.arange(skip + 1, skip + math.prod(shape) + 1, device=self.index.device) * _GAMMA
        return _mix(key[:, None] + element).reshape(len(self.index), *shape)
