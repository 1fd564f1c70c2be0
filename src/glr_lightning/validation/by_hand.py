"""The hand-written checks, until nothing calls them."""

from collections.abc import Sequence
from typing import Any

from glr_lightning.errors import ConfigurationError
from glr_lightning.validation.constraints import MOST


def is_scale(value: Any) -> bool:
    """Is it a noise scale: a number from 1e-12 to 1e12, so that float32 holds its square?"""
    return not isinstance(value, bool) and isinstance(value, int | float) and 1e-12 <= value <= 1e12


def validated_sigma(sigma: Any) -> float | tuple[float, ...]:
    """A noise scale or a tuple of them. Raises ConfigurationError unless each is one (`is_scale`)."""
    values = tuple(sigma) if isinstance(sigma, Sequence) and not isinstance(sigma, str) else (sigma,)
    for value in values:
        if not is_scale(value):
            raise ConfigurationError(
                "sigma must be a positive finite number (1e-12 to 1e12), or a list of them (one per layer), got "
                f"{sigma!r}; use for example sigma=1.0 or sigma=[1.0,0.3]."
            )
    if not values:
        raise ConfigurationError("sigma is an empty list; give one value, or one per layer.")
    return tuple(map(float, values)) if isinstance(sigma, Sequence) else float(sigma)


def validated_count(name: str, value: Any) -> int:
    """A whole number from 1 to `MOST`. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise ConfigurationError(f"{name} must be a whole number of at least 1 and at most {MOST:,}, got {value!r}.")
    return value


def validated_copies(value: Any) -> int | tuple[int, ...]:
    """A number of copies, or a tuple of one per layer. Raises ConfigurationError."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ConfigurationError("copies is an empty list; give one number, or one per layer.")
        return tuple(validated_count("copies", number) for number in value)
    return validated_count("copies", value)


def validated_passes(copies: Any) -> int:
    """A number of copies of all layers together. Raises ConfigurationError, with a list too."""
    if isinstance(copies, Sequence) and not isinstance(copies, str):
        raise ConfigurationError(
            f"this estimator takes one number of copies for all layers, got copies={list(copies)!r}; use one number, "
            "or estimator=tiered, or estimator=likelihood_ratio injection=layerwise."
        )
    return validated_count("copies", copies)


def choice(what: str, value: str, choices: Sequence[str]) -> str:
    """value, if it is one of the choices. Raises ConfigurationError."""
    if value not in choices:
        raise ConfigurationError(f"unknown {what} {value!r}; choose from {', '.join(map(repr, choices))}.")
    return value
