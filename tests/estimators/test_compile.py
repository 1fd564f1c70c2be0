"""Compiled steps: one graph without a break, and the values of eager ones."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from glr_lightning.activations import HardThreshold
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimator, LikelihoodRatio, Tiered
from glr_lightning.losses import CrossEntropy
from glr_lightning.training.module import GLRModule
from tests.checks.convolutional_cases import CLASS, PIXELS, pooled
from tests.checks.estimator_cases import X, Y, network_for, small_network
from tests.checks.groups import configured, options
from tests.checks.refusals import refused

EAGER = functools.partial(torch.compile, backend="eager")  # traces as a whole, and generates no code


def steps(estimator: Estimator, network: nn.Module) -> tuple[Any, Any]:
    bound = estimator.bind(network, CrossEntropy())
    noise = bound.draw(X, torch.Generator().manual_seed(0))
    compiled = estimator.bind(network, CrossEntropy(), compile=True)
    return bound.step(X, Y, noise), compiled.step(X, Y, noise)


@pytest.mark.parametrize("name", options("estimator"))
def test_every_step_is_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", EAGER)
    estimator = configured(name)
    eager, compiled = steps(estimator, network_for(estimator))
    for parameter, gradient in eager.gradients.items():
        torch.testing.assert_close(compiled.gradients[parameter], gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compiled.loss, eager.loss)
    assert compiled.diagnostics == eager.diagnostics


def test_generated_code_gives_the_eager_step_within_rounding() -> None:
    torch.compiler.reset()
    eager, compiled = steps(LikelihoodRatio(copies=4), small_network(HardThreshold()))
    for parameter, gradient in eager.gradients.items():
        torch.testing.assert_close(compiled.gradients[parameter], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("estimator", [LikelihoodRatio(copies=4), Tiered(copies=4)], ids=["joint", "tiered"])
def test_the_first_step_may_be_a_compiled_one(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", EAGER)
    compiled, eager = (
        estimator.bind(pooled(HardThreshold()), CrossEntropy(), compile=compiles) for compiles in (True, False)
    )
    noise = compiled.draw(PIXELS, torch.Generator().manual_seed(0))
    got, expected = (bound.step(PIXELS, CLASS, noise) for bound in (compiled, eager))
    for parameter, gradient in expected.gradients.items():
        torch.testing.assert_close(got.gradients[parameter], gradient, rtol=1e-12, atol=1e-12)


class Breaking(LikelihoodRatio):
    def _step(self, *given: Any) -> Any:
        torch._dynamo.graph_break()
        return super()._step(*given)


def test_a_step_that_breaks_the_graph_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", EAGER)
    with pytest.raises(Exception, match="graph_break"):
        steps(Breaking(copies=4), small_network(HardThreshold()))


def test_a_changed_estimator_is_not_compiled_again_at_every_step() -> None:
    module = GLRModule(
        small_network(nn.Tanh()), LikelihoodRatio(copies=4), CrossEntropy(), torch.optim.SGD, compile=True
    )
    module._bound = LikelihoodRatio(copies=8).bind(module.network, module.loss)
    with refused("compile", "a callback (annealing or learned_sigma) has changed it", error=ConfigurationError):
        module._estimate(X, Y, torch.Generator())
