"""The loss as a function of the noise-free logits u, given what was drawn at the logits.

With v = u + sigma z an output loss returns, for all rows at once: the loss at u; the loss after one hidden unit has
moved, for every unit (a rank-one change of u); and the derivative of the expected loss with respect to u, from loss
values. What is integrated out exactly keeps the mean and lowers the variance.

`output_loss_for` chooses by the class of the loss: `output_of` registers better ones than the general `OutputLoss`, for
a loss in any package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.noise import Noise


@dataclass(frozen=True)
class OutputLoss:
    """The loss at u + sigma z, for any loss.

    Attributes:
        loss: the per-sample loss.
        noise, sigma: density and scale of the noise at the logits.
        z: [rows, classes], the standardised noise drawn there.
        labels: [rows] int64.
    """

    loss: Loss
    noise: Noise
    sigma: float
    z: Tensor
    labels: Tensor

    needs_slopes: ClassVar[bool] = True
    """Whether `signal` reads draws of the measure-valued derivative."""

    def values(self, u: Tensor) -> Tensor:
        """[..., rows, classes] -> [..., rows]: the loss at noise-free logits u."""
        labels = self.labels.expand(u.shape[:-1]).reshape(-1)
        return self.loss(self.noisy(u).reshape(-1, u.shape[-1]), labels).view(u.shape[:-1])

    def noisy(self, u: Tensor) -> Tensor:
        """The logits v = u + sigma z."""
        return torch.add(u, self.z, alpha=self.sigma)

    def after_steps(self, u: Tensor, step: Tensor, columns: Tensor) -> Tensor:
        """The loss if unit j alone moved by step[:, j], for every j.

        Args:
            u: [rows, classes], before the move.
            step: [rows, units].
            columns: [classes, units], how the logits answer a unit: they move by step[:, j] columns[:, j].

        Returns:
            [rows, units].
        """
        moved = self.noisy(u)[:, None, :] + step[:, :, None] * columns.T
        labels = self.labels[:, None].expand(step.shape).reshape(-1)
        return self.loss(moved.flatten(0, 1), labels).view(step.shape)

    def after_jumps(self, u: Tensor, up: Tensor, size: float, columns: Tensor) -> Tensor:
        """As `after_steps` for steps that are +size where `up` [rows, units] is true or 1, and -size elsewhere."""
        return self.after_steps(u, up.to(u.dtype).mul(2.0 * size).sub_(size), columns)

    def signal(self, u: Tensor, slopes: Tensor | None) -> Tensor:
        """An unbiased estimate of dE[L]/du, [rows, classes], from loss values.

        Each logit's own noise is replaced by a draw r of its measure-valued derivative, the noise of the others staying
        as it was drawn:  f(0) / sigma (L(v_c = u_c + sigma r) - L(v_c = u_c - sigma r)).

        Args:
            u: [rows, classes].
            slopes: r by `Noise.sample_slope`, like u; None where `needs_slopes` is false.
        """
        r = drawn(slopes)
        each = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        above, below = (self.after_steps(u, self.sigma * (side * r - self.z), each) for side in (1, -1))
        return (above - below) * (self.noise.peak / self.sigma)


class _Form(NamedTuple):
    kind: type[OutputLoss]
    integrates: bool


_FORMS: dict[type[Loss], _Form] = {}
"""By the exact class of the loss; a subclass may be another function."""

AnyOutput = TypeVar("AnyOutput", bound=type[OutputLoss])


def output_of(loss: type[Loss], *, integrates: bool) -> Callable[[AnyOutput], AnyOutput]:
    """Register a class as the form that a loss has at the logits.

    Args:
        loss: the class of the loss, not its subclasses.
        integrates: whether it integrates out some of the noise at the logits. Such a form is not used where a layer is
            without noise.
    """

    def register(kind: AnyOutput) -> AnyOutput:
        _FORMS[loss] = _Form(kind, integrates)
        return kind

    return register


@output_of(CrossEntropy, integrates=False)
@dataclass(frozen=True)
class CrossEntropyOutput(OutputLoss):
    """Cross-entropy, log sum_c exp(v_c) - v_y: a unit that jumps between two levels costs a share of a matrix product.

    With p = softmax(v), the loss after v moves by d w is  L(v) + log sum_c p_c exp(d w_c) - d w_y, and for all units
    with the same d the sums are the product p @ exp(d columns).
    """

    def after_steps(self, u: Tensor, step: Tensor, columns: Tensor) -> Tensor:
        """As `OutputLoss.after_steps`."""
        v = self.noisy(u)
        moved = torch.addcmul(v.T[:, :, None], step, columns[:, None, :])  # classes first: the sum runs over long rows
        own = torch.addcmul(v.gather(1, self.labels[:, None]), step, columns.index_select(0, self.labels))
        return torch.logsumexp(moved, 0) - own

    def after_jumps(self, u: Tensor, up: Tensor, size: float, columns: Tensor) -> Tensor:
        """As `OutputLoss.after_jumps`, by two matrix products.

        Of the two sums sum_c e_c exp(+-size w_c), e = exp(v - max v), a unit's own is chosen before the logarithm.
        """
        v = self.noisy(u)
        top = v.amax(1, keepdim=True)
        e = (v - top).exp_()
        steps = size * columns
        most_up, most_down = steps.amax(0), -steps.amin(0)
        up = up.to(u.dtype)  # lerp is exact at weights 0 and 1, and ten times as fast as where
        total = torch.lerp(e @ (-steps - most_down).exp_(), e @ (steps - most_up).exp_(), up)
        # finite where all classes with a share in the sum underflow, in float32 some 87 nats below the largest logit
        value = total.clamp_min_(torch.finfo(u.dtype).tiny).log_()
        own_down, own_up = (own.index_select(0, self.labels) for own in (most_down + steps, most_up - steps))
        own = torch.lerp(own_down, own_up, up)
        return value.add_(own).sub_(v.gather(1, self.labels[:, None]) - top)

    def signal(self, u: Tensor, slopes: Tensor | None) -> Tensor:
        """As `OutputLoss.signal`, at the cost of one value for each logit, not of all classes.

        If v_c alone moves, so does one term of log sum_c exp(v_c), and v_y where c = y.
        """
        reach = self.sigma * drawn(slopes)
        others = _log_sum_of_others(self.noisy(u))
        rise = torch.logaddexp(others, u + reach).sub_(torch.logaddexp(others, u - reach))
        label = self.labels[:, None]
        rise.scatter_add_(1, label, reach.gather(1, label).mul_(-2.0))
        return rise.mul_(self.noise.peak / self.sigma)


def _log_sum_of_others(v: Tensor) -> Tensor:
    """Return log sum_{k != c} exp(v_k) for every c; v and result [rows, classes].

    The sums are a product of exp(v_k - second largest) with 1 - I, without cancellation. Where the largest is so far
    above the second that its term had to be bounded, it is all there is in the sum, and the largest of the others is
    the right value: it is below the logarithm everywhere else.
    """
    top, second = v.topk(2, dim=1).values.split(1, dim=1)
    terms = (v - second).clamp_max_(FAR).exp_()
    others = torch.ones(v.shape[1], v.shape[1], dtype=v.dtype, device=v.device).fill_diagonal_(0.0)
    return torch.maximum((terms @ others).log_().add_(second), torch.where(v == top, second, top))


FAR = 80.0
"""In nats: exp(-FAR) is below the rounding of 1 in float64, exp(FAR) is a number in float32."""


@output_of(ZeroOne, integrates=True)
@dataclass(frozen=True)
class ZeroOneOutput(OutputLoss):
    """0-1 loss, with the noise of the label's own logit integrated out.

    Given the noise of its rivals, the label y wins if v_y > m = max_{c != y} v_c, so

        E[L | rivals] = F((m - u_y) / sigma),

    which is smooth in u, where the 0-1 loss itself hardly ever moves.
    """

    needs_slopes = False

    def values(self, u: Tensor) -> Tensor:
        """The probability that the label loses, given the noise of its rivals."""
        label = self.labels[:, None].expand(*u.shape[:-1], 1)
        return self.noise.cdf((self._rivals(u).amax(-1) - u.gather(-1, label).squeeze(-1)) / self.sigma)

    def after_steps(self, u: Tensor, step: Tensor, columns: Tensor) -> Tensor:
        """As `OutputLoss.after_steps`."""
        moved = torch.addcmul(self._rivals(u).T[:, :, None], step, columns[:, None, :])  # classes first, as above
        own = torch.addcmul(u.gather(1, self.labels[:, None]), step, columns.index_select(0, self.labels))
        return self.noise.cdf(moved.amax(0).sub_(own).div_(self.sigma))

    def signal(self, u: Tensor, slopes: Tensor | None) -> Tensor:
        """Each logit's own noise integrated out, given that of the others.

        The label wins above m, so its derivative is -f((m - u_y) / sigma) / sigma. Rival c turns a right answer into a
        wrong one above v_y, if none of the other rivals has: f((v_y - u_c) / sigma) / sigma.
        """
        label = self.labels[:, None]
        own = self.noisy(u).gather(1, label)
        rivals = self._rivals(u)
        best, second = rivals.topk(2, dim=1).values.split(1, dim=1) if u.shape[1] > 2 else _only_rival(rivals)
        others = torch.where(rivals == best, second, best)  # the strongest rival besides c
        at = torch.where(own > others, own, torch.inf).scatter(1, label, best)
        density = self.noise.pdf((at - u) / self.sigma) / self.sigma
        return density.scatter(1, label, -density.gather(1, label))

    def _rivals(self, u: Tensor) -> Tensor:
        """Return v of every class but the label, which is -inf; [..., rows, classes]."""
        v = self.noisy(u)
        return v.scatter_(-1, self.labels[:, None].expand(*v.shape[:-1], 1), -torch.inf)


def _only_rival(rivals: Tensor) -> Sequence[Tensor]:
    best = rivals.amax(1, keepdim=True)
    return best, torch.full_like(best, -torch.inf)


def density_at_0(noise: Noise, like: Tensor) -> Tensor:
    """f(0), a scalar tensor."""
    return like.new_full((), noise.peak)


def drawn(slopes: Tensor | None) -> Tensor:
    """The draws, which must be there."""
    assert slopes is not None  # `needs_slopes`
    return slopes


def needs_slopes(loss: Loss) -> bool:
    """Whether the output loss of a loss, given the noise at the logits, reads draws of the derivative there."""
    return _form(loss).kind.needs_slopes


def noise_free_output(loss: Loss, noise: Noise, like: Tensor, labels: Tensor) -> OutputLoss:
    """The output loss without noise at the logits, like [rows, classes]: none that integrates it out."""
    form = _form(loss)
    return (OutputLoss if form.integrates else form.kind)(loss, noise, 1.0, torch.zeros_like(like), labels)


def output_loss_for(loss: Loss, noise: Noise, sigma: float, z: Tensor, labels: Tensor) -> OutputLoss:
    """The output loss of a loss, given the noise z [rows, classes] at the logits."""
    return _form(loss).kind(loss, noise, sigma, z, labels)


def _form(loss: Loss) -> _Form:
    return _FORMS.get(type(loss), _Form(OutputLoss, False))
