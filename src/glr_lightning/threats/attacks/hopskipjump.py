"""HopSkipJump, a decision-based attack: it sees predictions alone. The walk is foolbox's."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import Scores, margin
from glr_lightning.threats.attacks.objective import Best, Objective
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import AttackFacts, Norm, declare
from glr_lightning.validation import Count, Positive


@declare(AttackFacts(norms=("l2", "linf"), requires="foolbox"))
def hopskipjump(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom,
    epsilon: Positive,
    norm: Norm = "l2",
    steps: Count = 10,
    initial_evaluations: Count = 100,
    starts: Count = 100,
    target: Tensor | None = None,
) -> Tensor:
    """Walk along the decision boundary towards x [B, C, H, W] in [0, 1], from predictions alone.

    It begins at a start that is predicted otherwise than y, or as the target, int64 [B], and estimates the normal of
    the boundary from predictions around it. An image is returned unchanged if it fools as it is, if no start is found,
    or if x' is farther away than epsilon in the norm (pixel units). A start is the first that fools of `starts` images,
    each a blend of x and its own uniform noise, the later the more noise; and where none does, an image of this batch
    that is predicted otherwise, or as the target.

    steps: of the walk. initial_evaluations: predictions for the first normal; step t takes sqrt(t) times as many.

    The walk is `foolbox.attacks.HopSkipJumpAttack` (Rauber, Brendel & Bethge 2017), with one change: foolbox divides
    the normals by the norm of the batch's, which makes the steps smaller in larger batches; here each is divided by its
    own. Its random numbers are torch's global ones, seeded from `random` and put back afterwards, and drawn for a whole
    batch: unlike for all other threats an image's result depends on the batch that it is in.

    Source: Chen, Jordan & Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE S&P 2020.
    It needs foolbox.
    """
    query = Query.of(model, x)
    foolbox = importlib.import_module("foolbox")
    objective = Objective.of(y, target)
    found = _starts(query, objective, x, random, starts)
    rows = (found.reached & (found.images != x).flatten(1).any(1)).nonzero().squeeze(1)
    start = found.images[rows]
    if not len(rows):
        return x
    classes = objective.classes[rows]
    criterion = foolbox.criteria.Misclassification if target is None else foolbox.criteria.TargetedMisclassification
    network = foolbox.PyTorchModel(_Module(query.take(rows)).eval(), bounds=(0, 1), device=x.device)
    walk = _per_image(foolbox.attacks.HopSkipJumpAttack)(
        steps=steps, initial_gradient_eval_steps=initial_evaluations, constraint=norm
    )
    with _global_randomness(int(random.integers(0, 2**31 - 1, (), stream=2**16).sum()), x.device):
        moved = walk.run(network, x[rows], criterion(classes), starting_points=start)
    change = (moved - x[rows]).flatten(1)
    size = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    near = size <= epsilon
    return x.index_copy(0, rows[near], moved[near])


def _starts(query: Query, objective: Objective, x: Tensor, random: ImageRandom, starts: int) -> Best:
    """Find each image's start: itself if it fools, else the first blend with noise, else a neighbour in the batch."""
    best = Best(x, objective, margin)
    scores = query(x)
    best.offer(best.open, x, scores)
    for number in range(starts):
        rows = best.open
        noise = ImageRandom(random.seed, random.index[rows]).uniform(x.shape[1:], number).to(x)
        blend = torch.lerp(x[rows], noise, (number + 1) / starts)
        best.offer(rows, blend, query.take(rows)(blend))
    rows = best.open
    if len(rows):
        same = scores.argmax(1) == objective.classes[rows, None]
        neighbour = x[(same if objective.sign < 0 else ~same).int().argmax(1)]
        best.offer(rows, neighbour, query.take(rows)(neighbour))
    return best


class _Module(nn.Module):
    """The scores as a module, for foolbox."""

    def __init__(self, query: Query) -> None:
        super().__init__()
        self._query = query

    def forward(self, x: Tensor) -> Tensor:
        return self._query(x)


def _per_image(attack: Any) -> Any:
    """Derive the attack with normals of length 1 each, see `hopskipjump`."""

    class PerImage(attack):  # type: ignore[misc]  # foolbox is imported by name, so its class is Any
        def approximate_gradients(self, *arguments: Any, **options: Any) -> Any:
            normals = super().approximate_gradients(*arguments, **options)
            flat = normals.flatten(start=1)
            return (flat / (flat.norms.l2(axis=1, keepdims=True) + 1e-12)).reshape(normals.shape)

    return PerImage


@contextlib.contextmanager
def _global_randomness(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
