"""The benchmark: pages quote what it measured, and its script for an accelerator needs torch alone."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARK = ROOT / "experiments" / "benchmark"

TORCH_ALONE = """
import runpy, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

OF_TORCH = {"torch", "torchgen", "functorch", "numpy", "typing_extensions", "sympy", "mpmath", "networkx", "filelock"}
OF_TORCH |= {"fsspec", "jinja2", "markupsafe", "setuptools", "triton", "nvidia", "arms", "glr_lightning"}

class TorchAlone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        first = name.partition(".")[0]
        own = first in sys.stdlib_module_names or first.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if own or first in OF_TORCH else None

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, TorchAlone]
"""
"""Finds no module that is neither Python's, nor torch's or what torch depends on, nor numpy, nor the project's."""


def measures() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARK / "measures.py"))


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCHMARK / "results.json").read_text(encoding="utf-8"))
    return found


def test_the_tables_of_the_benchmark_are_those_of_its_results() -> None:
    readme, found, known = (BENCHMARK / "README.md").read_text(encoding="utf-8"), results(), measures()
    assert set(found["values"]) == set(known["MEASURES"]), "measured without MNIST"
    assert known["table"](known["MEASURES"], found["values"]).markdown() in readme
    assert known["shares"](found["budget"]).markdown() in readme


def test_the_ratios_that_pages_quote_are_those_of_the_benchmark() -> None:
    values, known = results()["values"], measures()["MEASURES"]
    studies, scaling = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("studies.md", "scaling.md"))
    steps = ["naive_over_ours_10", "naive_over_ours_100", "ours_over_backprop_10", "conv_over_backprop"]
    steps += ["local_50_over_backprop", "local_500_over_backprop"]
    for key in [*steps, "lightning_digits_lrtz", "lightning_mnist_lrtz"]:
        ratio = re.escape(known[key].shown(values[key]))
        assert re.search(rf"\b{ratio} (?:times|and)", scaling), f"docs/scaling.md: {key}"
        assert key not in steps or re.search(rf"\b{ratio} times", studies.replace("\n", " ")), f"docs/studies.md: {key}"


def in_torch_alone(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code where nothing but torch and the sources of the package can be imported."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TORCH_ALONE + code]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_estimators_and_networks_need_torch_alone(tmp_path: Path) -> None:
    modules = "activations baselines estimators losses networks noise sampling injection randomness validation"
    code = "".join(f"import glr_lightning.{module}\n" for module in modules.split())
    code += "print([m for m in ('pydantic', 'annotated_types', 'hydra', 'omegaconf', 'rich') if m in sys.modules])"
    done = in_torch_alone(code, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_the_accelerator_script_runs_with_torch_alone(tmp_path: Path) -> None:
    arguments = ["gpu.py", "--device", "cpu", "--modes", "eager", "--rounds", "1", "--calls", "1", "--out", "gpu.json"]
    code = f"sys.path.insert(0, {str(BENCHMARK)!r})\nsys.argv = {arguments}\n"
    code += f"runpy.run_path({str(BENCHMARK / 'gpu.py')!r}, run_name='__main__')"
    done = in_torch_alone(code, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["skipped"] == {}
    estimators = {"backprop", "likelihood_ratio", "local_expectation", "tiered", "hybrid", "noisy_backprop"}
    estimators |= {"straight_through", "forward_gradient", "evolution_strategies"}
    assert {name.split(",")[0] for name in found["agreement"]} == estimators
    assert all(each["within"] for each in found["agreement"].values())
    assert all(each["operators"] > 0 for each in found["steps"].values())
    for arm in ("784-16-10 backprop", "784-16-10 naive K=8", "784-16-10 ours K=8", "convnet tiered K=8"):
        assert found["ms"][arm] > 0


def test_the_accelerator_script_names_what_it_skips(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARK / "gpu.py"), "--device", "cpu", "--seconds", "0", "--out", str(out)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    found = json.loads(out.read_text())
    assert found["ms"] == {}
    assert found["skipped"]["784-16-10 naive K=8"] == "0 seconds were over"


def benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK / "bench.py"), "--rounds", "1", "--out", str(folder), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_benchmark_prints_measures_beside_their_bars(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--rows", "local_expectation,mnist,budget")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["values"]) == {"local_50_over_backprop", "local_500_over_backprop"}
    rows = {line.split("  ")[0].strip(): line.split() for line in done.stdout.splitlines()}
    shown = measures()["MEASURES"]["local_50_over_backprop"].shown(found["values"]["local_50_over_backprop"])
    assert rows["local expectation, one copy / backprop, 784-50-10"][-3:-1] == [shown, "2"]
    assert "not measured: no MNIST" in done.stdout
    for step in found["budget"].values():
        parts = ("draw", "add", "activate", "product", "loss", "contract", "optimizer", "rest")
        assert sum(step[part] for part in parts) == pytest.approx(step["step"], abs=1.0)
        assert step["limit"] > 0
    assert json.loads((tmp_path / "environment.json").read_text())["threads"] == 1


def test_the_benchmark_refuses_rows_that_it_does_not_have(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--rows", "deep,steps")
    assert done.returncode == 2
    assert "unknown steps" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_threads_are_compared_step_by_step(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK / "threads.py"), "--seconds", "0.01"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    rows = ("784-50-10, lrtz", "784-500-10, wide/lrt", "16-32 channels, conv/lrt", "resnet5, tiered")
    assert [name for name in rows if name in done.stdout] == list(rows)
