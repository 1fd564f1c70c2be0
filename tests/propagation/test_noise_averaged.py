"""The prediction averaged over noisy passes: the right noise, of the right scale, for the image and not the batch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.config import TRUSTED, compose
from glr_lightning.errors import CheckpointError, ConfigurationError
from glr_lightning.estimators import Estimator
from glr_lightning.noise import Gaussian
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.runs.trained_run import LAST, load_checkpoint, load_run
from glr_lightning.threats import ImageRandom
from glr_lightning.training.callbacks import Annealing
from glr_lightning.training.fit import train
from glr_lightning.training.trained_noise import noise_averaged
from tests.checks.estimator_cases import X, small_network

FAST = ["progress=false", "copies=8", "epochs=3"]
LEARNED = ["callbacks=learned_sigma", "callbacks.learned_sigma.per=neuron", "callbacks.learned_sigma.lr=0.1"]


def of_image(index: Tensor, seed: int = 0) -> ImageRandom:
    return ImageRandom(seed, index)


def test_the_mean_over_many_passes_is_the_expected_probability() -> None:
    """Softmax of one layer's two noisy logits is a logistic of their difference, whose mean quadrature gives."""
    network = nn.Sequential(nn.Linear(3, 2)).double()
    network[0].weight.data = torch.tensor([[1.0, -0.6, 0.3], [-0.5, 0.8, 0.7]], dtype=torch.float64)
    sigma = torch.tensor([0.5, 1.5], dtype=torch.float64)  # a scale for each unit
    got = NoiseAveraged(network, Gaussian(), (sigma,), passes=4000)(X, of_image(torch.arange(3))).exp()
    logits = network(X).detach()
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    weight = torch.exp(Gaussian().log_prob(z)) * (z[1] - z[0])
    spread = math.hypot(0.5, 1.5)
    expected = torch.sigmoid((logits[:, :1] - logits[:, 1:]) + spread * z) @ weight
    torch.testing.assert_close(got[:, 0], expected, rtol=0, atol=0.025)  # 4 standard errors of 0.4 / sqrt(4000)
    torch.testing.assert_close(got.sum(1), torch.ones(3, dtype=torch.float64))


def test_an_image_has_its_noise_in_any_batch_and_passes_layers_seeds_differ() -> None:
    network = small_network(HardThreshold())
    model = NoiseAveraged(network, Gaussian(), (0.8, 1.3), passes=3)
    x = X[:1].repeat(50, 1)
    whole = model(x, of_image(torch.arange(50)))
    for part in (torch.tensor([7]), torch.tensor([31, 2, 49])):
        torch.testing.assert_close(model(x[part], of_image(part)), whole[part])
    assert len(whole[:, 0].unique()) == 50
    assert not torch.equal(whole, model(x, of_image(torch.arange(50), seed=1)))
    once = NoiseAveraged(network, Gaussian(), (0.8, 1.3), passes=1)(x, of_image(torch.arange(50)))
    assert not torch.equal(once, whole)


def test_little_noise_is_the_network_itself() -> None:
    network = small_network(HardThreshold())
    got = NoiseAveraged(network, Gaussian(), (1e-9, 1e-9), passes=2)(X, of_image(torch.arange(3)))
    torch.testing.assert_close(got, network(X).log_softmax(1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noisy")
    variants: dict[str, list[str]] = {
        "plain": ["sigma=0.5"],
        "learned": ["estimator=likelihood_ratio", *LEARNED],
        "scheduled": ["sigma=0.5", "callbacks=annealing", "callbacks.annealing.sigma.end=0.25"],
        "bp": ["experiment=bp"],
        "bp_noise": ["experiment=bp_noise"],
    }
    for name, options in variants.items():
        train(compose([*options, *(FAST if name != "bp" else ("progress=false", "epochs=3"))]), folder / name)
    return folder


def test_the_scales_are_the_runs_own_at_the_epoch_of_the_checkpoint(runs: Path) -> None:
    def scales(name: str) -> Any:
        model = noise_averaged(load_run(runs / name, checkpoint="last"), 5)
        assert model is not None
        return model.sigma

    assert scales("plain") == (0.5, 0.5)
    assert scales("bp_noise") == (1.0, 1.0)
    assert scales("scheduled") == pytest.approx((0.125, 0.125))
    state = load_checkpoint(runs / "learned" / LAST)["state_dict"]
    learned = scales("learned")
    assert [s.shape for s in learned] == [(50,), (10,)]
    assert all(torch.equal(s, state[f"log_sigma.{site}"].exp()) for site, s in enumerate(learned))
    assert noise_averaged(load_run(runs / "bp"), 5) is None


class Own(Annealing):
    """A callback of a user's own, which anneals to a tenth."""

    def at(self, estimator: Estimator, epoch: int, epochs: int) -> dict[str, Any]:
        return {"sigma": 0.1 if epoch == epochs - 1 else 1.0}


def test_the_scale_that_a_callback_of_ones_own_set_is_read_or_refused(runs: Path) -> None:
    run = load_run(runs / "plain", checkpoint="last")
    lightning = {"_target_": "pytorch_lightning.callbacks.LearningRateMonitor"}
    run.config["callbacks"] = {"rates": lightning, "own": {"_target_": f"{__name__}.Own"}}
    model = noise_averaged(run, 5, (*TRUSTED, "tests."))
    assert model is not None
    assert model.sigma == (0.1, 0.1)
    with pytest.raises(ConfigurationError, match=r"Own' is refused"):
        noise_averaged(run, 5)


def test_a_run_without_these_options_is_evaluated_and_cannot_resume(runs: Path, tmp_path: Path) -> None:
    train(compose(["sigma=0.5", *FAST]), tmp_path / "old")
    path = tmp_path / "old/config.yaml"
    config = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "callbacks"}
    path.write_text(yaml.safe_dump(config))
    run = load_run(tmp_path / "old")
    model = noise_averaged(run, 2)
    assert model is not None
    assert model.sigma == (0.5, 0.5)
    (tmp_path / "old/result.json").unlink()
    with pytest.raises(ConfigurationError, match="the configuration has no callbacks"):
        train(config, tmp_path / "old", resume=True)


def test_scales_that_are_missing_or_misshapen_are_refused(runs: Path) -> None:
    for damage in (None, torch.zeros(3), torch.full((50,), math.nan), "big"):
        run = load_run(runs / "learned")
        run.checkpoint["state_dict"]["log_sigma.0"] = damage
        with pytest.raises(CheckpointError, match=r"no valid log_sigma\.0"):
            noise_averaged(run, 2)
