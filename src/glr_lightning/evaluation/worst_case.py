"""What no single attack tells: how many images survive all of them, and whether one attack shows another up.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.summary import wilson_interval
from glr_lightning.threats.attacks.random_noise import random_noise

WORST_CASE = "worst_case"
NETWORK = ("weights", "images", "noisy_passes")  # and not `checkpoint`: best and last may be the same weights
GRADIENTS = ("autograd", "straight_through", "likelihood_ratio")
BLACK_BOX = ("none", "transfer")
SIGNIFICANT = 3.0  # standard errors; a false alarm in 700 comparisons
SHOWN_UP = "a black-box attack"  # how the notes about it begin
UNCHECKED = "no black-box attack"
VERDICTS = (SHOWN_UP, UNCHECKED)

Hits = Mapping[str, NDArray[Any]]


def cross_check(rows: Sequence[Row], correct: Hits) -> list[Row]:
    """The rows with `black_box_stronger` filled in, and the worst cases behind them.

    rows: of one run; worst cases among them are made anew, so the function may be applied again.
    correct: bool [n] by fingerprint, of each row.
    """
    plain = [_without_verdict(row) for row in rows if row["kind"] != WORST_CASE]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in plain:
        if row["kind"] == "attack" and row["norm"] and row["fingerprint"] in correct:
            key = tuple(row[field] for field in (*NETWORK, "norm"))
            groups.setdefault(key, []).append(row)
    worst: list[Row] = []
    for group in groups.values():
        clean = [row for row in plain if row["kind"] == "clean" and _same_network(row, group[0])]
        for level in sorted({row["level"] for row in group}):
            _show_up([row for row in group if row["level"] == level], clean, correct)
        for level in sorted({row["level"] for row in group}):
            members = [row for row in group if row["level"] <= level]
            if len(members) > 1:
                worst.append(_worst_case(level, members, clean, correct))
    return plain + worst


def _without_verdict(row: Row) -> Row:
    note = "; ".join(part for part in row["note"].split("; ") if not part.startswith(VERDICTS))
    return row | {"black_box_stronger": False, "unreliable": row["masked"], "note": note}


def _same_network(row: Row, other: Row) -> bool:
    return all(row[field] == other[field] for field in NETWORK)


def _show_up(rows: Sequence[Row], clean: Sequence[Row], correct: Hits) -> None:
    """Mark, in place, the rows of a source of gradients that all together miss what a black-box attack breaks.

    The note names the one that breaks most. The weakest of all, which leaves the images as they are, always takes
    part: it shows up gradients that point the wrong way. A row that no other checks says so.

    Of the images on which just one of the two succeeds, b are the black box's and c the gradients': without a
    difference b - c has mean 0 and variance b + c (McNemar, Psychometrika 12, 1947).
    """
    for source in GRADIENTS:
        own = [row for row in rows if row["gradient_source"] == source and not row["targeted"]]
        if not own:
            continue
        survives = np.logical_and.reduce([correct[row["fingerprint"]] for row in own])
        found: list[tuple[int, Row]] = []
        black_boxes = [row for row in rows if row["gradient_source"] in BLACK_BOX]
        for other in (*black_boxes, *(row for row in clean if row["fingerprint"] in correct)):
            others = correct[other["fingerprint"]]
            b, c = int((survives & ~others).sum()), int((~survives & others).sum())
            if b - c > SIGNIFICANT * math.sqrt(b + c):
                found.append((b, other))
        if not black_boxes:
            for row in own:
                _add(row, f"{UNCHECKED} at this budget checks its gradients")
        if not found:
            continue
        most, strongest = max(found, key=lambda pair: pair[0])
        for row in own:
            _add(row, f"{SHOWN_UP}, {_name(strongest)}, succeeds on {most} images where {source} gradients fail")
            row["black_box_stronger"] = row["unreliable"] = True


def _add(row: Row, note: str) -> None:
    row["note"] = "; ".join(filter(None, [row["note"], note]))


def _worst_case(level: float, members: Sequence[Row], clean: Iterable[Row], correct: Hits) -> Row:
    found = [correct[row["fingerprint"]] for row in (*members, *clean) if row["fingerprint"] in correct]
    survives = np.logical_and.reduce(found)
    hits, n = int(survives.sum()), len(survives)
    low, high = wilson_interval(hits, n)
    believable = [row for row in members if _searched(row)]
    names = dict.fromkeys(_name(row) for row in members)
    note = f"right under each of {len(names)} attacks: {', '.join(names)}"
    if not believable:
        note += "; none of them followed the network's own gradients or scores: this row says nothing about robustness"
    nothing = ("mean_l2", "max_l2", "mean_linf", "max_linf", "target_reached", "abstained", "queries")
    return members[0] | {
        "threat": WORST_CASE,
        "kind": WORST_CASE,
        "preset": "",
        "level": level,
        "gradient_source": "",
        "surrogate": "",
        "targeted": False,
        "n": n,
        "correct": hits,
        "accuracy": hits / n,
        "wilson_low": low,
        "wilson_high": high,
        **dict.fromkeys(nothing),
        "seconds": sum(row["seconds"] for row in members),
        "zero_gradient_fraction": None,
        "masked": not believable,
        "out_of_budget": False,
        "black_box_stronger": False,
        "unreliable": not believable,
        "note": note,
        "fingerprint": "",
    }


def _searched(row: Row) -> bool:
    """Did the attack go where the network's own gradients or scores led it? Random points do not."""
    return not row["masked"] and row["gradient_source"] != "transfer" and row["threat"] != random_noise.__name__


def _name(row: Row) -> str:
    if row["kind"] == "clean":
        return "leaving the images as they are"
    source = "" if row["gradient_source"] == "none" else f"{row['gradient_source']} {row['surrogate']}".strip()
    return f"{row['threat']} ({source})" if source else row["threat"]
