"""The loss as a function of the noise-free logits u, given what was drawn at the logits.

With v = u + sigma z an output loss returns, for all rows at once: the loss at u; the loss after one hidden unit has
moved, for every unit (a rank-one change of u); and the derivative of the expected loss with respect to u, from loss
values. What is integrated out exactly keeps the mean and lowers the variance.

`output_loss_for` chooses by the class of the loss: `output_of` registers better ones than the general `OutputLoss`, for
a loss in any package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

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

    def values(self, u: Tensor) -> Tensor:
        """[..., rows, classes] -> [..., rows]: the loss at noise-free logits u."""
        labels = self.labels.expand(u.shape[:-1]).reshape(-1)
        return self.loss((u + self.sigma * self.z).reshape(-1, u.shape[-1]), labels).view(u.shape[:-1])

    def after_steps(self, u: Tensor, step: Tensor, columns: Tensor) -> Tensor:
        """The loss if unit j alone moved by step[:, j], for every j.

        Args:
            u: [rows, classes], before the move.
            step: [rows, units].
            columns: [classes, units], how the logits answer a unit: they move by step[:, j] columns[:, j].

        Returns:
            [rows, units].
        """
        moved = (u + self.sigma * self.z)[:, None, :] + step[:, :, None] * columns.T
        labels = self.labels[:, None].expand(step.shape).reshape(-1)
        return self.loss(moved.flatten(0, 1), labels).view(step.shape)

    def after_jumps(self, u: Tensor, up: Tensor, size: float, columns: Tensor) -> Tensor:
        """As `after_steps` for steps that are +size where `up` [rows, units] is true and -size elsewhere."""
        return self.after_steps(u, (2.0 * size) * up.to(u.dtype) - size, columns)

    def signal(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """An unbiased estimate of dE[L]/du, [rows, classes], from loss values.

        Each logit's own noise is replaced by a draw of its measure-valued derivative (`Noise.sample_slope`), the noise
        of the others staying as it was drawn:  f(0) / sigma (L(v_c = u_c + sigma r) - L(v_c = u_c - sigma r)).
        """
        r = self.noise.sample_slope(u.shape, generator=generator, dtype=u.dtype)
        each = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        above, below = (self.after_steps(u, self.sigma * (side * r - self.z), each) for side in (1, -1))
        return density_at_0(self.noise, u) / self.sigma * (above - below)


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
        v = u + self.sigma * self.z
        moved = torch.addcmul(v.T[:, :, None], step, columns[:, None, :])  # classes first: the sum runs over long rows
        own = torch.addcmul(v.gather(1, self.labels[:, None]), step, columns[self.labels])
        return torch.logsumexp(moved, 0) - own

    def after_jumps(self, u: Tensor, up: Tensor, size: float, columns: Tensor) -> Tensor:
        """As `OutputLoss.after_jumps`, by two matrix products."""
        log_p = torch.log_softmax(u + self.sigma * self.z, dim=1)
        p = log_p.exp()
        rise, fall = (_log_product(p, side * size * columns) for side in (1, -1))
        own = size * columns[self.labels]
        before = -log_p.gather(1, self.labels[:, None])
        return before + torch.where(up, rise - own, fall + own)

    def signal(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """As `OutputLoss.signal`, at the cost of one value for each logit, not of all classes.

        If v_c alone moves, so does one term of log sum_c exp(v_c), and v_y where c = y.
        """
        reach = self.sigma * self.noise.sample_slope(u.shape, generator=generator, dtype=u.dtype)
        others = _log_sum_of_others(u + self.sigma * self.z)
        rise = torch.logaddexp(others, u + reach) - torch.logaddexp(others, u - reach)
        own = torch.zeros_like(u).scatter_(1, self.labels[:, None], 1.0)
        return density_at_0(self.noise, u) / self.sigma * (rise - 2 * own * reach)


def _log_sum_of_others(v: Tensor) -> Tensor:
    """Return log sum_{k != c} exp(v_k) for every c; v and result [rows, classes].

    It is log sum_k exp(v_k) + log(1 - p_c), where only the largest p_c may be near 1 and is summed by itself.
    """
    largest = v.argmax(1, keepdim=True)
    rest = v.logsumexp(1, keepdim=True) + torch.log1p(-torch.softmax(v, 1))
    return rest.scatter(1, largest, v.scatter(1, largest, -torch.inf).logsumexp(1, keepdim=True))


@output_of(ZeroOne, integrates=True)
@dataclass(frozen=True)
class ZeroOneOutput(OutputLoss):
    """0-1 loss, with the noise of the label's own logit integrated out.

    Given the noise of its rivals, the label y wins if v_y > m = max_{c != y} v_c, so

        E[L | rivals] = F((m - u_y) / sigma),

    which is smooth in u, where the 0-1 loss itself hardly ever moves.
    """

    def values(self, u: Tensor) -> Tensor:
        """The probability that the label loses, given the noise of its rivals."""
        label = self.labels[:, None].expand(*u.shape[:-1], 1)
        return self.noise.cdf((self._rivals(u).amax(-1) - u.gather(-1, label).squeeze(-1)) / self.sigma)

    def after_steps(self, u: Tensor, step: Tensor, columns: Tensor) -> Tensor:
        """As `OutputLoss.after_steps`."""
        moved = torch.addcmul(self._rivals(u).T[:, :, None], step, columns[:, None, :])  # classes first, as above
        own = torch.addcmul(u.gather(1, self.labels[:, None]), step, columns[self.labels])
        return self.noise.cdf((moved.amax(0) - own) / self.sigma)

    def signal(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """Each logit's own noise integrated out, given that of the others.

        The label wins above m, so its derivative is -f((m - u_y) / sigma) / sigma. Rival c turns a right answer into a
        wrong one above v_y, if none of the other rivals has: f((v_y - u_c) / sigma) / sigma.
        """
        label = self.labels[:, None]
        own = (u + self.sigma * self.z).gather(1, label)
        rivals = self._rivals(u)
        best, second = rivals.topk(2, dim=1).values.split(1, dim=1) if u.shape[1] > 2 else _only_rival(rivals)
        others = torch.where(rivals == best, second, best)  # the strongest rival besides c
        at = torch.where(own > others, own, torch.inf).scatter(1, label, best)
        density = self.noise.log_prob((at - u) / self.sigma).exp() / self.sigma
        return density.scatter(1, label, -density.gather(1, label))

    def _rivals(self, u: Tensor) -> Tensor:
        """Return v of every class but the label, which is -inf; [..., rows, classes]."""
        v = u + self.sigma * self.z
        return v.scatter(-1, self.labels[:, None].expand(*v.shape[:-1], 1), -torch.inf)


def _only_rival(rivals: Tensor) -> Sequence[Tensor]:
    best = rivals.amax(1, keepdim=True)
    return best, torch.full_like(best, -torch.inf)


def _log_product(p: Tensor, exponents: Tensor) -> Tensor:
    """Return log(p @ exp(exponents)): [rows, classes], [classes, units] -> [rows, units], p >= 0."""
    largest = exponents.amax(0)
    total = p @ (exponents - largest).exp()
    # finite where all classes with a share in the sum underflow, in float32 some 87 nats below the largest logit
    return largest + total.clamp_min(torch.finfo(p.dtype).tiny).log()


def density_at_0(noise: Noise, like: Tensor) -> Tensor:
    """f(0), a scalar tensor."""
    return noise.log_prob(like.new_zeros(())).exp()


def noise_free_output(loss: Loss, noise: Noise, like: Tensor, labels: Tensor) -> OutputLoss:
    """The output loss without noise at the logits, like [rows, classes]: none that integrates it out."""
    form = _form(loss)
    return (OutputLoss if form.integrates else form.kind)(loss, noise, 1.0, torch.zeros_like(like), labels)


def output_loss_for(loss: Loss, noise: Noise, sigma: float, z: Tensor, labels: Tensor) -> OutputLoss:
    """The output loss of a loss, given the noise z [rows, classes] at the logits."""
    return _form(loss).kind(loss, noise, sigma, z, labels)


def _form(loss: Loss) -> _Form:
    return _FORMS.get(type(loss), _Form(OutputLoss, False))
