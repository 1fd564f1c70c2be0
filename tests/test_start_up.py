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
    "glr_lightning.evaluation.evaluate": FRAMEWORKS | SPECIAL | {"matplotlib"},
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
        f"try:\n    main()\nfinally:\n    print(json.dumps({expression}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", NOT_IMPORTED)
def test_a_module_does_not_import_what_it_does_not_need(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({NOT_IMPORTED[module]} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_garbage_is_not_looked_for_among_the_objects_of_modules(tmp_path: Path) -> None:
    enabled, permanent = at_the_end_of("train", TRAINING, "[gc.isenabled(), gc.get_freeze_count()]", tmp_path)
    assert enabled
    assert permanent > 100_000


def test_a_job_within_another_program_leaves_its_garbage_alone(tmp_path: Path) -> None:
    script = (
        "import gc, torch\nfrom glr_lightning import terminal\nbefore = gc.get_freeze_count()\n"
        "with terminal.importing():\n    assert gc.isenabled()\n"
        "assert gc.get_freeze_count() == before\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0
