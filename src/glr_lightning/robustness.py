"""How often a network is right under each threat, judged so that the number can be believed.

The threat returns images and nothing else; this harness judges them: it lets the attacked network itself
predict, without noise, on the images returned, measures how far they moved, and checks that they stay images
and within budget. A gradient attack that met a vanishing gradient says nothing about robustness (Athalye,
Carlini & Wagner, "Obfuscated gradients give a false sense of security", ICML 2018), so its row says so.

One threat at one level is one row, a flat dict with the keys FIELDS:

    run, checkpoint            which model
    evaluation_seed            of the threats' randomness
    threat, kind, preset       which threat, of which kind and set of constants
    level_name, level          "severity", "epsilon" or ""; its value, None for a threat without levels
    n, correct, accuracy       images, hits and their ratio
    wilson_low, wilson_high    the 95 % interval of the accuracy
    mean_l2 ... max_linf       norms of x' - x per image, in units of the pixel range
    seconds                    wall time of the row, threat and judgement together
    gradient_source            where the attack's gradient came from
    zero_gradient_fraction     share of images whose first gradient was exactly zero; None if there was none
    out_of_budget              an image left [0, 1], the epsilon ball or the finite numbers
    unreliable                 the row must not be read as robustness
    note                       why, in words
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.noisy import NoiseAveraged
from glr_lightning.rows import FIELDS, Row
from glr_lightning.threats import ImageRandom, Threat

TOLERANCE = 1e-6  # rounding of x + epsilon in float32
ZERO_GRADIENT_LIMIT = 0.05  # share of images without a gradient above which an attack has not been an attack


def wilson_interval(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion p = correct / n.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike the normal interval it stays within [0, 1] and keeps its width at p = 0 and 1. Source: Wilson,
    "Probable inference, the law of succession, and statistical inference", JASA 22, 1927. Raises
    ConfigurationError unless 0 <= correct <= n and n >= 1.
    """
    if not (n >= 1 and 0 <= correct <= n):
        raise ConfigurationError(f"an interval needs n >= 1 and 0 <= correct <= n, got correct={correct}, n={n}.")
    p = correct / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)  # exact there, but for rounding


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threats: Mapping[str, Threat],
    *,
    seed: int,
    surrogate: nn.Module | None = None,
    index: Tensor | None = None,
    batch_size: int = 1000,
    run: str = "",
    checkpoint: str = "",
    progress: Callable[[str], None] | None = None,
) -> Iterator[Row]:
    """The rows of `threats` (by name) on images x, float [n, C, H, W] in [0, 1], with labels y, int64 [n].

    model: maps [B, C, H, W] to scores [B, classes], in eval mode; batches go to its parameters' device, type. A
        `NoiseAveraged` one draws the noise of image i from (seed, index[i]) too.
    surrogate: the network that transfer attacks take their gradient from, of the same device and type.
    seed, index: the randomness of image i is a function of (seed, index[i]) alone, so neither the batch size
        nor the choice of images changes a result; index is int64 [n], the positions in the full data set, by
        default 0 .. n - 1.
    run, checkpoint: written into each row.
    progress: called with a line of words before each row.

    Everything is checked at the call; the rows are then computed one by one, as the iterator is read.

    Raises ConfigurationError for networks in training mode or apart from each other, data of the wrong type,
    shape or range, a transfer attack without a surrogate, and, while iterating, a threat that returns another
    shape.
    """
    place = next(model.parameters(), x)
    index = torch.arange(len(x)) if index is None else index
    _check_network("model", model, place)
    if surrogate is not None:
        _check_network("surrogate", surrogate, place)
    _check_data(x, y, index, batch_size)
    _check_threats(threats, surrogate)
    data = list(zip(x.split(batch_size), y.split(batch_size), index.split(batch_size), strict=True))

    def row(name: str, threat: Threat, level: float | None, parameters: Mapping[str, Any]) -> Row:
        if progress is not None:
            progress(name if level is None else f"{name} {threat.level_name} {level:g}")
        source = surrogate if threat.gradient_source == "transfer" and surrogate is not None else model
        start = time.perf_counter()
        batches = [_judge(model, source, threat, parameters, *_to(place, batch), seed=seed) for batch in data]
        images = {key: torch.cat([batch[key] for batch in batches]).cpu() for key in batches[0]}
        facts = {
            "run": run,
            "checkpoint": checkpoint,
            "evaluation_seed": seed,
            "threat": name,
            "level": None if level is None else float(level),
            "seconds": time.perf_counter() - start,
        }
        return _summarise(threat, images, facts)

    return (
        row(name, threat, level, parameters) for name, threat in threats.items() for level, parameters in threat.levels
    )


