"""Networks, images and threats that the tests of the harness share."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.evaluation import runner
from glr_lightning.evaluation.attempts import Attempt, attempts
from glr_lightning.evaluation.fingerprints import row_fingerprint
from glr_lightning.evaluation.inputs import Inputs, check_network
from glr_lightning.evaluation.row import Row
from glr_lightning.evaluation.runner import Result
from glr_lightning.threats import AttackFacts, Clean, Threat, attack, declare
from glr_lightning.threats.attacks.fgsm import fgsm

CLEAN = {"clean": Clean()}


def linear(shape: tuple[int, int, int], classes: int = 4, seed: int = 0) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network.eval()


def images(n: int = 60, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def white_box(function: Callable[..., Tensor] = fgsm, epsilon: float = 0.1, **parameters: Any) -> dict[str, Threat]:
    if not hasattr(function, "facts"):
        function = declare(AttackFacts(norms=("linf",), gradient_sources=("autograd",)))(function)
    return {"attack": attack(function, epsilon=epsilon, gradient_source="autograd", **parameters)}


def run(attempt: Attempt, inputs: Inputs, surrogate: nn.Module | None = None, advance: Any = runner.nothing) -> Result:
    """Run one attempt as an evaluation does."""
    fingerprint = row_fingerprint(inputs, attempt, surrogate)
    return runner.run(attempt, inputs, surrogate, fingerprint=fingerprint, advance=advance)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threats: dict[str, Threat],
    *,
    surrogate: nn.Module | dict[str, nn.Module] | None = None,
    **settings: Any,
) -> Iterator[Row]:
    """The rows of the threats, which are not compared with each other; everything is checked at the call."""
    named = {"surrogate": surrogate} if isinstance(surrogate, nn.Module) else dict(surrogate or {})
    inputs = Inputs(model, x, y, **settings)
    for name, network in named.items():
        check_network(f"surrogate {name}", network, inputs.place)
    return (run(each, inputs, named.get(each.surrogate)).row for each in attempts(threats, tuple(named)))


def only(rows: Any) -> Row:
    (row,) = rows
    return row
