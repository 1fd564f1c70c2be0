"""Exact robustness: for one image, an adversarial image within the budget, or a proof that there is none.

The prediction of a network whose hidden layers are piecewise constant depends on the image only through which units
fire. With v = A x + c the pre-activations of the first layer, a box l <= x <= u of images gives bounds of every v_i;
where these lie on one side of a cut, the unit is settled, and elsewhere a binary variable z says on which side it is:

    z = 1 only if v_i >= cut,   z = 0 only if v_i <= cut       (two linear inequalities, by the bounds of v_i)

so that the levels h_i = level_0 + sum_j (level_{j+1} - level_j) z_ij, the next layer's pre-activations and the logits
are linear in the variables. For each other class t a mixed-integer linear programme asks for x and z with
logit_t >= logit_y. One that has no solution for any t is a proof. ReLU is encoded by one binary variable a unit, too:
h >= v, h >= 0, h <= v - l_v (1 - z), h <= u_v z.

Rounding. The theorem is about real numbers, the network computes in float32. All inequalities are widened by a bound of
the rounding error, so that what is proved holds for the network as it computes; and an adversarial image counts only if
the network itself is wrong on it. What lies between the two is undecided. A sum of n products, added in any order, is
off by at most n units of 2^-24 times the sum of their absolute values (Higham, "Accuracy and stability of numerical
algorithms", 2002, section 3.1). Lower precision, such as TF32 in convolutions on a GPU, is not covered.

Sources: Tjeng, Xiao & Tedrake, "Evaluating robustness of neural networks with mixed integer programming", ICLR 2019
(the encoding of ReLU, and settled units); HiGHS, by way of `scipy.optimize.milp`, solves the programmes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import Tensor, nn

from glr_lightning.activations import PiecewiseConstant
from glr_lightning.threats.attacks.stages import Array, Stage

UNIT = 2.0**-24
"""The rounding error of one float32 operation, as a share of its result."""
SPARE = 16
"""Operations behind a pre-activation besides a sum over its terms: modules that scale or shift before it, the bias."""
INFEASIBLE = 2
"""The status of `scipy.optimize.milp` for a programme without a solution."""


@final
class Outcome(IntEnum):
    """What is known about an image."""

    BROKEN = 0
    UNDECIDED = 1
    PROVED = 2


@final
@dataclass(frozen=True, eq=False)
class Finding:
    """What was found out about one image.

    Attributes:
        outcome: broken, proved or undecided.
        image: [C, H, W], what the network is wrong on where the image is broken, else the image itself.
    """

    outcome: Outcome
    image: Tensor


def verify(
    stages: list[Stage],
    predict: Callable[[Tensor], int],
    image: Tensor,
    label: int,
    epsilon: float,
    seconds: float,
) -> Finding:
    """Decide whether an image that is classified correctly can be broken within epsilon in L-infinity.

    Args:
        stages: of the network.
        predict: the network's own prediction for an image [C, H, W].
        image: [C, H, W] in [0, 1].
        label: its class.
        epsilon: the bound, in units of the pixel range.
        seconds: after which the image is given up.
    """
    end = time.monotonic() + seconds
    programme = Programme.of(stages, image.cpu().double().flatten().numpy(), epsilon)
    undecided = False
    for row, constant in programme.rivals(label):
        while True:
            left = end - time.monotonic()
            found = programme.solve(row, constant, left) if left > 0 else None
            if found is None:
                return Finding(Outcome.UNDECIDED, image)
            if isinstance(found, Nothing):
                break
            for point in (found, programme.centred(found, row, constant)):
                moved = programme.image(point, image, epsilon)
                if predict(moved) != label:
                    return Finding(Outcome.BROKEN, moved)
            undecided = True
            if not programme.binary.any():
                break
            programme.exclude(found)
    return Finding(Outcome.UNDECIDED if undecided else Outcome.PROVED, image)


@final
class Nothing:
    """A programme has no solution."""


@final
@dataclass(eq=False)
class Programme:
    """Variables in a box, linear inequalities between them, and the logits as linear functions of them.

    The first variables are the pixels, u in [-1, 1] with x = centre + radius u, of those that can move.

    Attributes:
        low, high: [variables], the box.
        binary: bool [variables].
        rows: of each inequality its coefficients, its lower and its upper end.
        centre, radius: [pixels] of the box of images.
        logits: their coefficients [classes, variables] and constants [classes].
        rounding: [classes], of the logits.
    """

    low: Array
    high: Array
    binary: NDArray[np.bool_]
    centre: Array
    radius: Array
    rows: list[tuple[Array, float, float]] = field(default_factory=list)
    logits: tuple[Array, Array] = field(init=False)
    rounding: Array = field(init=False)

    @staticmethod
    def of(stages: list[Stage], x: Array, epsilon: float) -> "Programme":
        """Encode a network for the images within epsilon of x [pixels], cut by [0, 1]."""
        low, high = np.clip(x - epsilon, 0.0, 1.0), np.clip(x + epsilon, 0.0, 1.0)
        centre, radius = (low + high) / 2, (high - low) / 2
        moving = radius > 0
        count = int(moving.sum())
        programme = Programme(-np.ones(count), np.ones(count), np.zeros(count, bool), centre, radius)
        matrix, constant = np.diag(radius)[:, moving], centre
        for stage in stages:
            matrix, constant, rounding = programme._through(stage, matrix, constant)
        programme.logits, programme.rounding = (matrix, constant), rounding
        return programme

    def _through(self, stage: Stage, matrix: Array, constant: Array) -> tuple[Array, Array, Array]:
        """The values behind a stage as linear functions of the variables, and the rounding of its affine map."""
        widest = np.abs(constant) + np.abs(matrix) @ np.maximum(np.abs(self.low), np.abs(self.high))
        operations = np.count_nonzero(stage.weight, axis=1) + SPARE
        rounding = UNIT * operations * (np.abs(stage.weight) @ widest + np.abs(stage.bias))
        matrix, constant = stage.weight @ matrix, stage.weight @ constant + stage.bias
        centre, radius = (self.low + self.high) / 2, (self.high - self.low) / 2
        middle, reach = constant + matrix @ centre, np.abs(matrix) @ radius
        low, high = middle - reach - rounding, middle + reach + rounding
        if stage.activation is None:
            return matrix, constant, rounding
        units = [
            self._unit(stage.activation, *each) for each in zip(matrix, constant, low, high, rounding, strict=True)
        ]
        after = np.zeros((len(units), len(self.low)))
        for row, (coefficients, _) in zip(after, units, strict=True):
            for variable, value in coefficients.items():
                row[variable] = value
        return after, np.array([offset for _, offset in units]), rounding

    def _unit(
        self, activation: nn.Module, row: Array, constant: float, low: float, high: float, rounding: float
    ) -> tuple[dict[int, float], float]:
        """The coefficients, by variable, and the constant of phi(v) of a unit v = row . variables + constant.

        low, high: the bounds of v, with the rounding.
        """
        if isinstance(activation, PiecewiseConstant):
            coefficients, offset, before = {}, activation.levels[0], None
            steps = np.diff(activation.levels)
            for cut, step in zip(activation.cuts, steps, strict=True):
                if low > cut:
                    offset += step
                elif high > cut:
                    z = self._variable(0.0, 1.0, binary=True)
                    self._inequality(row, {z: -(cut - rounding - low)}, low - constant, np.inf)
                    self._inequality(row, {z: -(high - cut - rounding)}, -np.inf, cut + rounding - constant)
                    if before is not None:
                        self._inequality(row[:0], {before: 1.0, z: -1.0}, 0.0, np.inf)
                    coefficients[z], before = float(step), z
            return coefficients, offset
        if high <= 0:
            return {}, 0.0
        h = self._variable(max(low, 0.0), high)
        self._inequality(-row, {h: 1.0}, constant - rounding, np.inf)
        if low >= 0:
            self._inequality(-row, {h: 1.0}, -np.inf, constant + rounding)
        else:
            z = self._variable(0.0, 1.0, binary=True)
            self._inequality(-row, {h: 1.0, z: -low}, -np.inf, constant - low + rounding)
            self._inequality(row[:0], {h: 1.0, z: -high}, -np.inf, rounding)
        return {h: 1.0}, 0.0

    def _variable(self, low: float, high: float, *, binary: bool = False) -> int:
        self.low, self.high = np.append(self.low, low), np.append(self.high, high)
        self.binary = np.append(self.binary, binary)
        return len(self.low) - 1

    def _inequality(self, row: Array, more: dict[int, float], low: float, high: float) -> None:
        full = np.zeros(max(len(self.low), len(row)))
        full[: len(row)] = row
        for variable, value in more.items():
            full[variable] += value
        self.rows.append((full, low, high))

    def rivals(self, label: int) -> list[tuple[Array, float]]:
        """logit_t - logit_label, as coefficients and constant, of the classes t that may win; the likeliest first."""
        matrix, constant = self.logits
        found = []
        for rival in range(len(constant)):
            row = np.zeros(len(self.low))
            row[: matrix.shape[1]] = matrix[rival] - matrix[label]
            offset = constant[rival] - constant[label] + self.rounding[rival] + self.rounding[label]
            most = offset + np.maximum(row * self.low, row * self.high).sum()
            if rival != label and most >= 0:
                found.append((most, row, offset))
        found.sort(key=lambda each: -each[0])
        return [(row, offset) for _, row, offset in found]

    def _inequalities(self) -> LinearConstraint | None:
        if not self.rows:
            return None
        matrix = np.zeros((len(self.rows), len(self.low)))
        for full, (row, _, _) in zip(matrix, self.rows, strict=True):
            full[: len(row)] = row
        return LinearConstraint(matrix, [low for _, low, _ in self.rows], [high for _, _, high in self.rows])

    def solve(self, row: Array, constant: float, seconds: float) -> Array | Nothing | None:
        """Values of the variables with row . variables + constant >= 0; None if none were found in time."""
        wins = LinearConstraint(row[None], -constant, np.inf)
        own = self._inequalities()
        done = milp(
            -row,
            constraints=[wins] if own is None else [own, wins],
            bounds=Bounds(self.low, self.high),
            integrality=self.binary.astype(int),
            options={"time_limit": seconds, "mip_rel_gap": 1e9},  # the first that wins will do
        )
        if done.x is not None:
            return np.asarray(done.x)
        return Nothing() if done.status == INFEASIBLE else None

    def centred(self, point: Array, row: Array, constant: float) -> Array:
        """With the binary variables as they are, the point that keeps the largest distance from all inequalities."""
        low, high = self.low.copy(), self.high.copy()
        low[self.binary] = high[self.binary] = point[self.binary].round()
        sides = [(-row, constant)]
        for coefficients, least, most in self.rows:
            full = np.zeros(len(self.low))
            full[: len(coefficients)] = coefficients
            sides += [(-full, -least)] if least > -np.inf else []
            sides += [(full, most)] if most < np.inf else []
        # a slack that is not bounded by a unit's own bounds: at most 1
        matrix = np.array([np.append(side, 1.0) for side, _ in sides])
        done = linprog(
            np.append(np.zeros(len(self.low)), -1.0),
            A_ub=matrix,
            b_ub=[bound for _, bound in sides],
            bounds=[*zip(low, high, strict=True), (None, 1.0)],
        )
        return point if done.x is None else np.asarray(done.x[:-1])

    def exclude(self, point: Array) -> None:
        """Forbid the values that the binary variables have at a point."""
        fires = self.binary & (point > 0.5)
        row = np.where(fires, -1.0, np.where(self.binary, 1.0, 0.0))
        self.rows.append((row, 1.0 - float(fires.sum()), np.inf))

    def image(self, point: Array, original: Tensor, epsilon: float) -> Tensor:
        """The image of a point, in the type of the original and within epsilon of it."""
        pixels = self.centre.copy()
        moving = self.radius > 0
        pixels[moving] += self.radius[moving] * point[: int(moving.sum())]
        moved = torch.from_numpy(pixels).to(original).view_as(original)
        return original + (moved - original).clamp(-epsilon, epsilon)
