"""The tutorial runs as it stands, and is kept without its outputs."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[2] / "docs/tutorial.ipynb"


def test_the_tutorial_runs_and_learns(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert float(re.findall(r"test accuracy ([\d.]+) %", printed)[-1]) > 90
    right = {source: float(share) for source, share in re.findall(r"by (\w+): ([\d.]+) % right", printed)}
    assert right["straight_through"] < right["autograd"] - 20
