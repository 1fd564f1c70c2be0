"""A run folder is rebuilt from its configuration, whose parts must be what they stand for."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from glr_lightning.config import load_yaml
from glr_lightning.runs.trained_run import load_run
from glr_lightning.training.trained_noise import noise_averaged
from tests.checks.refusals import refused

OLD = Path(__file__).parent / "v0_4"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "lrtz", tmp_path / "run"))


def edited(run: Path, **sections: Any) -> Path:
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(load_yaml(path) | sections), encoding="utf-8")
    return run


def test_data_that_are_no_data_module_are_refused(run: Path) -> None:
    with refused("data", "data must be an ImageDataModule, which "):
        load_run(edited(run, data={"_target_": "glr_lightning.noise.Gaussian"}))


def test_an_estimator_that_is_none_is_refused(run: Path) -> None:
    loaded = load_run(run)
    loaded.config["estimator"] = {"_target_": "glr_lightning.noise.Gaussian"}
    with refused("estimator", "must be an Estimator"):
        noise_averaged(loaded, 1)
