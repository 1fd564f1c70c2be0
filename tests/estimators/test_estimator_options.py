"""The estimators: options and networks that cannot work are refused with what to do; memory stays bounded."""

import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from glr_lightning.activations import HardThreshold
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import (
    EvolutionStrategies,
    ForwardGradient,
    Hybrid,
    LikelihoodRatio,
    LocalExpectation,
    NoisyBackprop,
    StraightThrough,
    Tiered,
)
from glr_lightning.estimators.settings import IdleSettingError
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy, ZeroOne
from glr_lightning.noise import Uniform
from glr_lightning.sampling import Independent, Sobol
from tests.checks.estimator_cases import Branching, X, estimate, network_for, small_network
from tests.checks.groups import configured
from tests.checks.refusals import refused

# ---- options and refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hybrid", "likelihood_ratio", "noisy_backprop", "straight_through", "tiered"])
def test_python_and_the_configuration_have_the_same_defaults(name: str) -> None:
    assert type(configured(name))() == configured(name)


def test_one_scale_serves_all_layers_and_a_list_has_one_for_each() -> None:
    network = small_network(HardThreshold())
    same, listed, other = (
        estimate(LikelihoodRatio(sigma=sigma, copies=4), network, ZeroOne()).gradients
        for sigma in (0.7, [0.7, 0.7], [0.7, 0.9])
    )
    assert all(torch.equal(same[name], listed[name]) for name in same)
    assert not torch.equal(same["2.weight"], other["2.weight"])
    for estimator in (
        LikelihoodRatio(sigma=[1.0, 1.0, 1.0]),
        NoisyBackprop(sigma=[1.0]),
        StraightThrough(sigma=[1.0]),
        ForwardGradient(sigma=[1.0]),
        Hybrid(sigma=[1.0]),
    ):
        for refuse in (
            lambda e=estimator: e.check(network_for(e), CrossEntropy()),
            lambda e=estimator: estimate(e, network_for(e), CrossEntropy()),
        ):
            with refused("estimator.sigma", "give one value, or 2"):
                refuse()


@pytest.mark.parametrize("kind", [LocalExpectation, NoisyBackprop, ForwardGradient, EvolutionStrategies])
def test_copies_for_each_layer_are_refused_where_all_layers_share_a_pass(kind: Any) -> None:
    with refused("copies"):
        kind(copies=[4, 8])


@pytest.mark.parametrize("sigma", [0, -1.0, math.inf, math.nan, "1", None, True, [], [1.0, 0.0], [1.0, None]])
@pytest.mark.parametrize(
    "kind",
    [LikelihoodRatio, LocalExpectation, Hybrid, NoisyBackprop, StraightThrough, ForwardGradient, EvolutionStrategies],
)
def test_a_noise_scale_must_be_positive_and_finite(kind: Any, sigma: Any) -> None:
    with refused("sigma"):
        kind(sigma=sigma)


@pytest.mark.parametrize("copies", [0, -2, 1.5, "8", None, True])
@pytest.mark.parametrize(
    "kind", [LikelihoodRatio, LocalExpectation, Hybrid, NoisyBackprop, ForwardGradient, EvolutionStrategies]
)
def test_copies_must_be_a_positive_whole_number(kind: Any, copies: Any) -> None:
    with refused("copies"):
        kind(copies=copies)


@pytest.mark.parametrize(
    ("options", "at_fault", "advice"),
    [
        ({"copies": 5}, "copies", "use copies=6 or sampling=independent"),
        ({"copies": 2}, None, "copies=32 (at least 2 with sampling=independent, 4 with antithetic)"),
        ({"copies": 1, "sampling": Independent()}, None, "or use baseline=clean"),
        ({"noise": Uniform()}, "noise", "Use noise=gaussian, laplace, logistic or student_t"),
        ({"score": "best"}, "score", "'plain', 'conditional', 'coupled', 'auto'"),
        ({"score": "coupled", "sampling": Sobol()}, None, "use sampling=antithetic, or estimator.score=auto"),
        ({"chunk": 1}, "chunk", "use chunk=2 or more"),
        ({"chunk": 15, "sampling": Sobol()}, "chunk", "use chunk=16 or more"),
        ({"chunk": 64}, "chunk", "there are 32 copies; leave it out"),
        ({"copies": 4, "sampling": Sobol(1)}, None, "or sampling.randomisations (2 with sobol)"),
        ({"chunk": 0}, "chunk", "a whole number from 1 to "),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused_with_what_to_do(
    options: dict[str, Any], at_fault: str | None, advice: str
) -> None:
    with refused(at_fault, advice):
        LikelihoodRatio(**options)


@pytest.mark.parametrize("kind", [LikelihoodRatio, Tiered])
def test_a_second_name_of_the_default_score_is_refused_and_works_from_python(kind: Any) -> None:
    layers = [nn.Linear(3, 4), HardThreshold(), nn.Linear(4, 3), HardThreshold(), nn.Linear(3, 3), HardThreshold()]
    network, estimator = nn.Sequential(*layers, nn.Linear(3, 2)).double(), kind(copies=4, score="conditional")
    words = "score=conditional has no effect here: auto is conditional at"
    with refused("estimator.score", words, "leave it out", error=IdleSettingError):
        estimator.check(network, CrossEntropy())
    assert estimate(estimator, network, CrossEntropy()).gradients.keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize(
    ("network", "advice"),
    [
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)),
            r"module '1' \(BatchNorm1d\) is in train mode .* per-sample normalisation .* or put it in eval mode",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Dropout(0.5)), nn.Linear(4, 2)),
            r"module '1\.1' \(Dropout\) draws noise of its own .* remove it",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)),
            r"module '1' \(PReLU\) holds parameters, .* freeze it \(requires_grad=False\), or register",
        ),
        (
            nn.Sequential(Branching(), nn.Tanh(), nn.Linear(2, 2)),
            r"cannot be traced at estimator_cases\.py:\d+ \(return self\.linear\(x\) if x\.sum\(\) > 0",
        ),
        (nn.Linear(3, 2), "got Linear alone; put it into an nn.Sequential"),
        (nn.Sequential(nn.Flatten(), nn.Tanh()), "no layer with weights, so there is nothing to train"),
    ],
    ids=["batch_norm", "dropout", "prelu", "untraceable", "a layer", "no_weights"],
)
def test_a_network_that_cannot_be_trained_is_refused_with_what_to_do(network: nn.Module, advice: str) -> None:
    estimator = LikelihoodRatio(copies=4)
    for refuse in (
        lambda: estimator.check(network, CrossEntropy(), X.float()),
        lambda: estimate(estimator, network, CrossEntropy(), X.float()),
    ):
        with pytest.raises(ConfigurationError, match=re.compile(advice, re.DOTALL)):
            refuse()


