"""Examples of attacked images: the clean ones, the changes, the attacked ones, and the network's predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glr_lightning.evaluation.per_image import PerImage
from glr_lightning.evaluation.row import Row
from glr_lightning.reporting.columns import Column
from glr_lightning.reporting.document import Picture
from glr_lightning.reporting.runs import Run, file_names
from glr_lightning.reporting.style import png, styled, wrapped

GALLERY = "gallery"
ATTACKS, IMAGES = 6, 8
"""The most that are shown of a run."""
TILE = 0.72
"""The side of an image in inches."""
SIGNED = "RdBu_r"
WRONG = "#c1272d"
LINE = 0.34
"""The height of the prediction above an image, as a share of TILE."""


@dataclass(frozen=True, eq=False)
class Block:
    """One attack on the first images of a run.

    Attributes:
        threat: the name of the attack.
        accuracy: under it.
        title: its heading.
        clean: the clean images.
        attacked: the attacked images.
    """

    threat: str
    accuracy: float
    title: str
    clean: PerImage
    attacked: PerImage

    @property
    def change(self) -> NDArray[np.float64]:
        """The change x' - x, [k, C, H, W] in units of the pixel range, rounded to 1/255."""
        change: NDArray[np.float64] = self.attacked.examples[:IMAGES].astype(float) - self.clean.examples[:IMAGES]
        return change / 255

    @property
    def scale(self) -> float:
        """The largest change of a pixel, which gets the strongest colour."""
        return max(float(np.abs(self.change).max()), 1 / 255)


def galleries(runs: Sequence[Run]) -> list[Picture]:
    """Return a picture for each run whose evaluation kept images of an attack and of the clean data.

    Raises:
        CheckpointError: if the file with the images is damaged.
    """
    names = file_names([run.name for run in runs], ".png")
    found = [(run, blocks(run)) for run in runs]
    return [_picture(run, names[run.name], own) for run, own in found if own]


def blocks(run: Run) -> list[Block]:
    """Return each attack at its largest budget, in the order of the table."""
    per_image = run.per_image if any(row.kind == "attack" for row in run.rows) else {}
    strongest: dict[Column, tuple[Column, Row]] = {}
    for column, cell in run.cells.items():
        way = replace(column, levels=())
        if column.kind == "attack" and (way not in strongest or column.levels > strongest[way][0].levels):
            strongest[way] = column, cell.rows[0]
    found = []
    for column, row in strongest.values():
        attacked, clean = per_image.get(row.fingerprint), _clean(run, row, per_image)
        if attacked is not None and clean is not None:
            title = ", ".join(column.words) + (" †" if run.cells[column].warnings else "")
            found.append(Block(column.threat, run.cells[column].accuracy, title, clean, attacked))
    return found


def chosen(found: Sequence[Block]) -> list[Block]:
    """Return ATTACKS blocks in the order of the table; the strongest way of each threat goes before its others."""
    turns: dict[str, list[Block]] = {}
    for block in sorted(found, key=lambda block: block.accuracy):
        turns.setdefault(block.threat, []).append(block)
    first = sorted(found, key=lambda block: turns[block.threat].index(block))[:ATTACKS]
    return [block for block in found if block in first]


def _clean(run: Run, row: Row, per_image: Mapping[str, PerImage]) -> PerImage | None:
    """Return the clean images that a row was attacked from: the same images, or more that begin with them."""
    attacked = per_image.get(row.fingerprint)
    rows = [r for r in run.rows if r.kind == "clean" and r.noisy_passes == row.noisy_passes]
    rows.sort(key=lambda r: r.images != row.images)
    for clean in (per_image.get(r.fingerprint) for r in rows):
        if clean is not None and attacked is not None and _same_images(clean, attacked):
            return clean
    return None


def _same_images(clean: PerImage, attacked: PerImage) -> bool:
    """Whether both are of the same images, as far as what was kept tells."""
    for each in (clean, attacked):
        if not each.examples.size or not len(each.examples) == len(each.labels) == len(each.predictions):
            return False
    return clean.examples.shape == attacked.examples.shape and np.array_equal(clean.labels, attacked.labels)


