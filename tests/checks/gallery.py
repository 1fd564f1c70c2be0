"""Kept pictures of an evaluation."""

from pathlib import Path
from typing import Any

import numpy as np

from glr_lightning.evaluation.per_image import PerImage, write_per_image
from tests.checks.reports import make_run, row


def evidence(examples: Any, predictions: list[int]) -> PerImage:
    labels = np.arange(len(predictions))
    return PerImage(labels == predictions, np.asarray(examples, dtype=np.uint8), labels, np.array(predictions))


def looked_at(folder: Path, channels: int = 1) -> Path:
    """Two images under one attack at two budgets; the second is made wrong."""
    clean = np.full((2, channels, 4, 4), 100)
    moved = clean.copy()
    moved[1, :, 0, 0], moved[1, :, 3, 3] = 151, 49  # 51 / 255 = 0.2
    rows = [row("clean", 180, fingerprint="c")]
    rows += [row("pgd", 100, level, "attack", fingerprint=f"p{level}", unreliable=True) for level in (0.1, 0.2)]
    make_run(folder, rows=rows)
    kept = {"c": evidence(clean, [0, 1]), "p0.1": evidence(clean, [0, 1]), "p0.2": evidence(moved, [0, 7])}
    write_per_image(folder / "robustness.npz", kept)
    return folder
