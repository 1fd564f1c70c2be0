"""Learned noise scales: the gradient of E[L] by log sigma, and the training that descends it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glr_lightning.activations import HardThreshold
from glr_lightning.config import compose
from glr_lightning.errors import DivergenceError
from glr_lightning.estimators import Backprop, Bound, Estimate, LikelihoodRatio
from glr_lightning.injection import Injection, Joint, Layerwise
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.noise import Noise
from glr_lightning.reporting.runs import read_metrics
from glr_lightning.runs.trained_run import load_checkpoint, load_run
from glr_lightning.training.callbacks.learned_sigma import LearnedSigma, log_scales
from glr_lightning.training.fit import train
from tests.checks.convolutional_cases import (
    CLASS,
    PARTS,
    PIXELS,
    check_against,
    noisy_logits,
    normalised,
    residual,
    sizes,
)
from tests.checks.estimator_cases import IMAGES, LABELS, SIGMA, X, Y, small_convnet, small_network
from tests.checks.groups import member, options
from tests.checks.interruption import assert_same_training, lasting, train_in_two_parts
from tests.checks.learned_sigma import DEFAULT, check_scale_gradient, exact, log_sigma_gradients, scales_of
from tests.checks.oracles import error_probability
from tests.checks.refusals import refused
from tests.checks.zscores import assert_gradient

ADMISSIBLE = [noise for noise in (member("noise", name) for name in options("noise")) if noise.admissible]
LEARNED = ["callbacks=learned_sigma"]
PER_NEURON = [*LEARNED, "callbacks.learned_sigma.per=neuron"]
FAST = ["estimator=likelihood_ratio", "sigma=0.5", "progress=false", "copies=8", "epochs=2"]


@pytest.mark.parametrize("score", ["plain", "conditional"])
@pytest.mark.parametrize("injection", [Joint(), Layerwise()], ids=["joint", "layerwise"])
@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_the_gradient_is_that_of_the_exact_error(per: str, injection: Injection, score: str) -> None:
    check_scale_gradient(replace(DEFAULT, injection=injection, score=score), per)


def test_the_oracles_own_derivative_is_its_finite_difference() -> None:
    network, h = small_network(HardThreshold()), 1e-5
    scales = scales_of(network, "neuron")
    for site, expected in enumerate(exact(Joint(), network, scales, X, Y)):
        for unit in range(expected.numel()):
            moved = [[s.clone() for s in scales] for _ in range(2)]
            for sign, those in zip((1, -1), moved, strict=True):
                those[site][unit] *= torch.tensor(sign * h, dtype=torch.float64).exp()
            up, down = (error_probability(network, those, X, Y).item() for those in moved)
            assert (up - down) / (2 * h) == pytest.approx(float(expected[unit]), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_a_convolution_has_a_scale_for_each_channel(per: str) -> None:
    network = small_convnet()
    scales = [scale * part for scale, part in zip(scales_of(network, per), (0.2, 0.15), strict=True)]
    assert [scale.shape for scale in scales] == ([(2, 1, 1), (2,)] if per == "neuron" else [(), ()])
    samples = log_sigma_gradients(DEFAULT, network, scales, IMAGES, LABELS, 40_000)
    for site, expected in enumerate(exact(Joint(), network, scales, IMAGES, LABELS)):
        assert_gradient(samples[site], expected.flatten(), resolution=0.4, what=f"log sigma of layer {site}")


@pytest.mark.slow
@pytest.mark.parametrize("make", [normalised, residual], ids=lambda make: make.__name__)
def test_channels_have_the_derivative_along_the_path(make: Any) -> None:
    """Of a smooth network: dE[L(v + sigma z)] / d log sigma by autograd, noise in one layer at a time."""
    network, loss, number = make(nn.Tanh()), CrossEntropy(), 12_000
    scales = [0.5 * scale / SIGMA[0] for scale in scales_of(network, "neuron", replace(DEFAULT, sigma=SIGMA[0]))]
    estimator = replace(DEFAULT, sigma=SIGMA[0], injection=Layerwise())
    samples = log_sigma_gradients(estimator, network, scales, PIXELS, CLASS, number, loss)
    generator = torch.Generator().manual_seed(1)
    for (name, shape), scale, got in zip(sizes(network, PIXELS).items(), scales, samples, strict=True):
        paths = []
        for _ in range(PARTS):
            leaf = scale.log().requires_grad_()
            z = torch.randn(200, *shape, generator=generator, dtype=scale.dtype)
            rows = PIXELS.repeat(100, 1, 1, 1)
            mean = loss(noisy_logits(network, rows, {name: leaf.exp() * z}), CLASS.repeat(100)).mean()
            paths.append(torch.autograd.grad(mean, leaf)[0].flatten())
        check_against({f"{name}.s": got}, {f"{name}.s": torch.stack(paths)}, 1.0, "log sigma")


@pytest.mark.parametrize("noise", ADMISSIBLE, ids=lambda noise: type(noise).__name__)
@pytest.mark.parametrize("score", ["plain", "conditional"])
def test_one_unit_that_jumps_has_minus_f_of_t_times_t_times_the_jump(noise: Noise, score: str) -> None:
    """E[L] = L- + F(t) (L+ - L-) with t = v / sigma, so dE[L]/dlog sigma = -t f(t) (L+ - L-), for every density."""
    network = nn.Sequential(nn.Linear(3, 1), HardThreshold(), nn.Linear(1, 2)).double()
    network[0].weight.data = torch.tensor([[0.7, -0.4, 0.5]], dtype=torch.float64)
    network[0].bias.data.fill_(0.4)
    network[2].weight.data = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    network[2].bias.data.zero_()
    sigma, loss = torch.tensor(0.6, dtype=torch.float64), CrossEntropy()
    y = torch.zeros(3, dtype=torch.int64)  # so that all jumps have one direction
    t = network[0](X)[:, 0].detach() / sigma
    low, high = (loss(network[2](torch.full((3, 1), level).double()), y).detach() for level in (0.0, 1.0))
    expected = -(t * noise.log_prob(t).exp() * (high - low)).mean()

    estimator = LikelihoodRatio(noise=noise, copies=4, injection=Layerwise(), score=score)
    samples = log_sigma_gradients(estimator, network, [sigma, sigma], X, y, 20_000, loss)
    assert_gradient(samples[0], expected[None], resolution=0.3)


def test_given_its_own_scales_an_estimator_has_the_same_gradients() -> None:
    network = small_network(HardThreshold())
    plain = DEFAULT.estimate(network, ZeroOne(), X, Y, generator=torch.Generator().manual_seed(0))
    learned = replace(DEFAULT, sigma=tuple(torch.tensor(s, dtype=torch.float64) for s in SIGMA))
    given = learned.estimate(network, ZeroOne(), X, Y, generator=torch.Generator().manual_seed(0))
    assert [gradient.shape for gradient in given.log_sigma] == [(), ()]
    assert plain.log_sigma == ()
    assert all(torch.equal(plain.gradients[name], given.gradients[name]) for name in plain.gradients)


def test_chunks_are_added_up() -> None:
    network, scales = small_network(HardThreshold()), [torch.tensor(s, dtype=torch.float64) for s in SIGMA]
    samples = log_sigma_gradients(replace(DEFAULT, copies=8, chunk=4), network, scales, X, Y, 20_000)
    for site, expected in enumerate(exact(Joint(), network, scales, X, Y)):
        assert_gradient(samples[site], expected.flatten(), resolution=0.3)


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_a_run_logs_scales_that_move_and_stay_positive_and_reloads(per: str, tmp_path: Path) -> None:
    config = compose([*LEARNED, f"callbacks.learned_sigma.per={per}", "callbacks.learned_sigma.lr=0.1", *FAST])
    train(config, tmp_path / "run")
    first, second = read_metrics(tmp_path / "run/metrics.csv").values()
    for layer in ("linear1", "linear2"):
        assert first[f"sigma_{layer}"] != second[f"sigma_{layer}"] != config["estimator"]["sigma"]
        if per == "neuron":
            assert 0 < second[f"sigma_{layer}_min"] < second[f"sigma_{layer}"] < second[f"sigma_{layer}_max"]
        else:
            assert f"sigma_{layer}_min" not in second
    state = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    assert second["sigma_linear1"] == pytest.approx(float(state["log_sigma.0"].exp().mean()))
    assert load_run(tmp_path / "run").network is not None


def test_scales_stay_positive_under_a_huge_learning_rate_or_the_run_stops(tmp_path: Path) -> None:
    try:
        train(compose([*PER_NEURON, "callbacks.learned_sigma.lr=3.0", *FAST]), tmp_path / "run")
    except DivergenceError:
        return
    rows = read_metrics(tmp_path / "run/metrics.csv").values()
    assert all(value > 0 for row in rows for name, value in row.items() if name.startswith("sigma_"))


def test_the_learning_rate_and_weight_decay_are_the_scales_own(tmp_path: Path) -> None:
    # a decay that would pull every log sigma to 0 at once, and a rate that moves nothing
    options = ["optimizer=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=5.0", "callbacks.learned_sigma.lr=1e-12"]
    train(compose([*LEARNED, *options, *FAST]), tmp_path / "run")
    last = read_metrics(tmp_path / "run/metrics.csv")[1]
    assert last["sigma_linear1"] == pytest.approx(0.5, rel=1e-5)


def test_a_learning_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = compose(["callbacks=[learned_sigma,gradient_quality]", *PER_NEURON[1:], *FAST, "epochs=3"])
    train(config, tmp_path / "whole")
    train_in_two_parts(config, tmp_path / "parts", stop_at=17)
    assert {"log_sigma.0", "log_sigma.1"} < lasting(tmp_path / "whole/checkpoints/last.ckpt").keys()
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


def test_nothing_is_in_a_checkpoint_that_does_not_learn_its_scales(tmp_path: Path) -> None:
    train(compose(FAST), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    assert all(key.startswith("network.") for key in state)


def test_an_infinite_gradient_of_a_scale_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = Bound.estimate

    def wrong(self: Bound, *args: Any) -> Estimate:
        right = estimate(self, *args)
        return replace(right, log_sigma=tuple(g / 0 for g in right.log_sigma))

    monkeypatch.setattr(Bound, "estimate", wrong)
    with pytest.raises(DivergenceError, match=r"log_sigma\.0"):
        train(compose([*LEARNED, *FAST]), tmp_path / "run")


def test_other_words_and_estimators_without_these_gradients_are_refused() -> None:
    network = small_network(nn.Tanh())
    with refused("callbacks.learned_sigma", "use estimator=likelihood_ratio"):
        log_scales(Backprop(), network, "layer")
    with refused("per", "'layer', 'neuron'"):
        LearnedSigma("image")  # type: ignore[arg-type]
