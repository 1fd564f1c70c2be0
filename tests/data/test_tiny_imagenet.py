"""Tiny-ImageNet in miniature: every kind of source, what is refused, and the file of decoded pixels."""

import gzip
import io
import lzma
import os
import pickle
import shutil
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glr_lightning.cli import evaluate
from glr_lightning.config import build, compose, config_hash
from glr_lightning.data import (
    TinyImageNet,
    TinyImageNet10,
    decoding,
    files,
    pixel_cache,
    tiny_imagenet,
)
from glr_lightning.errors import DataError
from glr_lightning.evaluation.row import read_rows
from glr_lightning.runs.trained_run import at_root, load_run
from glr_lightning.training.fit import train
from tests.checks.cli_runner import run_cli
from tests.checks.refusals import refused
from tests.checks.tiny_layout import LAYOUT, TOP, TRAIN, WNIDS, Layout, as_jpeg, two_hundred_classes, write_folder


def write_zip(path: Path, files: Layout = LAYOUT, top: str = f"{TOP}/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(top.rstrip("/") or "train")
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


def tar_bytes(files: Layout = LAYOUT, top: str = f"{TOP}/", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        folder = tarfile.TarInfo(f"{top}train/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, files: Layout = LAYOUT, top: str = f"{TOP}/", **options: Any) -> Path:
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(tar_bytes(files, top, **options)))
    return path


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a test wanted to download something")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user's cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that holds the data set as a tar, the quickest to write."""
    (tmp_path / "root").mkdir()
    write_tar(tmp_path / "root" / f"{TOP}.tar")
    return tmp_path / "root"


def ten(root: Path, **options: Any) -> TinyImageNet10:
    return TinyImageNet10(**{"root": root, "batch_size": 4, "download": False, **options})


def expected(train: bool, wnids: list[str], mode: str = "RGB", side: int = 64) -> tuple[np.ndarray, list[int]]:
    """Images [N, C, side, side] and labels, each file decoded by Pillow."""
    if train:
        names = [f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in wnids for number in range(TRAIN)]
        labels = [label for label in range(len(wnids)) for _ in range(TRAIN)]
    else:
        lines = [line.split("\t") for line in LAYOUT["val/val_annotations.txt"].decode().splitlines()]
        names = [f"val/images/{line[0]}" for line in lines if line[1] in wnids]
        labels = [wnids.index(line[1]) for line in lines if line[1] in wnids]
    images = [Image.open(io.BytesIO(LAYOUT[name])).convert("RGB").convert(mode) for name in names]
    pixels = [np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images]
    return np.stack(pixels).reshape(len(names), side, side, -1).transpose(0, 3, 1, 2), labels


def assert_holds(module: TinyImageNet | TinyImageNet10, wnids: list[str], mode: str = "RGB") -> None:
    for train_ in (True, False):
        images, labels = module.read(train_)
        pixels, numbers = expected(train_, wnids, mode)
        assert np.array_equal(images.numpy(), pixels)
        assert labels.tolist() == numbers


# --- sources --------------------------------------------------------------------------------------------------------


SOURCES: dict[str, Callable[[Path], Path]] = {
    "a folder that holds the folder": lambda at: write_folder(at / TOP).parent,
    "the folder": lambda at: write_folder(at / "renamed"),
    "a folder that holds a zip": lambda at: write_zip(at / f"{TOP}.zip").parent,
    "a folder that holds a tar": lambda at: write_tar(at / f"{TOP}.tar").parent,
    "a folder that holds a tar.gz": lambda at: write_tar(at / f"{TOP}.tar.gz").parent,
    "a folder that holds a tar.xz": lambda at: write_tar(at / f"{TOP}.tar.xz").parent,
    "a zip": lambda at: write_zip(at / "mine.zip"),
    "a tar.xz": lambda at: write_tar(at / "mine.tar.xz"),
    "a zip without a top folder": lambda at: write_zip(at / "mine.zip", top=""),
    "a tar whose names begin with a dot": lambda at: write_tar(at / "mine.tar", top="./"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_images_as_pillow_decodes_them(tmp_path: Path, source: str) -> None:
    assert_holds(ten(SOURCES[source](tmp_path)), WNIDS[:10])
    (cache,) = tmp_path.rglob("*.pixels")
    assert cache.parent in {tmp_path, tmp_path / "renamed"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_classes_are_the_first_ten_or_those_asked_for_in_their_order(root: Path) -> None:
    chosen = [WNIDS[11], WNIDS[2], WNIDS[5]]
    module = ten(root, wnids=chosen)
    assert module.classes == 3
    assert_holds(module, chosen)
    assert_holds(ten(root, wnids=tuple(WNIDS)), WNIDS)
    assert_holds(TinyImageNet(root=root, batch_size=4, wnids=WNIDS[1:3]), WNIDS[1:3])
    with pytest.raises(DataError, match=r"wnids.txt is damaged: expected at least 200 classes, found 12"):
        TinyImageNet(root=root, batch_size=4).prepare_data()


def test_the_two_hundred_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / f"{TOP}.tar", two_hundred_classes())
    module = TinyImageNet(root=tmp_path, batch_size=4)
    assert (module.classes, module.image_shape) == (200, (3, 64, 64))
    assert module.part("train").labels.tolist() == module.part("test").labels.tolist() == list(range(200))


def test_grey_is_the_luma_and_one_channel(root: Path) -> None:
    module = ten(root, grey=True)
    assert module.image_shape == (1, 64, 64)
    assert_holds(module, WNIDS[:10], mode="L")


@pytest.mark.parametrize(("grey", "mode"), [(True, "L"), (False, "RGB")])
def test_resizing_is_antialiased_and_done_on_the_grey_image(root: Path, grey: bool, mode: str) -> None:
    module = ten(root, grey=grey, resize=48)
    assert module.image_shape == (1 if grey else 3, 48, 48)
    images, _ = module.read(train=True)
    difference = np.abs(images.numpy().astype(int) - expected(True, WNIDS[:10], mode, 48)[0])
    assert difference.max() <= 1  # Pillow rounds after each of the two directions
    assert np.array_equal((module.part("train").images.numpy()), images.numpy())  # and once


def test_the_subset_of_the_configuration_is_grey_and_smaller(root: Path) -> None:
    section = compose(["data=tiny_imagenet_10", f"data.root={root}"])["data"]
    assert (section["grey"], section["resize"], section["wnids"]) == (True, 48, None)
    section = compose(["data=tiny_imagenet"])["data"]
    assert (section["grey"], section["resize"], section["wnids"]) == (False, None, None)


# --- what becomes of them -------------------------------------------------------------------------------------------


def test_the_parts_are_indices_into_one_mapping(root: Path) -> None:
    module = ten(root, validation=0.2)
    train_, val = module.part("train"), module.part("val")
    assert (len(train_), len(val), len(module.part("test"))) == (24, 6, 20)
    assert train_.images.data_ptr() == val.images.data_ptr()  # of the same pixels
    assert train_.images.shape[0] == 30
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(next(root.glob("*.pixels"))) in maps.read_text()
    assert sorted(torch.cat([train_.rows, val.rows]).tolist()) == list(range(30))
    batches = list(module.train_dataloader())
    assert [(images.dtype, len(images)) for images, _ in batches] == [(torch.uint8, 4)] * 6
    pixels, labels = expected(True, WNIDS[:10])
    for which, part in (("train", train_), ("val", val)):
        images, numbers = module.split(which)  # type: ignore[arg-type]
        assert np.array_equal((images * 255).round().byte().numpy(), pixels[part.rows.numpy()])
        assert numbers.tolist() == [labels[row] for row in part.rows]
        some, _ = part[torch.tensor([4, 1])]
        assert torch.equal(some.float() / 255, images[[4, 1]])
        assert torch.equal(module.split(which, 3)[0], images[:3])  # type: ignore[arg-type]


def test_a_run_trains_and_evaluates_and_another_folder_has_its_own_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["data=tiny_imagenet_10", "experiment=bp", "epochs=1", "progress=false", "data.flip=true", "data.crop=2"]
    config = compose([*options, f"data.root={root}", f"data.cache={tmp_path / 'cache'}"])
    assert config_hash(config) == config_hash(compose(options))
    result = train(config, tmp_path / "run")
    assert [path.parent for path in tmp_path.rglob("*.pixels")] == [tmp_path / "cache"]
    outcome = run_cli(evaluate.main, [f"run={tmp_path / 'run'}", "threat=clean", "progress=false"], monkeypatch, capsys)
    assert outcome.code == 0, outcome.err
    (row,) = read_rows(tmp_path / "run" / "robustness.csv")
    assert row.accuracy == pytest.approx(result["test_accuracy"], abs=1e-7)
    assert row.n == 20
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(root, elsewhere)
    shutil.rmtree(root)
    moved = load_run(tmp_path / "run", root=str(elsewhere))
    assert (moved.data.root, moved.data.cache) == (elsewhere, None)
    assert len(moved.data.split("test", 7)[0]) == 7


def test_a_process_that_is_spawned_gets_no_copy_of_the_images(root: Path) -> None:
    module = ten(root, validation=0.2)
    module.setup()
    content = pickle.dumps(module)
    assert len(content) < 5_000
    there = pickle.loads(content)
    assert torch.equal(there.split("val")[0], module.split("val")[0])


def test_a_cache_is_forgotten_with_the_place_it_was_chosen_for() -> None:
    section = {"root": "here", "cache": "there", "crop": 1}
    assert at_root(section, None) == at_root(section, "here/") == section
    assert at_root(section, "elsewhere") == {"root": "elsewhere", "cache": None, "crop": 1}
    assert at_root({"root": None}, "elsewhere") == {"root": "elsewhere"}


# --- the file of decoded pixels -------------------------------------------------------------------------------------


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoding, "_decoded", refuse)


def test_decodes_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ten(root).prepare_data()
    refuse_to_decode(monkeypatch)
    assert_holds(ten(root, batch_size=7, seed=1, validation=0.5, flip=True), WNIDS[:10])


@pytest.mark.parametrize(
    "options", [{"grey": True}, {"resize": 48}, {"wnids": WNIDS[:2]}, {"wnids": WNIDS[9::-1]}], ids=str
)
def test_other_settings_have_a_file_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    ten(root).prepare_data()
    with monkeypatch.context() as patch:
        refuse_to_decode(patch)
        with pytest.raises(AssertionError, match="decoded again"):
            ten(root, **options).prepare_data()
    ten(root, **options).prepare_data()
    refuse_to_decode(monkeypatch)
    assert_holds(ten(root), WNIDS[:10])


def test_says_where_others_lie_and_how_much_they_take(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyImageNet(root=root, batch_size=4, wnids=WNIDS[:2]).prepare_data()  # of another data set
    ten(root).prepare_data()
    assert capsys.readouterr().err == ""
    ten(root, grey=True).prepare_data()
    ten(root, wnids=WNIDS[:2]).prepare_data()
    *_, line = capsys.readouterr().err.splitlines()
    assert f"{root} holds 2 more tiny_imagenet_10-*.pixels, 0.00 GB" in line
    assert len(list(root.glob("*.pixels"))) == 4
    ten(root).prepare_data()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("same", ["size", "time"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_other_data_at_the_same_place_are_decoded(tmp_path: Path, kind: str, same: str) -> None:
    name = f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"
    other = as_jpeg(77)
    longest = max(len(other), len(LAYOUT[name])) + (10_000 if same == "time" else 0)
    for version, content in enumerate((LAYOUT[name], other.ljust(longest, b"\0"))):  # what follows an image is ignored
        content = content.ljust(longest, b"\0") if same == "size" else content
        changed = LAYOUT | {name: content}
        write_folder(tmp_path / TOP, changed) if kind == "folder" else write_tar(tmp_path / f"{TOP}.tar", changed)
        path = tmp_path / TOP / name if kind == "folder" else tmp_path / f"{TOP}.tar"
        os.utime(path, (1, 1 if same == "time" else 1 + version))
        first = ten(tmp_path).read(train=True)[0][0].permute(1, 2, 0)
        assert np.array_equal(first.numpy(), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


SPOILS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut header": lambda content: content[:1000],
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "no header": lambda content: bytes(len(content)),
    "not a mapping": lambda content: b"[]".ljust(4096) + content[4096:],
    "another format": lambda content: content.replace(b"pixels 1", b"pixels 0", 1),
    "another key": lambda content: content.replace(b'"key": ', b'"kay": ', 1),
    "negative counts": lambda content: content.replace(b"[30, 20]", b"[-3, 53]", 1),
    "other counts": lambda content: content.replace(b"[30, 20]", b"[20, 31]", 1),
    "labels": lambda content: content[:4096] + b"\x05" + content[4097:],
    "text": lambda content: content.replace(b"[30, 20]", b'"30, 2"', 1),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_file_is_made_again(root: Path, spoil: str) -> None:
    ten(root).prepare_data()
    (path,) = root.glob("*.pixels")
    content = path.read_bytes()
    spoilt = SPOILS[spoil](content)
    assert spoilt != content
    path.unlink()  # what is mapped elsewhere stays as it is
    path.write_bytes(spoilt)
    assert_holds(ten(root), WNIDS[:10])
    assert path.read_bytes() == content


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    seen = []
    real = decoding._decoded

    def interrupted(*args: Any) -> bytes:
        seen.append(args)
        if len(seen) == 20:
            raise failure
        return real(*args)

    before = sorted(root.parent.rglob("*"))
    monkeypatch.setattr(decoding, "BATCH", 8)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decoded", interrupted)
        patch.setattr(TinyImageNet10, "_cache_folders", lambda self: [root / "deep" / "below"])
        with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else DataError) as caught:
            ten(root).prepare_data()
    if isinstance(caught.value, DataError):
        assert "cannot be kept" in str(caught.value)
        assert "No space left on device). Set data.cache=DIR" in str(caught.value)
    assert sorted(root.parent.rglob("*")) == before
    assert_holds(ten(root), WNIDS[:10])


def test_several_may_write_at_the_same_time(tmp_path: Path) -> None:
    images = torch.arange(2 * 64 * 50, dtype=torch.int64).byte().view(-1, 1, 8, 8)
    labels = {True: torch.arange(60), False: torch.arange(40)}
    meeting = threading.Barrier(4)

    def write() -> None:
        def batches() -> Any:
            for batch in images.split(25):
                meeting.wait(10)
                yield batch

        pixel_cache.save(tmp_path / "p", "key", labels, (1, 8, 8), batches())

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    found = pixel_cache.load(tmp_path / "p", "key")
    assert found is not None
    assert torch.equal(torch.cat([found[True][0], found[False][0]]), images)
    assert torch.equal(found[False][1], labels[False])
    found[True][0].zero_()  # what is done to the tensors does not reach the file
    again = pixel_cache.load(tmp_path / "p", "key")
    assert again is not None
    assert torch.equal(again[True][0], images[:60])


def test_the_place_of_the_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ten(root, cache=tmp_path / "given" / "deep").prepare_data()
    assert [path.parent for path in tmp_path.rglob("*.pixels")] == [tmp_path / "given" / "deep"]
    ten(root).prepare_data()
    assert len(list(root.glob("*.pixels"))) == 1
    next(root.glob("*.pixels")).unlink()
    real = pixel_cache.save

    def read_only(path: Path, *args: Any) -> None:
        if path.parent == root:
            raise PermissionError(13, "Permission denied")
        real(path, *args)

    monkeypatch.setattr(pixel_cache, "save", read_only)
    assert_holds(ten(root), WNIDS[:10])
    user = tmp_path / "user's cache" / "glr_lightning"
    assert len(list(user.glob("*.pixels"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ten(root).prepare_data()
    assert len(list((tmp_path / "home/.cache/glr_lightning").glob("*.pixels"))) == 1


def test_says_where_the_file_could_not_be_written(root: Path) -> None:
    with pytest.raises(DataError, match=r"decoded pixels cannot be kept .*tar/below: .*Set data\.cache=DIR"):
        ten(root, cache=root / f"{TOP}.tar" / "below").prepare_data()


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [1, 7, 512])
def test_batches_of_any_size_hold_the_pixels_that_pillow_decodes(
    root: Path, monkeypatch: pytest.MonkeyPatch, size: int, mode: str
) -> None:
    monkeypatch.setattr(decoding, "BATCH", size)
    names = [name for name in LAYOUT if name.endswith(".JPEG") and not name.startswith("test")]
    batches = list(decoding.decode(files.Files(root, names, LAYOUT.__getitem__), names, side=64, mode=mode))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    pixels = [np.asarray(Image.open(io.BytesIO(LAYOUT[name])).convert(mode)) for name in names]
    wanted = torch.from_numpy(np.stack(pixels)).view(len(names), 64, 64, -1).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat(batches), wanted)


@pytest.mark.parametrize("places", [[0], [21, 5], [49]], ids=str)
def test_the_first_damaged_file_is_named_in_whatever_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: list[int]
) -> None:
    lines = [line.split("\t") for line in LAYOUT["val/val_annotations.txt"].decode().splitlines()]
    names = [f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in WNIDS[:10] for number in range(TRAIN)]
    names += [f"val/images/{line[0]}" for line in lines if line[1] in WNIDS[:10]]
    write_tar(tmp_path / f"{TOP}.tar", LAYOUT | {names[place]: LAYOUT[names[place]][:-200] for place in places})
    monkeypatch.setattr(decoding, "BATCH", 8)
    with pytest.raises(DataError, match=f"{TOP}.tar: {names[min(places)]} is damaged: .* found .*truncated"):
        ten(tmp_path).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == [f"{TOP}.tar"]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("grey", 1),
        ("cache", 3),
        ("cache", ""),
        ("wnids", []),
        ("wnids", "n00000001"),
        ("wnids", ["n1"]),
        ("wnids", [WNIDS[0], WNIDS[0]]),
        ("wnids", ["../n000000"]),
        ("wnids", [1]),
        ("download", "yes"),
    ],
)
def test_refuses_an_option_out_of_range(tmp_path: Path, option: str, value: object) -> None:
    with refused(option):
        ten(tmp_path, **{option: value})
    node = {"_target_": "glr_lightning.data.TinyImageNet10", "root": "x", "batch_size": 4, option: value}
    with refused(f"data.{option}"):
        build(node, where="data")


def test_refuses_no_root() -> None:
    with refused("root", "Set data.root=DIR"):
        ten(None)  # type: ignore[arg-type]


def test_names_a_class_that_is_not_there(root: Path) -> None:
    with pytest.raises(
        DataError, match=rf"data\.wnids has n99999999, which .*wnids\.txt does not list; it has {WNIDS[0]}"
    ):
        ten(root, wnids=[WNIDS[0], "n99999999"]).prepare_data()


FIRST = f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"
NOTES = LAYOUT["val/val_annotations.txt"]


def without(*beginnings: str) -> Layout:
    return {name: content for name, content in LAYOUT.items() if not name.startswith(beginnings)}


WRONG: dict[str, tuple[Layout, str]] = {
    "no JPEG": (
        LAYOUT | {FIRST: b"<html>"},
        f"{FIRST} is damaged: expected a complete JPEG file, found cannot identify",
    ),
    "empty JPEG": (LAYOUT | {FIRST: b""}, f"{FIRST} is damaged: expected a complete JPEG file"),
    "a PNG": (LAYOUT | {FIRST: b"\x89PNG\r\n\x1a\n" + bytes(50)}, f"{FIRST} is damaged: expected a complete JPEG"),
    "cut JPEG": (LAYOUT | {FIRST: LAYOUT[FIRST][:-200]}, f"{FIRST} is damaged: .* found .*truncated"),
    "size": (
        LAYOUT | {FIRST: as_jpeg(0, side=32)},
        f"{FIRST} is damaged: expected an image of 64 x 64 pixels, found 32 x 32",
    ),
    "huge": (
        LAYOUT | {FIRST: LAYOUT[FIRST].replace(b"\0\x40\0\x40", b"\xff\xff\xff\xff", 1)},
        f"{FIRST} is damaged: .*(exceeds limit|found 65535 x 65535)",
    ),
    "no wnids.txt": (without("wnids.txt"), "expected the list of classes wnids.txt, .* found no such file"),
    "empty wnids.txt": (LAYOUT | {"wnids.txt": b""}, "wnids.txt is damaged: expected WordNet ids, found an empty file"),
    "malformed wnid": (LAYOUT | {"wnids.txt": b"n00000001\n\n"}, "a WordNet id such as n01443537 in line 2, found ''"),
    "path as wnid": (LAYOUT | {"wnids.txt": b"../../etc"}, r"a WordNet id .* in line 1, found '\.\./\.\./etc'"),
    "double wnid": (
        LAYOUT | {"wnids.txt": "\n".join([*WNIDS, WNIDS[3]]).encode()},
        f"every class once, found {WNIDS[3]} a second time in line 13",
    ),
    "not text": (LAYOUT | {"wnids.txt": b"\xff\xfe"}, r"wnids.txt is damaged: expected text \(UTF-8\)"),
    "few classes": (LAYOUT | {"wnids.txt": WNIDS[0].encode()}, "at least 10 classes, found 1"),
    "class folder": (
        without(f"train/{WNIDS[4]}/"),
        rf"train/{WNIDS[4]}/images is damaged: .*at least one image \(\*\.JPEG\)",
    ),
    "no images": (
        without(f"train/{WNIDS[4]}/images/"),
        f"train/{WNIDS[4]}/images is damaged: .*class {WNIDS[4]}, found none",
    ),
    "no annotations": (without("val/val_annotations.txt"), "val/val_annotations.txt, found no such file"),
    "unknown class": (
        LAYOUT | {"val/val_annotations.txt": NOTES.replace(WNIDS[0].encode(), b"n88888888", 1)},
        "val_annotations.txt is damaged: expected a class of wnids.txt in line 1, found 'n88888888'",
    ),
    "no image": (without("val/images/val_7.JPEG"), r"lines of images that are there, found val/images/val_7\.JPEG"),
    "no line": (
        LAYOUT | {"val/images/val_99.JPEG": as_jpeg(0)},
        r"every image in val/images, found none for .*val_99\.JPEG",
    ),
    "double line": (
        LAYOUT | {"val/val_annotations.txt": NOTES + NOTES.splitlines(True)[2]},
        r"every image once, found val_2\.JPEG a second time in line 25",
    ),
    "malformed line": (LAYOUT | {"val/val_annotations.txt": NOTES + b"x.JPEG\n"}, r"in line 25, found 'x\.JPEG'"),
    "path in a line": (
        LAYOUT | {"val/val_annotations.txt": NOTES + b"../x.JPEG\tn00000001\n"},
        r"in line 25, found '\.\./x\.JPEG",
    ),
    "empty line": (LAYOUT | {"val/val_annotations.txt": b"\n" + NOTES}, "in line 1, found ''"),
    "class without test images": (
        without("val/")
        | {"val/val_annotations.txt": f"val_0.JPEG\t{WNIDS[0]}\n".encode()}
        | {"val/images/val_0.JPEG": as_jpeg(0)},
        "val_annotations.txt is damaged: expected at least one image .* of the class",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("case", WRONG)
def test_names_what_is_wrong_in_the_layout(tmp_path: Path, case: str, kind: str) -> None:
    files, message = WRONG[case]
    write_folder(tmp_path / TOP, files) if kind == "folder" else write_tar(tmp_path / f"{TOP}.tar", files)
    with pytest.raises(DataError, match=f"{TOP}.*{message}.*get it again") as caught:
        ten(tmp_path).prepare_data()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.pixels"))


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


MEMBERS: dict[str, tuple[tuple[tarfile.TarInfo, ...], str]] = {
    "absolute": ((member("/etc/passwd"),), "'/etc/passwd' is refused: it may lie outside"),
    "parent": ((member(f"{TOP}/../../x"),), r"'tiny-imagenet-200/\.\./\.\./x' is refused: it may lie outside"),
    "parent folder": ((member("../x", tarfile.DIRTYPE),), r"'\.\./x' is refused: it may lie outside"),
    "symbolic link": ((member("l", tarfile.SYMTYPE, linkname="/etc"),), "'l' is refused: it is a link"),
    "hard link": ((member("l", tarfile.LNKTYPE, linkname="x"),), "'l' is refused: it is a link"),
    "device": ((member("d", tarfile.CHRTYPE),), "'d' is refused: it is a link or a special file"),
    "sparse": ((member("s", tarfile.GNUTYPE_SPARSE),), "'s' is refused: it is a link or a special file"),
    "pipe": ((member("p", tarfile.FIFOTYPE),), "'p' is refused: it is a link or a special file"),
    "twice": ((member(FIRST), member(f"./{FIRST}")), rf"'\./{FIRST}' is refused: it is there twice"),
    "under the top folder and beside it": ((member("wnids.txt"),), "wnids.txt' is refused: it is there twice"),
    "large file": ((member("words", size=3_000_000),), "unpacks to more than 3000000 bytes"),
    "large in all": (tuple(member(f"x{n}", size=900_000) for n in range(5)), "unpacks to more than 3000000 bytes"),
    "many files": (tuple(member(f"x{n}") for n in range(6000)), "unpacks to more than 3000000 bytes"),
    "large header": ((member("x" * 9_000_000),), "unpacks to more than 3000000 bytes"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_refuses_members_of_a_tar_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    members, message = MEMBERS[case]
    monkeypatch.setattr(tiny_imagenet, "MOST_BYTES", 3_000_000)
    write_tar(tmp_path / f"{TOP}.tar.gz", extra=members)
    with pytest.raises(DataError, match=message):
        ten(tmp_path).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == [f"{TOP}.tar.gz"]


def test_a_tar_that_unpacks_to_far_more_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "MOST_BYTES", 3_000_000)
    write_tar(tmp_path / f"{TOP}.tar.gz", extra=(member("words", size=100_000_000),))
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to more than 3000000 bytes"):
        ten(tmp_path).prepare_data()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "mode", "size", "message"),
    [
        (["/etc/passwd"], 0o100644, 1, "'/etc/passwd' is refused: it may lie outside"),
        (["a/../../x"], 0o100644, 1, r"'a/\.\./\.\./x' is refused: it may lie outside"),
        (["link"], 0o120777, 1, "'link' is refused: it is a link or a special file"),
        (["device"], 0o020644, 0, "'device' is refused: it is a link or a special file"),
        (["wnids.txt"], 0o100644, 1, "'wnids.txt' is refused: it is there twice"),
        (["big"], 0o100644, 3_000_000, "unpacks to more than 3000000 bytes"),
        (["a", "b", "c", "d"], 0o100644, 900_000, "unpacks to more than 3000000 bytes"),
    ],
)
def test_refuses_members_of_a_zip_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], mode: int, size: int, message: str
) -> None:
    monkeypatch.setattr(tiny_imagenet, "MOST_BYTES", 3_000_000)
    path = write_zip(tmp_path / f"{TOP}.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.external_attr = mode << 16
            archive.writestr(info, bytes(size), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=message):
        ten(tmp_path).prepare_data()


def test_a_member_of_a_zip_unpacks_to_no_more_than_was_admitted(tmp_path: Path) -> None:
    path = tmp_path / f"{TOP}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wnids.txt", bytes(100_000_000))
    content = bytearray(path.read_bytes())
    for start in (content.index(b"PK\x01\x02") + 24, 22):  # the size unpacked, in the central directory and the header
        content[start : start + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"expected a complete member .* CRC"):
        ten(tmp_path).prepare_data()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_refuses_an_encrypted_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / f"{TOP}.zip")
    content = bytearray(path.read_bytes())
    entry = content.rindex(f"{TOP}/wnids.txt".encode()) - 46  # of the central directory
    content[entry + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"complete member of the zip file, found .* is encrypted"):
        ten(tmp_path).prepare_data()


def flipped(content: bytes, share: float) -> bytes:
    place = int(len(content) * share)
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def headless(content: bytes) -> bytes:
    """The header of an image's member overwritten; its data are whole."""
    place = content.index(f"{TOP}/{FIRST}".encode())
    return content[:place] + b"\xff" * 512 + content[place + 512 :]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "cut zip": (".zip", lambda content: content[:-30]),
    "zip that ends in the middle": (".zip", lambda content: content[: len(content) // 2]),
    "flipped zip": (".zip", lambda content: content.replace(LAYOUT[FIRST][300:320], bytes(20), 1)),
    "cut tar": (".tar", lambda content: content[: len(content) // 2 + 100]),
    "tar that ends at a header": (".tar", lambda content: content[: content.index(f"{TOP}/val/images/val_1".encode())]),
    "tar without an end": (".tar", lambda content: content[: content.rstrip(b"\0").__len__() // 512 * 512 + 512]),
    "tar with a spoilt header": (".tar", headless),
    "cut xz": (".tar.xz", lambda content: content[:-20]),
    "flipped xz": (".tar.xz", lambda content: flipped(content, 0.5)),
    "cut gz": (".tar.gz", lambda content: content[:-3]),
    "flipped gz": (".tar.gz", lambda content: flipped(content, 0.5)),
    "wrong checksum of a gz": (".tar.gz", lambda content: content[:-8] + flipped(content[-8:], 0.0)),
    "a page of the web": (".zip", lambda content: b"<html>not found</html>" * 100),
    "empty": (".zip", lambda content: b""),
}


@pytest.mark.parametrize("block", [512, files.BLOCK])  # a checksum may lie beyond the last block that tarfile reads
@pytest.mark.parametrize("case", DAMAGE)
def test_names_a_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, block: int) -> None:
    suffix, spoil = DAMAGE[case]
    monkeypatch.setattr(files, "BLOCK", block)
    path = (write_zip if suffix == ".zip" else write_tar)(tmp_path / f"{TOP}{suffix}")
    content = path.read_bytes()
    assert spoil(content) != content
    path.write_bytes(spoil(content))
    with pytest.raises(DataError, match=rf"{TOP}{suffix}.* is damaged: expected a complete .*get it again"):
        ten(tmp_path).prepare_data()


@pytest.mark.parametrize("what", ["train", f"train/{WNIDS[0]}", f"train/{WNIDS[0]}/images", FIRST, "wnids.txt", "val"])
def test_a_folder_is_not_left_by_a_link(tmp_path: Path, what: str) -> None:
    inside = write_folder(tmp_path / "root" / TOP) / what
    inside.rename(tmp_path / "outside")
    inside.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=f"'{Path(what).name}' is refused: it is a link"):
        ten(tmp_path / "root").prepare_data()


def test_the_top_folder_may_be_a_link_and_other_files_are_let_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes").symlink_to("/nowhere")
    (tmp_path / "elsewhere" / "train" / WNIDS[0] / "images" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / TOP).symlink_to(tmp_path / "elsewhere")
    assert_holds(ten(tmp_path / "root"), WNIDS[:10])


def test_a_pipe_in_place_of_an_image_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / TOP) / FIRST
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="is refused: it is a link or a special file"):
        ten(tmp_path).prepare_data()


# --- the download ---------------------------------------------------------------------------------------------------


def test_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ten(tmp_path / "none").prepare_data()
    words = ("neither the folder tiny-imagenet-200 nor tiny-imagenet-200.zip", str(tmp_path / "none"), "data.root=DIR")
    for word in (*words, "data.download=true", "http://cs231n.stanford.edu/tiny-imagenet-200.zip", tiny_imagenet.MD5):
        assert word in str(caught.value)
    with pytest.raises(DataError, match="names an archive, and a download needs a folder"):
        ten(tmp_path / "mine.tar.xz", download=True).prepare_data()
    with pytest.raises(DataError, match=r"prepare_data\(\) comes first"):
        ten(tmp_path / "none", download=True).setup()
    assert not list(tmp_path.iterdir())
    (tmp_path / "train").mkdir()  # of something else
    with pytest.raises(DataError, match=r"data\.download is false"):
        ten(tmp_path).prepare_data()


def test_downloads_the_published_zip_and_checks_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url, md5))
        write_zip(Path(root, filename))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fake)
    with pytest.raises(DataError, match=r"the download failed \(.*expected 248100043 bytes, found \d+\)"):
        ten(tmp_path / "root", download=True).prepare_data()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tiny_imagenet, "SIZE", write_zip(tmp_path / "same.zip").stat().st_size)
    module = ten(tmp_path / "root", download=True)
    module.prepare_data()
    assert_holds(module, WNIDS[:10])
    assert asked == [("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")] * 2
    ten(tmp_path / "root", download=True).prepare_data()
    assert len(asked) == 2