def test_batch_norm_and_dropout_in_eval_mode_and_frozen_layers_are_accepted() -> None:
    normalise = nn.BatchNorm1d(4).requires_grad_(False)
    network = nn.Sequential(nn.Linear(3, 4), normalise, HardThreshold(), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    got = estimate(LikelihoodRatio(copies=4), network, CrossEntropy(), X.float())
    assert got.gradients.keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_a_module_used_twice_is_applied_twice() -> None:
    activation = HardThreshold()
    network = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 4), activation, nn.Linear(4, 2)).double()
    torch.testing.assert_close(estimate(LikelihoodRatio(copies=4), network, CrossEntropy()).logits, network(X))


@pytest.mark.parametrize("how", ["module", "parameter"])
def test_the_gradient_of_a_weight_used_twice_is_the_sum_over_its_uses(how: str) -> None:
    first, second, last = nn.Linear(3, 3), nn.Linear(3, 3, bias=how == "module"), nn.Linear(3, 2)
    second.load_state_dict({name: value for name, value in first.state_dict().items() if name in second.state_dict()})
    apart = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last).double()
    single = estimate(LikelihoodRatio(copies=4), apart, CrossEntropy()).gradients
    second.weight = first.weight
    shared = nn.Sequential(first, nn.Tanh(), first if how == "module" else second, nn.Tanh(), last)
    got = estimate(LikelihoodRatio(copies=4), shared, CrossEntropy()).gradients
    assert got.keys() == {name for name, _ in shared.named_parameters()}
    torch.testing.assert_close(got["0.weight"], single["0.weight"] + single["2.weight"])
    torch.testing.assert_close(got["0.bias"], single["0.bias"] + (single["2.bias"] if how == "module" else 0.0))


def test_batch_norm_without_running_statistics_is_refused_in_eval_mode_too() -> None:
    """Without running statistics it takes the batch's own in either mode."""
    normalise = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    network = nn.Sequential(nn.Linear(3, 4), normalise, nn.Linear(4, 2)).eval()
    with pytest.raises(ConfigurationError):
        LikelihoodRatio(copies=4).check(network, CrossEntropy())


def test_a_reparametrised_layer_is_refused_with_what_to_do() -> None:
    """weight_vjp() gives the gradient of the weight, but the parameters are what the weight is made of."""
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(ConfigurationError):
        LikelihoodRatio(copies=4).check(network, CrossEntropy())


# ---- memory ---------------------------------------------------------------------------------------------------------


MEMORY = """
import resource, torch
from glr_lightning.activations import HardThreshold
from glr_lightning.estimators import LikelihoodRatio
from glr_lightning.losses import ZeroOne
from glr_lightning.networks import mlp

torch.set_num_threads(1)
network = mlp(image_shape=(1, 14, 14), classes=10, hidden=[20], activation=HardThreshold())
x, y, generator = torch.rand(25, 1, 14, 14), torch.arange(25) % 10, torch.Generator().manual_seed(0)
LikelihoodRatio(copies=4).estimate(network, ZeroOne(), x, y, generator=generator)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
LikelihoodRatio(copies=10_000, {options}).estimate(network, ZeroOne(), x, y, generator=generator)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize(("options", "mebibytes"), [("chunk=100", 32), ("", 256)])
def test_memory_is_bounded_by_the_chunk_and_not_by_the_copies(options: str, mebibytes: int) -> None:
    """Paper 2's setting, 10,000 copies of 25 images through 196-20-10, used to take [250,000, 196, 20] numbers."""
    script = MEMORY.format(options=options)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < mebibytes


@pytest.mark.parametrize("kind", [LikelihoodRatio, LocalExpectation, Hybrid, NoisyBackprop])
def test_a_layer_too_wide_for_sobol_is_refused_before_the_first_step(kind: Any) -> None:
    activation = nn.Tanh() if kind is NoisyBackprop else HardThreshold()
    network = nn.Sequential(nn.Linear(1, 21_202), activation, nn.Linear(21_202, 2))
    with refused("estimator.sampling", "use sampling=independent or antithetic"):
        kind(copies=4, sampling=Sobol()).check(network, CrossEntropy())


def test_the_coupled_score_above_the_first_noisy_layer_alone_is_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2), HardThreshold(), nn.Linear(2, 2))
    with refused("estimator.score", "right after the first noisy layer", "Use estimator.score=plain or auto"):
        LikelihoodRatio(score="coupled").check(network, CrossEntropy())
    LikelihoodRatio(score="coupled", injection=Layerwise()).check(network, CrossEntropy())