def _picture(run: Run, name: str, found: Sequence[Block]) -> Picture:
    shown = chosen(found)
    fewer = f", {len(shown)} of {len(found)} attacks, of each kind the strongest first"
    left_out = fewer if len(found) > len(shown) else ""
    marked = "; † must not be read as robustness" if any(block.title.endswith("†") for block in shown) else ""
    caption = (
        f"{run.name}{left_out}. From top to bottom: the first test images, the change, the attacked images with their "
        "predictions above them. Red pixels went up and blue ones down; in colour images grey means no change. The "
        f"number at the left is the change of the strongest colour{marked}"
    )
    with styled():
        return Picture(f"{GALLERY}/{name}", caption, png(gallery(shown)))


def gallery(shown: Sequence[Block]) -> Figure:
    """Draw a panel for each attack, in it three rows of images."""
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    most = max(min(IMAGES, len(block.attacked.examples)) for block in shown)
    figure = Figure(figsize=(across * (TILE * most + 1.1), down * (TILE * (3 + 2 * LINE) + 0.45)))
    figure.set_layout_engine("constrained", h_pad=0.12)
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes, block in zip(panels, shown, strict=False):
        _draw(axes, block)
    for axes in list(panels)[len(shown) :]:
        axes.remove()
    return figure


def _draw(axes: Axes, block: Block) -> None:
    """Draw a panel; y runs downwards, in tiles."""
    k = len(block.change)
    heights = {"clean": LINE, "change": 1 + LINE, "attacked": 2 + 2 * LINE}
    strips = {"clean": block.clean.examples / 255, "attacked": block.attacked.examples / 255}
    strips |= {"change": signed(block.change, block.scale)}
    for row, top in heights.items():
        axes.imshow(strip(strips[row][:IMAGES]), extent=(0, k, top + 1, top), interpolation="nearest", vmin=0, vmax=1)
    for images, row in ((block.clean, "clean"), (block.attacked, "attacked")):
        for place, (label, prediction) in enumerate(zip(images.labels[:k], images.predictions[:k], strict=True)):
            right = label == prediction
            text = f"{prediction}" if right else f"{prediction}, not {label}"
            style: dict[str, Any] = {"color": "#1d2329"} if right else {"color": WRONG, "weight": "bold"}
            axes.text(place + 0.5, heights[row] - 0.06, text, ha="center", va="bottom", fontsize=7, **style)
    scale = f"±{block.scale:.2g}" if block.change.any() else "no change"
    names = [scale if row == "change" else row for row in heights]
    axes.set_yticks([top + 0.5 for top in heights.values()], names, fontsize=8)
    axes.set(xlim=(0, k), ylim=(3 + 2 * LINE, 0), xticks=[], aspect="equal")
    axes.set_title(wrapped(block.title, 12 * k), fontsize=9)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def signed(change: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return the colours of signed changes, [k, 3, H, W] in [0, 1].

    One channel is blue below 0, white at 0, red above; three channels are each around grey.

    Args:
        change: [k, C, H, W].
        scale: changes of this size and more get the strongest colour.
    """
    share = np.clip(0.5 + change / (2 * scale), 0, 1)
    if change.shape[1] == 3:
        return share
    colours: NDArray[np.float64] = matplotlib.colormaps[SIGNED](share.mean(1))[..., :3]
    return colours.transpose(0, 3, 1, 2)


def strip(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put images [k, C, H, W] in [0, 1], grey unless C is 3, side by side in white frames, [H', W', 3]."""
    rgb = images if images.shape[1] == 3 else images.mean(1, keepdims=True).repeat(3, axis=1)
    frame = max(1, images.shape[-1] // 16)
    framed = np.pad(rgb, ((0, 0), (0, 0), (frame, frame), (frame, frame)), constant_values=1.0)
    return np.concatenate(framed.transpose(0, 2, 3, 1), axis=1)
