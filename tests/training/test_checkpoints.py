"""Checkpoints are files as Lightning writes them, whole or not at all."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.plugins.io import torch_io

from glr_lightning.config import compose
from glr_lightning.training.callbacks.checkpoints import LocalCheckpoints
from glr_lightning.training.fit import train
from glr_lightning.training.trainer import make_trainer

FAST = ["copies=2", "epochs=2", "data.validation=0.1", "progress=false", "batch_size=512", "network.hidden=[4]"]


def test_a_checkpoint_is_the_file_that_lightning_would_write(tmp_path: Path) -> None:
    content = {"epoch": 1, "state_dict": {"weight": torch.arange(6.0).view(2, 3)}, "loops": [{"done": True}, None]}
    files = []
    for number, kind in enumerate((LocalCheckpoints(), TorchCheckpointIO())):
        path = tmp_path / f"{number}/last.ckpt"
        kind.save_checkpoint(content, path)
        with zipfile.ZipFile(path) as file:
            files.append({name: file.read(name) for name in file.namelist() if "serialization_id" not in name})
        assert [other.name for other in path.parent.iterdir()] == ["last.ckpt"]
        assert path.stat().st_mode == (tmp_path / "0/last.ckpt").stat().st_mode
    assert files[0] == files[1]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    LocalCheckpoints().save_checkpoint({"epoch": 1}, path)

    def no_space(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="no space"):
        LocalCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_training_looks_for_no_remote_file_system_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch_io, "_atomic_save", lambda *what: asked.append(what))
    train(compose(FAST), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert asked == []


def test_a_plugin_that_writes_checkpoints_is_kept(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        """Somebody's."""

    options = {"accelerator": "cpu", "devices": 1, "plugins": [Own()]}
    made: pl.Trainer = make_trainer(options, 1, tmp_path, [], [], False)
    assert type(made.strategy.checkpoint_io) is Own
