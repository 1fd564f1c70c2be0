"""Files are written whole or not at all."""

import threading
from pathlib import Path

import numpy as np
import pytest

from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.storage import read_arrays, replacing, write_arrays, write_atomically, write_files


def test_a_reader_meets_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fail(path: Path, failure: type[BaseException]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError, ValueError])
def test_a_failure_leaves_the_old_file_and_no_folder(tmp_path: Path, failure: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file", tmp_path / "new" / "deep" / "file"):
        with pytest.raises(failure):
            fail(path, failure)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_several_threads_write_the_same_file(tmp_path: Path) -> None:
    meeting = threading.Barrier(4)

    def write(letter: str) -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text(letter * 100)
            meeting.wait(10)

    threads = [threading.Thread(target=write, args=[letter]) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    content = (tmp_path / "file").read_text()
    assert content == content[0] * 100


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file", "é\r\nb\n")
    assert (tmp_path / "new" / "file").read_bytes() == "é\r\nb\n".encode()


def test_arrays_are_read_as_written_and_nothing_is_unpickled(tmp_path: Path) -> None:
    write_arrays(tmp_path / "new" / "a.npz", {"x": np.arange(3), "y": np.ones((2, 2))})
    found = read_arrays(tmp_path / "new" / "a.npz")
    assert found.keys() == {"x", "y"}
    assert np.array_equal(found["x"], np.arange(3))
    np.savez(tmp_path / "object.npz", x=np.array([{}], dtype=object))
    for name in ("object.npz", "missing.npz"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
            read_arrays(tmp_path / name)


def test_no_file_is_replaced_before_all_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_files(out, {"a": b"old", "below/b": b"old"})
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if ".b." in path.name:
            raise OSError("no space left")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigurationError, match="no space left"):
        write_files(out, {"a": b"new", "below/b": b"new", "c": b"new"})
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == {"a": b"old", "b": b"old"}
    monkeypatch.undo()
    write_files(out, {"a": b"newer"}, stale=["below/*"])
    assert {path.name for path in out.iterdir()} == {"a"}
