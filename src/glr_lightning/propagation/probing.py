"""Probe an unknown module: find from its values whether it is elementwise, affine, jumps, is flat or draws.

    draws         two calls on the same input differ
    couples       another first sample changes the output of the others
    elementwise   half of the numbers of the input are moved, and no number of the output in the other half changes; the
                  halves part every two numbers, and each is moved
    affine        along lines, far beyond the inputs, it is as far from its straight line as rounding goes
    jumps         a fine grid; where the output changes more than around it, the interval is halved again and again, and
                  the change stays
    flat          at nearly all points a small step changes nothing; or the output changes, and autograd's derivative is
                  0 at every point, as of steps finer than the grid

A probe can miss what happens at few points only, such as a jump of 1e-4 of the change around it; then declare the fact.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

NUMBERS = 2**20
"""About the most numbers that go through a module in one call."""
HALVINGS = {torch.float64: 30, torch.float32: 12}
CANDIDATES, FEW_CANDIDATES, LINES = 32, 8, 2
"""Intervals of the grid to halve for an elementwise module; for another module; lines through the latter."""
STEP = {torch.float64: 2.0**-20, torch.float32: 2.0**-14}
"""The small step, relative to the range of the grid."""
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}
"""The distance from a straight line, relative to the outputs, that is rounding."""
SHAPES = ((12,), (4, 6, 6))
"""Shapes of a sample to try where none has been seen; an elementwise module takes any."""


@dataclass(frozen=True)
class ModuleFacts:
    """Facts about a module.

    Attributes:
        elementwise: an output depends on the input in its own place alone.
        jumps: it is discontinuous; derivatives miss what happens at the jumps.
        flat: it is piecewise constant: its derivative is 0 wherever there is one.
        draws: its output is random.
        couples: the output of a sample depends on other samples of the batch.
        affine: the output is an affine function of the input, sample by sample.
        isometry: it keeps the distance of any two samples in L2 and L-infinity. A probe never finds it: certificates
            rest on it.
        found: in words what a probe found, "" for facts that are known or declared.
    """

    elementwise: bool = False
    jumps: bool = False
    flat: bool = False
    draws: bool = False
    couples: bool = False
    affine: bool = False
    isometry: bool = False
    found: str = ""


NOT_FOUND = ModuleFacts(found="could not be probed")


@torch.no_grad()
def probe(module: nn.Module, samples: Tensor | None) -> ModuleFacts:
    """Find the facts about a module from its values.

    Args:
        module: takes [rows, ...] and returns a tensor of as many rows; it is converted to float64.
        samples: inputs that it sees, [rows, ...], or None.
    """
    devices = [tensor.device for tensor in (*module.parameters(), *module.buffers())]
    place = samples.device if samples is not None else (devices or [torch.device("cpu")])[0]
    shapes = SHAPES if samples is None else (tuple(samples.shape[1:]),)
    rng = torch.random.fork_rng([place] if place.type == "cuda" else [])
    with rng, torch.autocast(place.type, enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in (torch.float64, torch.float32):
            for shape in shapes:
                try:
                    return _Probe(module.to(dtype), place, dtype, shape, samples).facts()
                except Exception:  # whatever a module raises of an input that it does not take
                    continue
    return NOT_FOUND


class _Probe:
    """The probe of a module on samples of one shape."""

    def __init__(
        self, module: nn.Module, place: torch.device, dtype: torch.dtype, shape: tuple[int, ...], samples: Tensor | None
    ) -> None:
        self.module, self.shape, self.place, self.dtype = module, shape, place, dtype
        self.keeps_state = next(module.buffers(), None) is not None
        self.random = np.random.default_rng(0)  # torch's would be another one under vmap
        self.numbers = max(int(np.prod(shape)), 1)
        few = int(np.clip(NUMBERS // (64 * self.numbers), 2, 8))
        widths = np.resize([1.0, 3.0, 0.1, 10.0], few).reshape(-1, *(1 for _ in shape))
        self.rows = self.tensor(widths * self.random.standard_normal((few, *shape)))
        if samples is not None and len(samples):
            self.rows = torch.cat([samples[:few].to(place, dtype), self.rows])

    def tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.place, self.dtype)

    def call(self, v: Tensor) -> Tensor:
        module = copy.deepcopy(self.module) if self.keeps_state else self.module  # a call must not change the next
        out = module(v.clone())
        if not isinstance(out, Tensor) or len(out) != len(v):
            raise TypeError("not a map of a tensor's rows")
        return out.to(self.dtype).flatten(1)

    def facts(self) -> ModuleFacts:
        first = self.call(self.rows)
        if _differs(first, self.call(self.rows)).any():
            flat = self._answers([self.rows + self._small_step()]) == 0 or not self._slopes(self.rows)
            return ModuleFacts(draws=True, flat=flat, found="found to draw random numbers" + ", constant" * flat)
        if self._couples(first):
            # a step of one number leaves most statistics of a batch alone, such as its largest number
            flat = self._answers(self._single_steps()) < 1 / 8 or not self._slopes(self.rows)
            found = "found to couple the samples of a batch" + ", and constant between its jumps" * flat
            return ModuleFacts(couples=True, flat=flat, found=found)
        elementwise = self._is_elementwise(first)
        affine = self._is_affine(first) and self._slopes(self.rows)
        jump, flat, sloped = (None, False, True) if affine else self._along_lines(elementwise)
        words = ["elementwise" if elementwise else "not elementwise"]
        if jump is not None:
            words.append(f"jumping near {round(jump, 6) + 0.0:g}" if elementwise else "jumping")
            words += ["constant between its jumps"] * (flat or not sloped)
        elif sloped or flat:
            words.append("constant" if flat else "affine" if affine else "continuous")
        else:
            words.append("changing with a derivative of 0")
        found = f"found to be {', '.join(words)}"
        jumps = jump is not None or not (sloped or flat)
        return ModuleFacts(elementwise, jumps, flat or not sloped, affine=affine, found=found)

    def _couples(self, first: Tensor) -> bool:
        """Whether another first row, usual or far off, changes the outputs of the others."""
        for row in (self.rows[1:2] + 1.0, 100.0 * self.rows[1:2]):
            out = self.call(torch.cat([row, self.rows[1:]]))
            if not torch.allclose(out[1:], first[1:], rtol=1e-6, atol=1e-12, equal_nan=True):
                return True
        return False

    def _small_step(self) -> float:
        return STEP[self.dtype] * float(self.rows.amax() - self.rows.amin())

    def _single_steps(self) -> list[Tensor]:
        """The rows with a small step of one number, for some of them."""
        units = self.random.permutation(self.rows.numel())[:CANDIDATES].tolist()
        each = [self.rows.clone() for _ in units]
        for unit, moved in zip(units, each, strict=True):
            moved.view(-1)[unit] += self._small_step()
        return each

    def _answers(self, moved: Sequence[Tensor]) -> float:
        """The share of these batches that give another output, with the same draws."""
        outputs = []
        for rows in (self.rows, *moved):
            torch.manual_seed(0)
            outputs.append(self.call(rows))
        return sum(bool(_differs(out, outputs[0]).any()) for out in outputs[1:]) / len(moved)

    def _is_elementwise(self, first: Tensor) -> bool:
        if first.shape[1] != self.numbers:
            return False
        moves = np.array([-30.0, -3.0, -0.3, -0.01, 0.01, 0.3, 3.0, 30.0])
        pairs = self.random.permutation(len(self.rows) * len(moves))  # of row and move; of many numbers some
        move, row = np.divmod(pairs[: max(NUMBERS // (8 * self.numbers), len(moves))], len(self.rows))
        base, expected = self.rows.flatten(1)[row], first[row]
        # by amounts of their own, so that what they do to another number does not cancel
        moved = base + self.tensor(moves[move][:, None] * self.random.uniform(0.5, 1.5, base.shape))
        for half in self._halves():
            out = self.call(torch.where(half, moved, base).view(-1, *self.shape))
            if _differs(out[:, ~half], expected[:, ~half]).any():
                return False
        return True

    def _halves(self) -> Iterator[Tensor]:
        """Masks of the numbers of a sample, so that for every two some mask has the one and not the other."""
        numbers = torch.arange(self.numbers, device=self.place)
        for bit in range((self.numbers - 1).bit_length()):
            half = (numbers >> bit) % 2 == 1
            yield half
            yield ~half

    def _is_affine(self, first: Tensor) -> bool:
        """Whether f(a + t (b - a)) = f(a) + t (f(b) - f(a)) for neighbouring rows a, b, near and far."""
        steps = self.rows.roll(-1, 0) - self.rows
        change = first.roll(-1, 0) - first
        if not change.any():  # constant
            return False
        for t in (0.5, -1.0, 3.0, -30.0, 300.0):
            straight, size = first + t * change, (1 + abs(t)) * first.abs().amax()
            if not ((self.call(self.rows + t * steps) - straight).abs() <= ROUNDING[self.dtype] * size).all():
                return False  # or a NaN
        return True

    def _along_lines(self, elementwise: bool) -> tuple[float | None, bool, bool]:
        """Return a point at which it jumps, or None, whether it is piecewise constant, and whether it has a slope."""
        size = int(np.clip(NUMBERS // self.numbers, 33, 2049))
        jump, moving, changing, points, sloped = None, 0, False, 0, False
        for start, direction, low, high in self._lines(elementwise, size):
            t = self.tensor(np.linspace(low, high, size))
            values = self._on_line(start, direction, t)
            sloped = sloped or self._slopes(self._line(start, direction, t))
            if jump is None:
                jump, steep = self._jump(start, direction, t, values, elementwise)
                sloped = sloped or self._slopes(self._line(start, direction, steep))
            near = self._on_line(start, direction, t + STEP[self.dtype] * (high - low))
            changing |= bool(_differs(values, values[:1]).any())
            moving, points = moving + int(_differs(near, values).sum()), points + values.numel()
        return jump, moving < 0.01 * points and (jump is not None or not changing), sloped or not changing

    def _slopes(self, v: Tensor) -> bool:
        """Whether autograd's derivative is other than 0 for some number of v, or cannot be had."""
        if not len(v):
            return False
        with torch.enable_grad():
            try:
                v = v.detach().requires_grad_()
                out = self.call(v)
                weights = self.tensor(self.random.uniform(0.5, 1.5, out.shape))  # derivatives do not cancel
                (slope,) = torch.autograd.grad((out * weights).sum(), v) if out.requires_grad else (torch.zeros(1),)
            except Exception:  # of a module without a derivative, or of torch within another derivative
                return True
        return bool(slope.nan_to_num(nan=0.0).any())

    def _lines(self, elementwise: bool, size: int) -> list[tuple[Tensor, Tensor, float, float]]:
        """Lines start + t direction, low <= t <= high."""
        if not elementwise:
            pairs = zip(self.rows, self.rows.roll(-1, 0), strict=True)
            return [(a, b - a, -0.5, 1.5) for a, b in list(pairs)[:LINES]]
        ranges = [(-8.0, 8.0), (-1.0, 1.0)]
        low, high = float(self.rows.amin()), float(self.rows.amax())
        ranges += [(low, high)] if high > low else []
        # each unit's points lie between those of the others
        offsets = [self.tensor(self.random.random(self.shape)) * (b - a) / size for a, b in ranges]
        return [(o, torch.ones_like(o), a, b) for o, (a, b) in zip(offsets, ranges, strict=True)]

    def _line(self, start: Tensor, direction: Tensor, t: Tensor) -> Tensor:
        return start + t.view(-1, *(1 for _ in self.shape)) * direction

    def _on_line(self, start: Tensor, direction: Tensor, t: Tensor) -> Tensor:
        return self.call(self._line(start, direction, t))

    def _jump(
        self, start: Tensor, direction: Tensor, t: Tensor, values: Tensor, elementwise: bool
    ) -> tuple[float | None, Tensor]:
        """A t at which some output jumps (of an elementwise module the input there), or None; the steepest points."""
        change = (values[1:] - values[:-1]).abs().nan_to_num(nan=0.0, posinf=0.0)
        beside = torch.zeros_like(change)
        beside[1:] = change[:-1]
        beside[:-1] = torch.maximum(beside[:-1], change[1:])
        excess = (change - beside).flatten()
        order = excess.topk(min(CANDIDATES if elementwise else FEW_CANDIDATES, len(excess))).indices
        order = order[excess[order] > 0]
        if not len(order):
            return None, t[:0]
        at, output = order // change.shape[1], order % change.shape[1]
        low, high = t[at], t[at + 1]
        below, above = values[at, output], values[at + 1, output]
        row = torch.arange(len(order), device=order.device)
        for _ in range(HALVINGS[self.dtype]):
            middle = (low + high) / 2
            value = self._on_line(start, direction, middle)[row, output]
            left = (value - below).abs() >= (above - value).abs()
            low, high = torch.where(left, low, middle), torch.where(left, middle, high)
            below, above = torch.where(left, below, value), torch.where(left, value, above)
        size = values.abs().nan_to_num(nan=0.0, posinf=0.0).amax()
        rest = (above - below).abs().nan_to_num(nan=0.0)
        rest = torch.where((rest > 1e-3 * change[at, output]) & (rest > 1e-5 * size), rest, 0.0)
        best = int(rest.argmax())
        if rest[best] == 0:
            return None, high
        return float(high[best]) + (float(start.flatten()[output[best]]) if elementwise else 0.0), high


def _differs(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors differ; two NaNs do not."""
    return (a != b) & ~(a.isnan() & b.isnan())
