"""A setting that an estimator does not read on a network is refused: two runs cannot differ in nothing else.

Every estimator of conf/, every setting of it, on networks that may not read it. Other values of a setting change the
estimate from the same generator, beyond rounding, or are refused by name.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold, Sign
from glr_lightning.baselines import Clean, LeaveOneOut, NoBaseline
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import Estimator, EvolutionStrategies, forward_gradient
from glr_lightning.injection import Joint, Layerwise
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.noise import Gaussian, Laplace
from glr_lightning.sampling import Antithetic, Independent
from tests.checks.groups import configured, options

COPIES, CLASSES = 8, 3
VALUES: dict[str, tuple[Any, ...]] = {
    "noise": (Gaussian(), Laplace()),
    "copies": (COPIES, 12),
    "sampling": (Antithetic(), Independent()),
    "baseline": (LeaveOneOut(), NoBaseline(), Clean()),
    "injection": (Joint(), Layerwise()),
    "score": ("auto", "plain", "conditional", "coupled"),
    "reach": (True, False),
    "units": (32, None, 3, 40, 50),
    "choice": ("uniform", "weighted"),
    "windows": (None, 2, 3),
    "chunk": (None, 3, 4, 5, 6, 7, 8, 100),
}


def layers(*widths: int, activation: type[nn.Module]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [nn.Linear(before, after), activation()]
    return nn.Sequential(nn.Flatten(), *modules[:-1])


def convolutional() -> nn.Sequential:
    first, second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)
    return nn.Sequential(first, HardThreshold(), second, HardThreshold(), nn.Flatten(), nn.Linear(18, CLASSES))


def mixed() -> nn.Sequential:
    linear = [nn.Linear(49, 5), Sign(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, CLASSES)]
    return nn.Sequential(nn.Flatten(), *linear)


NETWORKS = {
    "sigmoid": lambda: layers(49, 6, CLASSES, activation=nn.Sigmoid),
    "threshold": lambda: layers(49, 6, CLASSES, activation=HardThreshold),
    "deep": lambda: layers(49, 6, 5, 4, CLASSES, activation=HardThreshold),
    "deep and wide": lambda: layers(49, 40, 5, CLASSES, activation=nn.Sigmoid),
    "convolutional": convolutional,
    "mixed": mixed,
    "one layer": lambda: layers(49, CLASSES, activation=nn.Sigmoid),
}
LOSSES = [CrossEntropy(), ZeroOne()]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, 1, 7, 7, generator=generator, dtype=torch.float64) - 0.5
    return x, torch.randint(CLASSES, (24,), generator=generator)


def make(network: str) -> nn.Sequential:
    torch.manual_seed(3)
    built = NETWORKS[network]().double()
    for module in built:
        if isinstance(module, nn.Linear):  # the logits of units at 0.5 are even, so that noise moves the 0-1 loss
            module.bias.data = -0.5 * module.weight.data.sum(1)
    if network == "convolutional":  # its units are not at 0.5 on average
        built[-1].get_parameter("bias").data -= built(batch()[0]).mean(0).detach()
    return built


def small(name: str) -> Any:
    """The estimator of a name with its defaults, but for the copies."""
    estimator = type(configured(name))()
    fields = {field.name for field in dataclasses.fields(estimator)}
    if isinstance(estimator, EvolutionStrategies):  # with its small sigma the 0-1 loss of a few images never moves
        return EvolutionStrategies(sigma=0.5, copies=COPIES)
    return dataclasses.replace(estimator, copies=COPIES) if "copies" in fields else estimator


def bases(name: str, setting: str) -> Iterator[tuple[str, Any]]:
    """The estimator, and where other settings decide whether it reads this one, such variants of it."""
    estimator = small(name)
    yield "", estimator
    if setting not in ("baseline", "score", "reach", "chunk"):
        return
    fields = {field.name for field in dataclasses.fields(estimator)}
    if "injection" in fields:
        yield "layerwise", dataclasses.replace(estimator, injection=Layerwise())
    if "score" in fields:
        yield "plain", dataclasses.replace(estimator, score="plain")
        yield "coupled", dataclasses.replace(estimator, score="coupled")
    if {"injection", "score"} <= fields:
        yield "layerwise coupled", dataclasses.replace(estimator, injection=Layerwise(), score="coupled")
    if "baseline" in fields:
        yield "independent", dataclasses.replace(estimator, sampling=Independent(), baseline=NoBaseline())


def values_of(setting: str, estimator: Any, sites: int) -> list[tuple[Any, ...]]:
    """Groups of values, of which every two must differ in effect."""
    if setting != "sigma":
        return [VALUES[setting]]
    own = estimator.sigma
    if isinstance(estimator, EvolutionStrategies):
        return [(own, 2 * own)]
    lists = [tuple(0.5 * own if at == site else own for at in range(sites)) for site in range(sites)]
    return [(own, 0.5 * own), *((own, changed) for changed in lists)]


def gradient(estimator: Estimator, network: nn.Module, loss: Loss) -> Tensor:
    x, y = batch()
    got = estimator.estimate(network, loss, x, y, generator=torch.Generator().manual_seed(0)).gradients
    return torch.cat([value.flatten() for value in got.values()])


def passes_of(estimator: Estimator, network: nn.Module, loss: Loss, patch: pytest.MonkeyPatch) -> list[int]:
    """How many copies go together: what a chunk changes, also where the estimate is the same."""
    seen: list[int] = []

    def noted(right: Any, place: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(args[place][0])
            return right(*args, **kwargs)

        return call

    patch.setattr(Gaussian, "sample", noted(Gaussian.sample, 1))
    patch.setattr(forward_gradient, "random_signs", noted(forward_gradient.random_signs, 0))
    gradient(estimator, network, loss)
    patch.undo()
    return seen


def is_one_split(estimator: Any, chunk: int | None, other: int | None) -> bool:
    """Whether two chunks are one in the identity of a run, or are left out, where the size of a batch decides."""
    if chunk is None or other is None:
        return (chunk or other) == COPIES
    split: bool = estimator.parts(COPIES, chunk) == estimator.parts(COPIES, other)
    return split


def is_the_same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(a.abs().max()))


CASES = [(name, field.name) for name in options("estimator") for field in dataclasses.fields(configured(name))]


@pytest.mark.slow
@pytest.mark.parametrize("network_name", NETWORKS)
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_a_setting_changes_the_estimate_or_is_refused_by_name(
    name: str, setting: str, network_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, (x, _), refusals = make(network_name), batch(), list[str]()
    for loss, (label, base) in itertools.product(LOSSES, bases(name, setting)):
        try:
            base.check(network, loss, x)
        except ConfigurationError:  # not an estimator for this network, or not a method of its own there
            continue
        sites = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in network)
        for values in values_of(setting, base, sites):
            seen: list[tuple[Any, Any]] = []
            for value in dict.fromkeys((getattr(base, setting), *values)):
                try:
                    estimator = dataclasses.replace(base, **{setting: value})
                    estimator.check(network, loss, x)
                except ConfigurationError as error:
                    refusals.append(str(error))
                    continue
                if setting == "chunk":
                    effect: Any = passes_of(estimator, network, loss, monkeypatch)
                    same = [other for other, before in seen if (before == effect) != is_one_split(base, other, value)]
                else:
                    effect = gradient(estimator, network, loss)
                    same = [other for other, before in seen if is_the_same(before, effect)]
                assert not same, f"{name} {label} on {network_name}, {loss}: {setting}={value} is as {same}"
                seen.append((value, effect))
    fields = {field.name for field in dataclasses.fields(configured(name))}  # one may leave another without effect
    assert all(any(field in refusal for field in fields) for refusal in refusals), refusals
