"""Per-image worst case over attacks, and a check of each attack's gradients against black-box attacks.

An image is robust if every attack within the budget fails on it. So the headline of an evaluation is the per-image
worst case over all attacks of a norm and epsilon, clean images included; the success of a smaller epsilon counts for a
larger one.

A network is not robust because its gradients are useless. If attacks without gradients break what those that follow
them could not, the gradients were misleading, whatever the accuracy (Carlini et al., "On evaluating adversarial
robustness", 2019; Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-
free attacks", ICML 2020).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.summary import wilson_interval
from glr_lightning.threats.facts import BLACK_BOX, WHITE_BOX

WORST_CASE = "worst_case"
SIGNIFICANT = 3.0  # standard errors; a false alarm in 700 comparisons
SHOWN_UP = "a black-box attack"  # how the notes about it begin
UNCHECKED = "no black-box attack"
SOLVED = "the exact attack"
COMPARISONS = (SHOWN_UP, UNCHECKED, SOLVED)

Hits = Mapping[str, NDArray[Any]]


def cross_check(rows: Sequence[Row], correct: Hits) -> list[Row]:
    """Compare the rows of one run with each other.

    Args:
        rows: of one run; worst cases among them are made anew, so the function may be applied again.
        correct: bool [n] by fingerprint, of each row.

    Returns:
        The rows with `black_box_stronger` filled in, and the worst cases behind them.
    """
    plain = [_uncompared(row) for row in rows if row.kind != WORST_CASE]
    compared = [_compared(row, plain, correct) for row in plain]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in compared:
        if row.kind == "attack" and row.norm and row.fingerprint in correct:
            groups.setdefault((*_network(row), row.norm), []).append(row)
    worst = []
    for group in groups.values():
        clean = [row for row in compared if row.kind == "clean" and _network(row) == _network(group[0])]
        for level in sorted({_level(row) for row in group}):
            members = [row for row in group if _level(row) <= level]
            proofs = [row.proved for row in group if row.proved is not None and _level(row) >= level]
            if len(members) > 1:
                worst.append(_worst_case(level, members, clean, correct, max(proofs, default=None)))
    return compared + worst


def _uncompared(row: Row) -> Row:
    """Forget what an earlier comparison said of a row."""
    note = "; ".join(part for part in row.note.split("; ") if not part.startswith(COMPARISONS))
    return replace(row, black_box_stronger=False, unreliable=row.masked, note=note)


def _network(row: Row) -> tuple[Any, ...]:
    """What rows about the same network and images agree in; best and last checkpoint may be the same weights."""
    return row.weights, row.images, row.noisy_passes


def _level(row: Row) -> float:
    assert row.level is not None  # an attack in a norm has an epsilon
    return row.level


def _compared(row: Row, rows: Sequence[Row], correct: Hits) -> Row:
    """Mark an untargeted gradient attack whose source, over all attacks, misses what a black-box attack breaks.

    The note names the one that breaks most. The weakest of all, which leaves the images as they are, always takes
    part: it shows up gradients that point the wrong way. A row that no other checks says so.

    Just one of the two succeeds on b + c images, b by the black box and c by the gradients: without a
    difference b - c has mean 0 and variance b + c (McNemar, Psychometrika 12, 1947).
    """
    if row.kind != "attack" or not row.norm or row.gradient_source not in WHITE_BOX or row.targeted:
        return row
    same = [other for other in rows if _network(other) == _network(row) and other.fingerprint in correct]
    peers = [o for o in same if (o.kind, o.norm, o.level) == ("attack", row.norm, row.level)]
    own = [other for other in peers if other.gradient_source == row.gradient_source and not other.targeted]
    if row not in own:
        return row
    black_boxes = [other for other in peers if other.gradient_source in BLACK_BOX]
    survives = np.logical_and.reduce([correct[other.fingerprint] for other in own])
    found: list[tuple[int, Row]] = []
    for other in (*black_boxes, *(other for other in same if other.kind == "clean")):
        others = correct[other.fingerprint]
        b, c = int((survives & ~others).sum()), int((~survives & others).sum())
        if b - c > SIGNIFICANT * math.sqrt(b + c):
            found.append((b, other))
    notes = [] if black_boxes else [f"{UNCHECKED} at this budget checks its gradients"]
    if found:
        most, strongest = max(found, key=lambda pair: pair[0])
        which = SHOWN_UP if strongest.proved is None else SOLVED
        notes.append(
            f"{which}, {_name(strongest)}, succeeds on {most} images where {row.gradient_source} gradients fail"
        )
    note = "; ".join(filter(None, [row.note, *notes]))
    return replace(row, note=note, black_box_stronger=bool(found), unreliable=row.unreliable or bool(found))


def _worst_case(level: float, members: Sequence[Row], clean: Iterable[Row], correct: Hits, proved: int | None) -> Row:
    """The row of the images that survive all members, and are classified correctly without an attack too.

    proved: of these the number that nothing within this level, or a larger one, breaks; None where no proof was sought.
    """
    found = [correct[row.fingerprint] for row in (*members, *clean) if row.fingerprint in correct]
    survives = np.logical_and.reduce(found)
    hits, n = int(survives.sum()), len(survives)
    low, high = wilson_interval(hits, n)
    believable = any(row.searches and not row.masked for row in members)
    names = dict.fromkeys(map(_name, members))
    note = f"right under each of {len(names)} attacks: {', '.join(names)}"
    if not believable:
        note += "; none of them followed the network's own gradients or scores: this row says nothing about robustness"
    if proved is not None:
        note += f"; {proved} images are proved: the accuracy under any attack is at least {100 * proved / n:.2f} %"
    first = members[0]
    return Row(
        run=first.run,
        checkpoint=first.checkpoint,
        weights=first.weights,
        images=first.images,
        evaluation_seed=first.evaluation_seed,
        noisy_passes=first.noisy_passes,
        threat=WORST_CASE,
        kind=WORST_CASE,
        norm=first.norm,
        level_name=first.level_name,
        level=level,
        gradient_source="",
        n=n,
        correct=hits,
        accuracy=hits / n,
        proved=proved,
        wilson_low=low,
        wilson_high=high,
        seconds=sum(row.seconds for row in members),
        masked=not believable,
        randomized=first.randomized,
        unreliable=not believable,
        note=note,
    )


def _name(row: Row) -> str:
    if row.kind == "clean":
        return "leaving the images as they are"
    source = "" if row.gradient_source == "none" else f"{row.gradient_source} {row.surrogate}".strip()
    return f"{row.threat} ({source})" if source else row.threat
