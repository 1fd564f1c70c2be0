"""The smallest change that fools, by L-BFGS in the box with a penalty."""

import torch
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import Scores, margin
from glr_lightning.threats.attacks.objective import ROUNDING, Objective
from glr_lightning.threats.attacks.quasi_newton import InverseHessian, dot
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.facts import WHITE_BOX, AttackFacts, declare
from glr_lightning.validation import Count, Positive

HISTORY = 10
CAUTION = 0.5  # of the penalty's own curvature
SEARCH = 10  # halvings of the segment between the image and what fooled
FACTOR = 4.0  # of the penalty's weight, while it is not yet bracketed


@declare(AttackFacts(norms=("l2",), gradient_sources=(*WHITE_BOX, "transfer")))
def penalised_lbfgs(
    model: Scores,
    x: Tensor,
    y: Tensor,
    *,
    random: ImageRandom | None,
    epsilon: Positive | None = None,
    rounds: Count = 8,
    iterations: Count = 10,
    target: Tensor | None = None,
) -> Tensor:
    """Find for every image the x' in [0, 1] of least ||x' - x||_2 that fools the model; [B, C, H, W].

    It minimises c ||x' - x||^2 - height(x'), the height being the margin max_{c != y} score_c - score_y, or with a
    target, int64 [B], score_target - max_{c != target} score_c, and looks for the largest c whose minimum fools, for
    every image its own. On a linear model of two classes that minimum is the nearest point of the boundary, whatever
    the scores' scale; a cross-entropy, which the source uses, would mix the classes. The first c is the one at which
    the linearised model would just be fooled; `rounds` values are tried in all, each from where the last one ended, in
    `iterations` whole steps of L-BFGS projected onto the box: the penalty's own Hessian is known and dominates, and a
    line search would compare scores with gradients that are not theirs (straight_through, likelihood_ratio). The
    nearest iterate that fools is drawn towards x by halving the segment. `random` is ignored.

    epsilon: a bound on ||x' - x||_2 in pixel units; an image whose x' is farther away is returned unchanged, as is one
        that nothing fools. None for no bound.

    Source: Szegedy, Zaremba, Sutskever, Bruna, Erhan, Goodfellow & Fergus, "Intriguing properties of neural networks",
    ICLR 2014, section 4.1; the margin is that of Carlini & Wagner, IEEE S&P 2017.
    """
    query = Query.of(model, x)
    objective = Objective.of(y, target)
    scores = query(x).detach()
    rows = (~objective.reached(scores)).nonzero().squeeze(1)
    if not len(rows):
        return x
    problem = _Problem(query.take(rows), objective.take(rows), x[rows])
    pixels, height = problem.x, objective.height(scores, margin)[rows, None]
    slope = problem.slope(pixels)
    weight = (dot(slope, slope) / (-2.0 * height).clamp_min(1e-6)).clamp_min(1e-12)
    fooling, failing = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    for _ in range(rounds):
        pixels, fooled = problem.minimise(pixels, weight, iterations)
        fooling, failing = torch.where(fooled, weight, fooling), torch.where(fooled, failing, weight)
        weight = torch.where(failing.isinf(), weight * FACTOR, (fooling * failing).sqrt())
        weight = torch.where(fooling == 0, failing / FACTOR, weight)
    nearest = problem.nearest()
    if epsilon is not None:
        nearest = torch.where((nearest - problem.x).norm(dim=1, keepdim=True) <= epsilon, nearest, problem.x)
    return x.index_copy(0, rows, nearest.view_as(x[rows]))


class _Problem:
    """The images that do not fool as they are, flat [m, N], and for each the nearest that fools so far."""

    def __init__(self, query: Query, objective: Objective, images: Tensor) -> None:
        self.x = images.flatten(1)
        self._query, self._objective, self._shape = query, objective, images.shape
        self._fools = self.x.clone()
        self._distance = torch.full((len(images), 1), torch.inf, dtype=images.dtype, device=images.device)

    def fooled(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Whether these pixels, in place of the images `rows`, fool, bool [k, 1]; keep those nearer than any before."""
        scores = self._query.take(rows)(pixels.view(-1, *self._shape[1:])).detach()
        height = self._objective.take(rows).height(scores, margin)[:, None]
        # On the boundary itself the last bits, which depend on the batch, would decide.
        fooled = height > ROUNDING * scores.abs().amax(1, keepdim=True)
        distance = (pixels - self.x[rows]).norm(dim=1, keepdim=True)
        nearer = fooled & (distance < self._distance[rows])
        self._fools[rows] = torch.where(nearer, pixels, self._fools[rows])
        self._distance[rows] = torch.where(nearer, distance, self._distance[rows])
        return fooled

    def slope(self, pixels: Tensor) -> Tensor:
        """The gradient of the height, [m, N]."""
        return self._objective.uphill(self._query, pixels.view(self._shape), margin).flatten(1)

    def minimise(self, pixels: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """Minimise ||x' - x||^2 / 2 - height / (2 c), whose Hessian is near the identity.

        Returns:
            x', and whether any iterate fooled.
        """
        hessian = InverseHessian(HISTORY, CAUTION)
        every = torch.arange(len(pixels), device=pixels.device)
        ever = torch.zeros_like(weight, dtype=torch.bool)

        def gradient_at(pixels: Tensor) -> Tensor:
            return pixels - self.x - self.slope(pixels) / (2.0 * weight)

        gradient = gradient_at(pixels)
        for number in range(iterations):
            # Pixels at the box's wall that would leave it stay out of the step: the two-metric projection (Bertsekas).
            free = ~(((pixels <= 0) & (gradient > 0)) | ((pixels >= 1) & (gradient < 0)))
            steepest = -gradient * free
            direction = (hessian @ steepest) * free
            direction = torch.where(dot(direction, gradient) < 0, direction, steepest)
            old_pixels, old_gradient = pixels, gradient
            pixels = (pixels + direction).clamp(0.0, 1.0)
            ever |= self.fooled(pixels, every)
            if number < iterations - 1:
                gradient = gradient_at(pixels)
                hessian.update(pixels - old_pixels, gradient - old_gradient)
        return pixels, ever

    def nearest(self) -> Tensor:
        """The nearest that fooled, once more halved towards x; x where nothing did."""
        rows = self._distance.isfinite().squeeze(1).nonzero().squeeze(1)
        x, change = self.x[rows], (self._fools - self.x)[rows]
        inner, outer = torch.zeros_like(self._distance[rows]), torch.ones_like(self._distance[rows])
        for _ in range(SEARCH if len(rows) else 0):
            middle = (inner + outer) / 2.0
            fooled = self.fooled(x + middle * change, rows)
            inner, outer = torch.where(fooled, inner, middle), torch.where(fooled, middle, outer)
        return self._fools
