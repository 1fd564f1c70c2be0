"""The public names of the package, as a notebook uses them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import glr_lightning
from glr_lightning.config import load_yaml
from glr_lightning.data import Digits
from glr_lightning.errors import ConfigurationError
from tests.checks.refusals import refused

QUICK = ["experiment=lrtz", "epochs=2", "network.hidden=[8]", "progress=false"]


def test_every_public_name_is_there_and_no_other() -> None:
    wanted = {"activations", "compose", "estimators", "evaluate", "load_run", "losses", "networks", "noise", "train"}
    assert set(glr_lightning.__all__) == wanted <= set(dir(glr_lightning))
    assert all(getattr(glr_lightning, name) for name in wanted)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        glr_lightning.nothing  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    script = "import sys, glr_lightning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_is_trained_loaded_and_evaluated(tmp_path: Path, kind: type) -> None:
    folder = kind(tmp_path / "run")
    result = glr_lightning.train(glr_lightning.compose(QUICK), folder)
    run = glr_lightning.load_run(folder, trusted=["a_package_of_mine"])
    images, labels = run.data.split("test")
    (row,) = glr_lightning.evaluate(run.network, images, labels, threats=["clean"])
    assert row.accuracy == pytest.approx(result["test_accuracy"])
    assert row.n == len(labels)


def test_a_training_from_python_is_quiet_and_changes_no_logging(tmp_path: Path) -> None:
    overrides = ["experiment=bp", *QUICK[1:], "epochs=1"]
    script = (
        "import logging, warnings, pytorch_lightning, glr_lightning\n"
        "logger, filters = logging.getLogger('pytorch_lightning'), list(warnings.filters)\n"
        "level = logger.level\n"
        f"glr_lightning.train({overrides}, 'run')\n"
        "assert (logger.level, warnings.filters) == (level, filters) and level < logging.ERROR\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert load_yaml(tmp_path / "run/config.yaml")["run_dir"] == "run"


def test_a_trained_run_is_shown_in_one_line_and_either_checkpoint_loads() -> None:
    folder = Path(__file__).parent / "runs/v0_4/lrtz"
    best, last = (glr_lightning.load_run(folder, checkpoint=name) for name in ("best", "last"))
    assert repr(best) == f"TrainedRun(folder={folder!r})"
    assert best.checkpoint["epoch"] <= last.checkpoint["epoch"]
    with refused("checkpoint", "checkpoint must be one of 'best', 'last', got 'first'"):
        glr_lightning.load_run(folder, checkpoint="first")  # type: ignore[arg-type]


def test_a_network_of_another_kind_is_evaluated_in_three_lines() -> None:
    class Plain(nn.Module):
        """Not a chain of layers: its forward pass is code."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.drop = nn.Linear(64, 16), nn.Linear(16, 10), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x.flatten(1)).relu()
            return self.second(self.drop(h))

    torch.manual_seed(0)
    data = Digits(batch_size=64)
    data.setup()
    images, labels = data.split("test", 50)
    network = Plain()
    rows = glr_lightning.evaluate(network, images, labels, threats=["clean", "fgsm", "fgsm.gradient_source=autograd"])
    assert {row.threat for row in rows} >= {"clean", "fgsm"}
    assert network.training  # as it was
    assert {row.threat for row in glr_lightning.evaluate(network, images[:5], labels[:5])} >= {"clean", "pgd_linf"}
    clean = next(row for row in rows if row.threat == "clean")
    with torch.no_grad():
        expected = (network.eval()(images).argmax(1) == labels).float().mean()
    assert clean.accuracy == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (glr_lightning.compose, [None], "overrides must be a list"),
        (glr_lightning.compose, [[3]], "overrides must be a list"),
        (glr_lightning.compose, ["epochs=1"], r"for example overrides=\['epochs=1'\]"),
        (glr_lightning.compose, [[], "/conf"], r"for example config_dirs=\['/conf'\]"),
        (glr_lightning.compose, [[], ["/nowhere"]], "there is no folder or package /nowhere"),
        (glr_lightning.compose, [[], ["pkg://nowhere"]], "there is no folder or package pkg://nowhere"),
        (glr_lightning.compose, [[], ["what://nowhere"]], "there is no folder or package what://nowhere"),
        (glr_lightning.compose, [["hydra.searchpath=[file:///nowhere]"]], "there is no folder or package /nowhere"),
        (glr_lightning.train, [None], "config must be a mapping, or a list"),
        (glr_lightning.train, [3], "config must be a mapping, or a list"),
        (glr_lightning.train, ["epochs=1"], r"for example config=\['epochs=1'\]"),
        (glr_lightning.train, [[], 3], "run_dir must be text, or a path"),
        (glr_lightning.load_run, [None], "folder must be text, or a path"),
        (glr_lightning.load_run, [3], "folder must be text, or a path"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(function: Any, arguments: list[Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.option is not None


@pytest.mark.parametrize(("function", "first"), [(glr_lightning.load_run, "run"), (glr_lightning.train, [])])
def test_one_package_is_no_list_of_trusted_packages(function: Any, first: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"for example trusted=\['mine'\]") as caught:
        function(first, trusted="mine")
    assert caught.value.option == "trusted"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: glr_lightning.compose(["run_dir=null"]), "run_dir cannot be null; leave it out"),
        (
            lambda: glr_lightning.evaluate(
                nn.Flatten(), torch.rand(2, 1, 1, 2), torch.tensor([0, 1]), ["fgsm.epsilon=1"]
            ),
            "name the threat too",
        ),
    ],
)
def test_a_refused_override_says_what_to_do(call: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        call()


def test_a_folder_of_configurations_may_hold_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "estimator").mkdir()
    (tmp_path / "estimator/up").symlink_to(tmp_path)
    (tmp_path / "estimator/picture.yaml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigurationError, match=r"picture\.yaml is no text"):
        glr_lightning.compose(["estimator=picture"], [tmp_path])
    (tmp_path / "estimator/picture.yaml").unlink()
    with pytest.raises(ConfigurationError, match="there is no estimator=nope"):
        glr_lightning.compose(["estimator=nope"], [tmp_path])
    assert glr_lightning.compose(["epochs=7"], [tmp_path])["epochs"] == 7


def test_what_is_no_run_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        glr_lightning.load_run(str(tmp_path))
    assert "\n" not in str(caught.value)
