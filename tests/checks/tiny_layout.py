"""Tiny-ImageNet in miniature: a few small images in the published layout."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

TOP = "tiny-imagenet-200"
WNIDS = [f"n{number:08d}" for number in (7, 3, 11, 1, 9, 5, 2, 12, 8, 4, 10, 6)]  # in no order
TRAIN, TEST = 3, 2  # images of each class
Layout = dict[str, bytes]


def as_jpeg(seed: int, mode: str = "RGB", side: int = 64) -> bytes:
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, channels), dtype=np.uint8)
    smooth = Image.fromarray(pixels.squeeze(), mode).resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def layout() -> Layout:
    """The files of the published layout, relative to its top folder; every fifth image is grey, one is CMYK."""
    files = {"words.txt": b"n00000001\tentity\n"}
    for place, wnid in enumerate(WNIDS):
        for number in range(TRAIN):
            mode = "L" if (place * TRAIN + number) % 5 == 0 else "CMYK" if (place, number) == (1, 1) else "RGB"
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = as_jpeg(100 * place + number, mode)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
    lines = []
    for number in range(TEST * len(WNIDS)):
        wnid = WNIDS[number * 5 % len(WNIDS)]
        files[f"val/images/val_{number}.JPEG"] = as_jpeg(10_000 + number)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t1\t62\t63\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = b"without a label, and never read"
    files["wnids.txt"] = "\n".join(WNIDS).encode()  # the published one has no line feed at its end
    return files


LAYOUT = layout()


def two_hundred_classes() -> Layout:
    """One image of each of 200 classes, one and the same, for training and for the test."""
    wnids, image = [f"n{number:08d}" for number in range(200)], as_jpeg(0)
    files = {f"train/{wnid}/images/{wnid}_0.JPEG": image for wnid in wnids}
    files |= {f"val/images/val_{number}.JPEG": image for number in range(200)}
    files["val/val_annotations.txt"] = "".join(f"val_{n}.JPEG\t{wnid}\n" for n, wnid in enumerate(wnids)).encode()
    files["wnids.txt"] = "\r\n".join(wnids).encode()
    return files


def write_folder(folder: Path, files: Layout = LAYOUT) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
