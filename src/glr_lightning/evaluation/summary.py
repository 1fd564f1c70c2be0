"""From what an attack left of each image to the row of a table: counts, intervals, and whether it may be believed."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Trial
from glr_lightning.evaluation.row import Row

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


def counted(correct: Tensor) -> dict[str, Any]:
    """The fields of a row that count hits; correct bool [n]."""
    hits, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(hits, n)
    return {"correct": hits, "accuracy": hits / n, "wilson_low": low, "wilson_high": high}


def summarise(trial: Trial, images: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Row:
    """The row of one trial from its per-image results."""
    threat = trial.threat
    share = float(images["no_gradient"].double().nanmean())  # an image that was done at once needed no gradient
    lawful = images["finite"] & images["inside"] & images["budget"]
    needless = math.isnan(share) and not images["correct"].any()  # all were wrong at once
    masked = "" if needless else _masked(trial.gradient_source, share)
    l2, linf = images["l2"].double(), images["linf"].double()
    own_queries = 0.0 if trial.gradient_source == "transfer" else float(images["queries"].double().mean())
    note = [_transfer(trial), _eot(trial, facts), masked, _broken_rules(images, lawful)]
    return Row(
        **facts,
        threat=trial.name,
        kind=threat.kind,
        preset=threat.preset,
        norm=threat.norm,
        level_name=threat.level_name,
        level=None if trial.level is None else float(trial.level),
        gradient_source=trial.gradient_source,
        surrogate=trial.surrogate,
        targeted=threat.targeted,
        **counted(images["correct"]),
        mean_l2=float(l2.mean()),
        max_l2=float(l2.max()),
        mean_linf=float(linf.mean()),
        max_linf=float(linf.max()),
        target_reached=float(images["reached"].double().mean()) if threat.targeted else None,
        queries=own_queries if threat.kind == "attack" else None,
        zero_gradient_fraction=None if math.isnan(share) else share,
        masked=bool(masked),
        out_of_budget=not bool(lawful.all()),
        unreliable=bool(masked),
        note="; ".join(filter(None, note)),
    )


def _transfer(trial: Trial) -> str:
    return "transfer attack from a surrogate: no white-box claim" if trial.gradient_source == "transfer" else ""


def _eot(trial: Trial, facts: Mapping[str, Any]) -> str:
    if not facts["randomized"] or trial.threat.kind != "attack" or trial.gradient_source == "transfer":
        return ""
    passes = max(1, facts["noisy_passes"])
    averaged = -(-trial.threat.options.eot // passes) * passes
    return f"predictions are random: the attack's scores and gradients are means over {averaged} noisy passes"


def _masked(source: str, share: float) -> str:
    """Why a gradient attack says nothing, "" if it does not say nothing.

    share: of the images whose gradient was zero; NaN if no gradient was seen.
    """
    if share > ZERO_GRADIENT_LIMIT:
        percent = f"{100 * share:.3g} % of the input gradients are exactly zero"
        return f"{percent}: this row says nothing about robustness"
    if math.isnan(share) and source != "none":
        return f"the attack declares the {source} gradient but asked for no input gradient"
    return ""


def _broken_rules(images: Mapping[str, Tensor], lawful: Tensor) -> str:
    if lawful.all():
        return ""
    rules = {"not finite": "finite", "outside [0, 1]": "inside", "beyond epsilon": "budget"}
    counts = {words: int((~images[key]).sum()) for words, key in rules.items()}
    details = ", ".join(f"{words}: {count}" for words, count in counts.items() if count)
    return f"{int((~lawful).sum())} of {len(lawful)} images break the rules ({details})"