@torch.no_grad()
def _judge(
    model: nn.Module,
    source: nn.Module,
    threat: Threat,
    parameters: Mapping[str, Any],
    x: Tensor,
    y: Tensor,
    index: Tensor,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """One batch: per image [B], whether it is classified rightly, how far it moved, which rules it keeps."""
    with _first_gradient(source, len(x)) as no_gradient:
        # Copies: a threat that writes into its arguments must not move the goal.
        moved = threat.function(source, x.clone(), y.clone(), random=ImageRandom(seed, index), **parameters)
    if moved.shape != x.shape:
        raise ConfigurationError(
            f"a threat must return images of the shape it was given, {list(x.shape)}; "
            f"{getattr(threat.function, '__name__', threat.function)} returned {list(moved.shape)}."
        )
    scores = model(moved, ImageRandom(seed, index)) if isinstance(model, NoiseAveraged) else model(moved)
    change = (moved - x).flatten(1)
    size = {"linf": change.abs().amax(1), "l2": torch.linalg.vector_norm(change, dim=1)}
    inside = (moved >= -TOLERANCE) & (moved <= 1.0 + TOLERANCE)
    bound = parameters["epsilon"] + TOLERANCE if threat.norm else math.inf
    unseen = x.new_full((len(x),), math.nan)
    return {
        "correct": scores.argmax(1) == y,
        **size,
        "finite": moved.flatten(1).isfinite().all(1),
        "inside": inside.flatten(1).all(1),
        "budget": size[threat.norm or "linf"] <= bound,
        "no_gradient": no_gradient[0].to(x.dtype) if no_gradient else unseen,
    }


@contextmanager
def _first_gradient(network: nn.Module, batch: int) -> Iterator[list[Tensor]]:
    """Watches the first gradient that flows back through `network` to the images.

    Yields a list that receives at most one bool [batch]: true where that gradient is exactly zero. So the
    attack's own gradient is judged, at no cost and whatever the attack does with it. An input that asks for a
    gradient and gets none has a zero gradient too. Copies of the batch in one call lie copy-major, and those
    of an image count as one.
    """
    zero: list[Tensor] = []

    def watch(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        image = arguments[0]
        if zero or not (image.requires_grad and torch.is_grad_enabled()) or len(image) % batch:
            return None
        zero.append(torch.ones(batch, dtype=torch.bool, device=image.device))

        def record(gradient: Tensor) -> None:
            zero[0] = (gradient.reshape(-1, batch, gradient[0].numel()) == 0).all(dim=2).all(dim=0)

        image = image.view_as(image)
        image.register_hook(record)
        return (image, *arguments[1:])

    handle = network.register_forward_pre_hook(watch)
    try:
        yield zero
    finally:
        handle.remove()


def _summarise(threat: Threat, images: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Row:
    """The row of one level from its per-image results."""
    correct, n = int(images["correct"].sum()), len(images["correct"])
    low, high = wilson_interval(correct, n)
    share = float(images["no_gradient"].double().mean())
    lawful = images["finite"] & images["inside"] & images["budget"]
    masked = _masked(threat, share)
    l2, linf = images["l2"].double(), images["linf"].double()
    row = {
        **facts,
        "kind": threat.kind,
        "preset": threat.preset,
        "level_name": threat.level_name,
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "wilson_low": low,
        "wilson_high": high,
        "mean_l2": float(l2.mean()),
        "max_l2": float(l2.max()),
        "mean_linf": float(linf.mean()),
        "max_linf": float(linf.max()),
        "gradient_source": threat.gradient_source,
        "zero_gradient_fraction": None if math.isnan(share) else share,
        "out_of_budget": not bool(lawful.all()),
        "unreliable": bool(masked),
        "note": "; ".join(filter(None, [_transfer(threat), masked, _broken_rules(images, lawful)])),
    }
    return {field: row[field] for field in FIELDS}


def _transfer(threat: Threat) -> str:
    transferred = threat.gradient_source == "transfer"
    return "transfer attack from a surrogate: no white-box claim" if transferred else ""


def _masked(threat: Threat, share: float) -> str:
    """Why a gradient attack says nothing, "" if it does not say nothing.

    share: of the images whose gradient was zero; NaN if no gradient was seen.
    """
    if share > ZERO_GRADIENT_LIMIT:
        percent = f"{100 * share:.3g} % of the input gradients are exactly zero"
        return f"{percent}: this row says nothing about robustness"
    if math.isnan(share) and threat.gradient_source in ("transfer", "autograd"):
        return f"the attack declares the {threat.gradient_source} gradient but asked for no input gradient"
    return ""


def _broken_rules(images: Mapping[str, Tensor], lawful: Tensor) -> str:
    if lawful.all():
        return ""
    rules = {"not finite": "finite", "outside [0, 1]": "inside", "beyond epsilon": "budget"}
    counts = {words: int((~images[key]).sum()) for words, key in rules.items()}
    details = ", ".join(f"{words}: {count}" for words, count in counts.items() if count)
    return f"{int((~lawful).sum())} of {len(lawful)} images break the rules ({details})"


def _to(place: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    x, y, index = batch
    return x.to(place), y.to(place.device), index.to(place.device)


def _check_network(name: str, network: nn.Module, place: Tensor) -> None:
    if any(module.training for module in network.modules()):
        raise ConfigurationError(
            f"the {name} must be in eval mode, but a module of it is training; call {name}.eval() first."
        )
    parameter = next(network.parameters(), place)
    if (parameter.device, parameter.dtype) != (place.device, place.dtype):
        raise ConfigurationError(
            f"the {name} must be where the model is, {place.dtype} on {place.device}; "
            f"got {parameter.dtype} on {parameter.device}. Move it with {name}.to(...)."
        )
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"the {name} has {parameter.dtype} parameters, too coarse for pixel budgets; use {name}.float()."
        )


def _check_data(x: Tensor, y: Tensor, index: Tensor, batch_size: int) -> None:
    if not x.is_floating_point() or x.dim() != 4 or not len(x):
        raise ConfigurationError(f"x must be a float tensor [n >= 1, C, H, W], got {x.dtype} {list(x.shape)}.")
    if not (x.amin() >= 0 and x.amax() <= 1):  # also false for NaN
        raise ConfigurationError(
            f"x must lie within [0, 1], got [{x.amin():.4g}, {x.amax():.4g}]; "
            "scale the pixels, and normalise in the network."
        )
    for name, values in (("y", y), ("index", index)):
        if values.dtype != torch.int64 or values.shape != x.shape[:1]:
            raise ConfigurationError(
                f"{name} must be int64 [{len(x)}], one an image, got {values.dtype} {list(values.shape)}."
            )
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}.")


def _check_threats(threats: Mapping[str, Threat], surrogate: nn.Module | None) -> None:
    if not threats:
        raise ConfigurationError("no threats were given; give at least one, for example threat=[clean].")
    lonely = [name for name, threat in threats.items() if threat.gradient_source == "transfer"]
    if lonely and surrogate is None:
        raise ConfigurationError(
            f"the transfer attacks {', '.join(lonely)} need a surrogate, got none; "
            "give one, or set gradient_source=autograd for a white-box attack."
        )
