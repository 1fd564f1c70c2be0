"""Memory that a step frees is kept, by the commands and on request."""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glr_lightning.cli import diagnose, evaluate, train
from glr_lightning.errors import ConfigurationError
from glr_lightning.runs import allocator
from tests.checks.cli_runner import run_cli

GLIBC = platform.libc_ver()[0] == "glibc"

FAULTS = """
import resource, sys
from glr_lightning.runs.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    blocks = [bytearray(2**23) for _ in range(6)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Page faults of ten steps that allocate and free 48 MiB, after three that warm up."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    environment["PYTHONPATH"] = str(Path(allocator.__file__).parents[2])
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator")
def test_steps_of_the_same_size_have_no_page_faults() -> None:
    assert page_faults("keep") < 100
    assert page_faults("default") > 10_000  # 48 MiB in pages of 4 KiB, ten times


def test_nothing_is_set_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str | None) -> ctypes.CDLL:
        raise OSError("no such library")

    for library in (no_library, lambda name: object()):
        monkeypatch.setattr(ctypes, "CDLL", library)
        assert not allocator.keep_freed_memory()


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=4096")]
)
def test_what_the_environment_sets_is_left_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not allocator.keep_freed_memory()


@pytest.mark.parametrize(
    ("main", "job", "arguments"),
    [
        (train.main, "training.fit.train", ["experiment=bp", "data=digits"]),
        (evaluate.main, "evaluation.evaluate.evaluate_runs", ["run=nowhere"]),
        (diagnose.main, "diagnosis.diagnose.write_diagnosis", ["experiment=bp", "data=digits"]),
    ],
    ids=["train", "evaluate", "diagnose"],
)
def test_a_command_keeps_memory_before_its_job(
    main: Callable[[], None],
    job: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    called = []

    def refuse(*_: Any, **__: Any) -> None:
        called.append("job")
        raise ConfigurationError("enough.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"glr_lightning.{job}", refuse)
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: called.append("keep"))
    assert run_cli(main, arguments, monkeypatch, capsys).code == 2
    assert called == ["keep", "job"]
