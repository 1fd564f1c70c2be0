"""From what was measured of each image to the row of a table: counts, intervals, and whether to believe it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, final

import torch
from torch import Tensor

from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.attempts import Attempt
from glr_lightning.evaluation.row import Row

ZERO_GRADIENT_LIMIT = 0.05  # share of images without a gradient above which an attack has not been an attack


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of each image, [n].

    Attributes:
        correct: bool, whether the image is classified correctly.
        prediction: int64, the predicted class.
        l2, linf: norms of x' - x.
        finite, inside, budget: bool, whether x' has finite numbers only, lies in [0, 1], and within epsilon.
        zero_gradient: float, 1 where the first gradient was exactly zero, NaN where none was asked for.
        proved: float, 1 where it is proved that nothing within the budget fools, 0 where not, NaN without proofs.
        queries: int64, forward passes that the attack made.
        reached: bool, whether the prediction is the target; None without targets.
    """

    correct: Tensor
    prediction: Tensor
    l2: Tensor
    linf: Tensor
    finite: Tensor
    inside: Tensor
    budget: Tensor
    zero_gradient: Tensor
    proved: Tensor
    queries: Tensor
    reached: Tensor | None

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The images of several batches, on the CPU."""
        columns: dict[str, Any] = {each.name: [getattr(part, each.name) for part in parts] for each in fields(cls)}
        joined: dict[str, Any] = {
            name: None if part[0] is None else torch.cat(part).cpu() for name, part in columns.items()
        }
        return cls(**joined)

    @property
    def valid(self) -> Tensor:
        """Whether the image keeps all rules, bool."""
        return self.finite & self.inside & self.budget


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
    """Return the fields of a row that count correct images; correct bool [n]."""
    hits, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(hits, n)
    return {"correct": hits, "accuracy": hits / n, "wilson_low": low, "wilson_high": high}


def summarise(
    attempt: Attempt, measured: Measured, shared: Mapping[str, Any], *, seconds: float, fingerprint: str
) -> Row:
    """Make the row of one attempt.

    Args:
        attempt: what was run.
        measured: what it achieved.
        shared: the fields that all rows of the inputs share.
        seconds: wall time of the row.
        fingerprint: the hash of all that the row depends on.
    """
    threat = attempt.threat
    share = float(measured.zero_gradient.double().nanmean())  # an image that was done at once needed no gradient
    needless = math.isnan(share) and not measured.correct.any()  # all were wrong at once
    masked = "" if needless else _masked(attempt.gradient_source, share)
    is_transfer = attempt.gradient_source == "transfer"
    l2, linf = measured.l2.double(), measured.linf.double()
    own_queries = 0.0 if is_transfer else float(measured.queries.double().mean())
    notes = (
        "transfer attack from a surrogate: no white-box claim" if is_transfer else "",
        _averaged(attempt, shared),
        masked,
        _bounds(measured),
        _broken_rules(measured),
        attempt.remark,
    )
    return Row(
        **shared,
        **counted(measured.correct),
        threat=attempt.name,
        kind=threat.kind,
        preset=threat.preset,
        norm=threat.norm,
        level_name=threat.level_name,
        level=None if attempt.level is None else float(attempt.level),
        gradient_source=attempt.gradient_source,
        surrogate=attempt.surrogate,
        targeted=threat.targeted,
        searches=threat.searches and not is_transfer,
        mean_l2=float(l2.mean()),
        max_l2=float(l2.max()),
        mean_linf=float(linf.mean()),
        max_linf=float(linf.max()),
        proved=None if measured.proved.isnan().all() else int(measured.proved.sum()),
        target_reached=None if measured.reached is None else float(measured.reached.double().mean()),
        queries=own_queries if threat.kind == "attack" else None,
        seconds=seconds,
        zero_gradient_fraction=None if math.isnan(share) else share,
        masked=bool(masked),
        out_of_budget=not bool(measured.valid.all()),
        unreliable=bool(masked),
        note="; ".join(filter(None, notes)),
        fingerprint=fingerprint,
    )


def _averaged(attempt: Attempt, shared: Mapping[str, Any]) -> str:
    """Say over how many noisy passes an attack on a randomized network averaged; "" for others."""
    if not shared["randomized"] or attempt.threat.kind != "attack" or attempt.gradient_source == "transfer":
        return ""
    passes = max(1, shared["noisy_passes"])
    averaged = -(-attempt.threat.options.eot // passes) * passes
    return f"predictions are random: the attack's scores and gradients are means over {averaged} noisy passes"


def _masked(source: str, share: float) -> str:
    """Say why a gradient attack says nothing about robustness; "" if it does say something.

    share: of the images whose gradient was zero; NaN if no gradient was seen.
    """
    if share > ZERO_GRADIENT_LIMIT:
        percent = f"{100 * share:.3g} % of the input gradients are exactly zero"
        return f"{percent}: this row says nothing about robustness"
    if math.isnan(share) and source != "none":
        return f"the attack declares the {source} gradient but asked for no input gradient"
    return ""


def _bounds(measured: Measured) -> str:
    """Say between which bounds the accuracy lies under the strongest attack there can be; "" without proofs."""
    if measured.proved.isnan().all():
        return ""
    proved, right, n = int(measured.proved.sum()), int(measured.correct.sum()), len(measured.correct)
    return (
        f"exact: {proved} images proved, {n - right} wrong or broken, {right - proved} undecided; "
        f"the accuracy under any attack lies between {100 * proved / n:.2f} and {100 * right / n:.2f} %"
    )


def _broken_rules(measured: Measured) -> str:
    """Count the images that break a rule; "" if none does."""
    valid = measured.valid
    if valid.all():
        return ""
    rules = {"not finite": measured.finite, "outside [0, 1]": measured.inside, "beyond epsilon": measured.budget}
    counts = {words: int((~kept).sum()) for words, kept in rules.items()}
    details = ", ".join(f"{words}: {count}" for words, count in counts.items() if count)
    return f"{int((~valid).sum())} of {len(valid)} images break the rules ({details})"
