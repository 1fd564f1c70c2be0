"""Revival: classes that are hardly predicted get their bias lifted, and no others."""

from pathlib import Path

import pytest
import torch
from torch import nn

from glr_lightning.config import compose
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import LocalExpectation
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.runs.trained_run import load_run
from glr_lightning.training.callbacks.class_collapse import lift, output_bias, starving
from glr_lightning.training.fit import train


def test_a_class_starves_below_a_tenth_of_enough_labels() -> None:
    labels = torch.tensor([100, 100, 100, 20, 19, 0])
    predictions = torch.tensor([9, 10, 300, 0, 0, 0])
    assert starving(labels, predictions).tolist() == [True, False, False, True, False, False]


def test_the_bias_of_starving_classes_alone_is_lifted() -> None:
    bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    count = lift(bias, torch.tensor([50, 50, 50]), torch.tensor([0, 100, 50]), by=0.25)
    assert bias.tolist() == [1.25, 2.0, 3.0]
    assert int(count) == 1


def test_the_output_bias_is_that_of_the_last_layer_and_must_be_there() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert output_bias(network, 2) is network[2].bias
    for other in (nn.Sequential(nn.Linear(3, 2, bias=False)), nn.Sequential(nn.Linear(3, 5))):
        with pytest.raises(ConfigurationError, match=r"revive=null"):
            output_bias(other, 2)


@pytest.mark.parametrize("revive", [None, 2.0])
def test_a_class_that_is_driven_to_death_comes_back_with_revival_only(
    revive: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At a logit of -10 under noise of scale 0.5 class 3 has no gradient at all."""
    options = [
        "experiment=lrtz",
        f"callbacks.class_collapse.revive={'null' if revive is None else revive}",
        "epochs=8",
        "progress=false",
    ]
    config = compose([*options, "data.validation=0"])
    right = LocalExpectation.estimate
    steps = 0

    def at_first_dead(self: LocalExpectation, network: nn.Sequential, *args: object, **kwargs: object) -> object:
        nonlocal steps
        if steps == 0:
            network[-1].bias.data[3] = -10.0
        steps += 1
        return right(self, network, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalExpectation, "estimate", at_first_dead)
    result = train(config, tmp_path / "run")
    assert result["dead_classes"] == ([3] if revive is None else [])
    metrics = (tmp_path / "run/metrics.csv").read_text()
    assert ("lifts" in metrics) == (revive is not None)
    assert any("died" in line and "3" in line.split(" died")[0] for line in caplog.messages)
    came_back = any("recovered" in line and "3" in line.split(" recovered")[0] for line in caplog.messages)
    assert came_back == (revive is not None)


def test_validation_judges_the_network_that_the_checkpoint_holds(tmp_path: Path) -> None:
    """One step that moves nothing but the biases of the many classes that a new network does not predict."""
    options = ["optimizer=sgd", "optimizer.lr=0.0", "batch_size=1500", "epochs=1", "data.validation=0.1"]
    train(
        compose(["experiment=lrtz", "callbacks.class_collapse.revive=100", *options, "progress=false"]),
        tmp_path / "run",
    )
    metrics = read_metrics(tmp_path / "run/metrics.csv")[0]
    run = load_run(tmp_path / "run")
    assert 0 < metrics["lifts"] == int((run.network[-1].bias > 50).sum())
    x, y = run.data.split("val")
    logits = run.network(x).detach()
    assert float(logits.max()) > 50
    assert metrics["val_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item(), rel=1e-5)
