"""The published experiments: one training step of each is the published formula, weight for weight."""

import pytest

from glr_lightning.config import build, compose
from glr_lightning.estimators import LikelihoodRatio
from tests.checks.published import check_training_step, make_network, published_weights

every_experiment = pytest.mark.parametrize("experiment", ["lrs", "lrt", "lrsz", "lrtz", "lrt_lr1"])


@every_experiment
@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
def test_a_training_step_is_the_published_formula(experiment: str, noise: str) -> None:
    check_training_step(experiment, noise)


@every_experiment
def test_the_published_settings_are_joint_laplace_noise_and_no_baseline(
    experiment: str,
) -> None:
    config = compose([f"experiment=paper/{experiment}"])
    estimator = build(config["estimator"])
    assert isinstance(estimator, LikelihoodRatio)
    parts = (estimator.noise, estimator.sampling, estimator.baseline, estimator.injection)
    assert [type(part).__name__ for part in parts] == ["Laplace", "Independent", "NoBaseline", "Joint"]
    # where no cell follows a layer the score is plain, and to say so would have no effect
    assert (estimator.score, estimator.sigma) == ("plain" if experiment.startswith("lrt") else "auto", 1.0)
    assert config["optimizer"]["weight_decay"] == 1e-4
    first, second = (w.shape for w in published_weights(make_network(config)))
    assert (first, second) == ((65, 50), (50, 10))


def test_the_published_init_has_variance_4_over_the_inputs() -> None:
    network = make_network(compose(["experiment=paper/lrs", "network.hidden=[4000]"]))
    first, second = published_weights(network)
    assert float(first.std()) == pytest.approx(2 / 65**0.5, rel=0.02)
    assert float(second.std()) == pytest.approx(2 / 4000**0.5, rel=0.02)
    assert network.linear1.bias.std().item() == pytest.approx(2 / 65**0.5, rel=0.1)
