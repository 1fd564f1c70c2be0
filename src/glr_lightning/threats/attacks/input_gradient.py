"""The gradients of a loss with respect to the images, by the sources an attack can declare.

All of them are pure, of the summed loss, so that an image's gradient does not depend on the batch it came in. A loss
takes scores [rows, classes] and labels [rows] and returns [rows]; an attack ascends it.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glr_lightning.baselines import LeaveOneOut
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators.likelihood_ratio import LikelihoodRatio
from glr_lightning.estimators.settings import even_parts
from glr_lightning.estimators.straight_through import Mean, with_slopes
from glr_lightning.losses import CrossEntropy
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.entrance import is_entrance, preactivation
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.graph_module import GraphModule
from glr_lightning.propagation.layer_vjp import unit_norms
from glr_lightning.propagation.module_facts import facts_of
from glr_lightning.randomness import ImageRandom
from glr_lightning.sampling import Antithetic

Scores = Callable[[Tensor], Tensor]
AttackLoss = Callable[[Tensor, Tensor], Tensor]
cross_entropy = CrossEntropy()
CHUNK = 2**22  # numbers in the widest layer's noisy pre-activations, all copies: 16 MB of float32, 200 in all


def margin(scores: Tensor, y: Tensor) -> Tensor:
    """max_{c != y} score_c - score_y, [rows]: above 0 exactly where the prediction is wrong.

    Unlike the cross-entropy it keeps its slope however confident the network is. Source: Carlini & Wagner, "Towards
    evaluating the robustness of neural networks", IEEE S&P 2017 (their f_6 without the bound).
    """
    right = scores.gather(1, y[:, None])
    others = scores.scatter(1, y[:, None], -torch.inf).amax(1)
    return others - right.squeeze(1)


LossName = Literal["cross_entropy", "margin"]
ATTACK_LOSSES: dict[str, AttackLoss] = {"cross_entropy": cross_entropy, "margin": margin}


def input_gradient(model: Scores, x: Tensor, y: Tensor, loss: AttackLoss = cross_entropy) -> Tensor:
    """d/dx of the summed loss of model(x) against y, by autograd; [B, C, H, W] like x.

    Where no path of the model is differentiable the gradient is zero: that is what autograd means by it, and the
    harness counts such images. Parameters receive no gradient. Raises ConfigurationError under torch.inference_mode,
    which records no graph.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigurationError(
            "an input gradient was asked for under torch.inference_mode, which forbids it; "
            "use torch.no_grad instead, or inside a Trainer pass Trainer(inference_mode=False)."
        )
    with torch.enable_grad():
        image = x.detach().clone().requires_grad_()
        total = loss(model(image), y).sum()
        if not total.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(total, image, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.detach()


def scales(graph: Graph, smoothing: float) -> tuple[Tensor, ...]:
    """The scales at which the pre-activations of each layer are smoothed: of its unit i, smoothing * ||w_i||_2.

    So they follow the network however it is scaled, and belong to no batch: what white noise of that standard deviation
    at the layer's inputs would do to the unit.
    """
    return tuple(smoothing * unit_norms(layer).clamp_min(1e-12) for _, layer in graph.named_layers)


def straight_through(network: nn.Module, smoothing: float) -> nn.Module:
    """The network with a slope at every piecewise-constant activation: same scores, autograd sees the slopes.

    The slope is that of the activation's mean under Gaussian noise of `scales`: BPDA (Athalye, Carlini & Wagner, ICML
    2018) with the straight-through surrogate that `estimators.StraightThrough` trains with. A network without such
    activations comes back as it is. Raises ConfigurationError for a network that cannot be traced.
    """
    graph = Graph.of(network)
    return GraphModule(with_slopes(graph, Gaussian(), scales(graph, smoothing))).eval()


def smoothed(network: nn.Module, smoothing: float) -> nn.Module:
    """The network with the mean under Gaussian noise of `scales` in place of every piecewise-constant activation.

    A network without such activations computes what it did. Raises ConfigurationError for one that cannot be traced.
    """
    graph = Graph.of(network)
    return GraphModule(with_slopes(graph, Gaussian(), scales(graph, smoothing), Mean)).eval()


def is_piecewise_constant(network: nn.Module) -> bool:
    """Whether a module of the network has a derivative of 0, so that autograd finds no way past it."""
    return any(facts_of(module).flat for module in network.modules())


@torch.no_grad()
def likelihood_ratio_gradient(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: AttackLoss,
    *,
    random: ImageRandom,
    copies: int,
    smoothing: float,
    sigma: tuple[Any, ...] | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """The gradient of the smoothed loss with respect to the images, from loss values alone; [B, C, H, W] like x.

    The adaptive attack on networks trained by the likelihood ratio: with v = A(x) the first pre-activation, linear in
    x, and z ~ N(0, I) from K antithetic copies,

        g = A^T ( 1/K sum_k (L_k - b_k) s(z_k) / sigma ),   L_k = loss(rest of the network at v + sigma z_k),

    is unbiased for d/dx E[L(v + sigma z)] for any loss and network, jumps included. s is the conditional score where a
    threshold follows, b the leave-one-out mean. Only A is differentiated, and exactly: it is the network's own first
    layer, which a white-box attacker knows.

    random: draws the copies, for every image its own. copies: K, even and at least 4. smoothing: see `scales`.
    sigma, noise: of the network that keeps its noise on at inference, one scale a layer, and the density; it then takes
        the place of the smoothing, at all layers. A density without a score (uniform) is replaced by the Gaussian.

    Raises ConfigurationError for a network that cannot be traced, or of which other calls than the first layer read the
    image, or copies that are not two pairs at least.
    """
    graph = Graph.of(network)
    widest = max(shape.numel() for shape in graph.shapes(x).sites)
    parts = even_parts(len(x), CHUNK // max(copies * widest, 1))
    if len(parts) > 1:
        settings: dict[str, Any] = {"copies": copies, "smoothing": smoothing, "sigma": sigma, "noise": noise}
        pieces = zip(x.split(parts), y.split(parts), random.index.split(parts), strict=True)

        def part(image: Tensor, label: Tensor, index: Tensor) -> Tensor:
            own = ImageRandom(random.seed, index)
            return likelihood_ratio_gradient(network, image, label, loss, random=own, **settings)

        return torch.cat([part(*piece) for piece in pieces])
    density = noise if noise is not None and noise.admissible else Gaussian()
    estimator = LikelihoodRatio(copies=copies, sampling=Antithetic(), noise=density)
    if not is_entrance(graph, 0):
        raise ConfigurationError(
            f"the likelihood-ratio gradient of an image needs a first layer that all of the image goes through, and "
            f"other calls than {graph.nodes[graph.sites[0]].what} read the image as well, as in a residual block; use "
            "gradient_source=straight_through, or put a layer before them.",
            option="gradient_source",
        )
    sites = (0,) if sigma is None else tuple(range(len(graph.sites)))
    at_sites = scales(graph, smoothing) if sigma is None else sigma
    noises: dict[int, Tensor] = {}
    for site in sites:
        u = random.open_uniform((copies // 2, *graph.shapes(x).sites[site]), 2**16 + site)
        z = density.icdf(u.to(graph.weight_dtype(site))).transpose(0, 1)
        noises[site] = torch.cat([z, -z])
    logits, seen, *_ = graph.noisy(graph.clean(x), noises, at_sites)
    losses = loss(logits, y.repeat(copies)).unflatten(0, (copies, len(y)))
    baseline = LeaveOneOut()(losses, Antithetic().group(copies, x.device), None)
    score = estimator.score_of(graph, seen[0], at_sites[0])
    weight = ((losses - baseline) / copies)[(...,) + (None,) * (score.dim() - 2)]
    signal = (weight * score).sum(0) / at_sites[0]
    with torch.enable_grad():
        image = x.detach().clone().requires_grad_()
        v0 = preactivation(graph, image, 0)
        if not v0.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(v0, image, signal)
    return gradient
