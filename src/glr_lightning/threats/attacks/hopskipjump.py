"""HopSkipJump, the attack that sees predictions alone, from foolbox."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.ball import check_ball
from glr_lightning.threats.attacks.input_gradient import Scores, margin
from glr_lightning.threats.attacks.objective import Best, Goal
from glr_lightning.threats.attacks.query import Attacked
from glr_lightning.threats.base import Threat, attack
from glr_lightning.validation import validated_count


def hopskipjump(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom,
    epsilon: float,
    norm: str = "l2",
    steps: int = 10,
    initial_evaluations: int = 100,
    starts: int = 100,
    target: Tensor | None = None,
) -> Tensor:
    """x' near x [B, C, H, W] in [0, 1], predicted otherwise, or as the target, int64 [B]; from predictions alone.

    From a start that fools it walks along the boundary towards x, estimating its normal from predictions around. An
    image is returned unchanged if it fools as it is, if no start is found, or if x' is farther away than epsilon in the
    norm (pixel units). A start is the first that fools of `starts` images, each a blend of x and its own uniform noise,
    the later the more noise; and where none does, an image of this batch that is predicted otherwise, or as the target.

    steps: of the walk. initial_evaluations: predictions for the first normal; step t takes sqrt(t) times as many.

    The walk is `foolbox.attacks.HopSkipJumpAttack` (Rauber, Brendel & Bethge 2017), with one change: foolbox divides
    the normals by the norm of the batch's, which makes the steps smaller in larger batches; here each is divided by its
    own. Its random numbers are torch's global ones, seeded from `random` and put back afterwards, and drawn for a whole
    batch: unlike for all other threats an image's result depends on the batch that it is in.

    Source: Chen, Jordan & Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE S&P 2020.
    Raises ConfigurationError for parameters out of range, and without foolbox.
    """
    attacked = Attacked.of(model, x)
    check_ball(epsilon, norm)
    for name, count in (("steps", steps), ("initial_evaluations", initial_evaluations), ("starts", starts)):
        validated_count(name, count)
    foolbox = _foolbox()
    goal = Goal.of(y, target)
    found = _starts(attacked, goal, x, random, starts)
    rows = (found.reached & (found.images != x).flatten(1).any(1)).nonzero().squeeze(1)
    start = found.images[rows]
    if not len(rows):
        return x
    classes = goal.classes[rows]
    criterion = foolbox.criteria.Misclassification if target is None else foolbox.criteria.TargetedMisclassification
    network = foolbox.PyTorchModel(_Module(attacked.take(rows)).eval(), bounds=(0, 1), device=x.device)
    walk = _per_image(foolbox.attacks.HopSkipJumpAttack)(
        steps=steps, initial_gradient_eval_steps=initial_evaluations, constraint=norm
    )
    with _global_randomness(int(random.integers(0, 2**31 - 1, (), stream=2**16).sum()), x.device):
        moved = walk.run(network, x[rows], criterion(classes), starting_points=start)
    change = (moved - x[rows]).flatten(1)
    size = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    near = size <= epsilon
    return x.index_copy(0, rows[near], moved[near])


def hopskipjump_threat(**settings: Any) -> Threat:
    """`attack` of hopskipjump, refused at once without foolbox and not after hours of evaluation."""
    _foolbox()
    return attack(hopskipjump, **settings)


def _starts(attacked: Attacked, goal: Goal, x: Tensor, random: ImageRandom, starts: int) -> Best:
    """For every image itself if it fools, else the first blend with noise, else a neighbour in the batch."""
    best = Best(x, goal, margin)
    scores = attacked(x)
    best.offer(best.open, x, scores)
    for number in range(starts):
        rows = best.open
        noise = ImageRandom(random.seed, random.index[rows]).uniform(x.shape[1:], number).to(x)
        blend = torch.lerp(x[rows], noise, (number + 1) / starts)
        best.offer(rows, blend, attacked.take(rows)(blend))
    rows = best.open
    if len(rows):
        same = scores.argmax(1) == goal.classes[rows, None]
        neighbour = x[(same if goal.sign < 0 else ~same).int().argmax(1)]
        best.offer(rows, neighbour, attacked.take(rows)(neighbour))
    return best


class _Module(nn.Module):
    """The scores as foolbox wants them."""

    def __init__(self, attacked: Attacked) -> None:
        super().__init__()
        self._attacked = attacked

    def forward(self, x: Tensor) -> Tensor:
        return self._attacked(x)


def _per_image(attack: Any) -> Any:
    """The attack with normals of length 1 each, see `hopskipjump`."""

    class PerImage(attack):
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


def _foolbox() -> Any:
    try:
        return importlib.import_module("foolbox")
    except ImportError:
        raise ConfigurationError(
            'hopskipjump needs foolbox, which is not installed; run pip install "glr-lightning[foolbox]" (in a '
            'checkout ".[foolbox]"), or leave hopskipjump out of threat=...'
        ) from None
