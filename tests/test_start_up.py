"""The start of a command: what it imports, and that nothing is done for it twice. Modules are counted, not seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FRAMEWORKS = {"pytorch_lightning", "torchmetrics", "torchvision", "torch._dynamo"}
SPECIAL = {"sklearn", "scipy.interpolate", "scipy.signal", "pandas", "tensorboard", "onnx"}
NOT_IMPORTED = {
    "glr_lightning": {"torch", "numpy", "hydra", "rich", "pydantic"},
    "glr_lightning.config": {"torch", "numpy", "rich", "pydantic"},
    "glr_lightning.estimators": FRAMEWORKS | SPECIAL | {"matplotlib", "hydra", "rich"},
    "glr_lightning.networks": FRAMEWORKS | SPECIAL | {"matplotlib", "hydra", "rich"},
    "glr_lightning.threats": FRAMEWORKS | SPECIAL | {"matplotlib", "rich"},
    "glr_lightning.data": FRAMEWORKS | SPECIAL | {"matplotlib"},
    "glr_lightning.runs.trained_run": FRAMEWORKS | SPECIAL | {"matplotlib"},
    "glr_lightning.training.trained_noise": FRAMEWORKS | SPECIAL | {"matplotlib"},
    "glr_lightning.evaluation.evaluate": FRAMEWORKS | {"scipy", "sklearn", "pandas", "matplotlib"},
    "glr_lightning.reporting.tables.robustness": FRAMEWORKS | {"scipy", "sklearn", "pandas", "matplotlib"},
    "glr_lightning.diagnosis.diagnose": FRAMEWORKS | SPECIAL | {"matplotlib.pyplot"},
    "glr_lightning.reporting.report": FRAMEWORKS | SPECIAL | {"matplotlib.pyplot"},
    "glr_lightning.training.fit": {"sklearn", "pandas", "tensorboard", "onnx"},
}
"""By module, what its import must not bring with it."""

TRAINING = ["data=digits", "epochs=1", "network.hidden=[4]", "progress=false"]


def at_the_end_of(command: str, arguments: list[str], expression: str, folder: Path) -> Any:
    """Run a command in a process of its own and return what an expression is worth after it."""
    script = (
        f"import gc, json, sys\nfrom glr_lightning.cli.{command} import main\n"
        f"sys.argv = {[f'glr-{command}', *arguments]}\n"
        f"try:\n    main()\nfinally:\n    print('', json.dumps({expression}), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", NOT_IMPORTED)
def test_a_module_does_not_import_what_it_does_not_need(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({NOT_IMPORTED[module]} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


IMPORTED = "[sorted({0} & set(sys.modules)), gc.isenabled(), gc.get_freeze_count()]"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ["--help"]),
        ("evaluate", ["--help"]),
        ("report", ["--help"]),
        ("diagnose", ["--help"]),
        ("train", ["--cfg", "job"]),
        ("train", ["epoch=1"]),
        ("train", ["estimator.sigm=1"]),
        ("train", ["estimator=likelihood"]),
        ("train", ["epochs=-1"]),
    ],
    ids=" ".join,
)
def test_answers_that_need_no_network_do_not_wait_for_torch(command: str, arguments: list[str], tmp_path: Path) -> None:
    slow = {"torch", "numpy", "pytorch_lightning", "matplotlib", "sklearn", "scipy"}
    assert at_the_end_of(command, arguments, IMPORTED.format(slow), tmp_path)[0] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("start_up")
    missing = {"sklearn", "pandas", "tensorboard", "onnx", "onnxruntime", "IPython", "glr_lightning.reporting"}
    return folder, at_the_end_of("train", [*TRAINING, "run_dir=run"], IMPORTED.format(missing), folder)


def test_a_training_looks_for_no_garbage_among_modules(trained: tuple[Path, Any]) -> None:
    imported, enabled, permanent = trained[1]
    assert imported == []
    assert enabled
    assert permanent > 100_000


def test_a_report_needs_no_lightning(trained: tuple[Path, Any]) -> None:
    slow = FRAMEWORKS | SPECIAL | {"matplotlib.pyplot", "glr_lightning.training"}
    assert at_the_end_of("report", ["runs=run"], IMPORTED.format(slow), trained[0])[0] == []
    assert (trained[0] / "report/report.md").exists()


def test_an_evaluation_needs_no_lightning(trained: tuple[Path, Any]) -> None:
    arguments = ["run=run", "threat=[clean,contrast,pgd_linf]", "limit=20", "progress=false"]
    assert at_the_end_of("evaluate", arguments, IMPORTED.format(FRAMEWORKS | {"matplotlib"}), trained[0])[0] == []
    assert (trained[0] / "run/robustness.csv").exists()


def test_a_job_within_another_program_leaves_its_garbage_alone(tmp_path: Path) -> None:
    script = (
        "import gc, torch\nfrom glr_lightning import terminal\nbefore = gc.get_freeze_count()\n"
        "with terminal.importing():\n    assert gc.isenabled()\n"
        "assert gc.get_freeze_count() == before\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0
