"""Certified robustness: inside which radius no attack whatever changes the vote of a network with noise at its neurons.

The networks here are trained with noise at the pre-activations. Kept on at inference, the noise at the first layer is
randomised smoothing: a change d of the image moves v = W x + b by W d and does nothing else.

Theorem. Let S = diag(sigma) and let the smoothed classifier be the vote

    g(x) = argmax_c P(f(W x + b + S z) = c),   z ~ N(0, I),

f being the rest of the network. If P(f(W x + b + S z) = c) >= p > 1/2, then g(x + d) = c for every d with

    ||S^-1 W d||_2 < Phi^-1(p).

Sketch. Write F(v) = P(f(v) = c) in [0, 1], over whatever randomness f has of its own; with a = S^-1 (W x + b) the
probability of c is E F(S (a + z)), and after the change E F(S (a + u + z)), u = S^-1 W d. Telling N(a, I) from
N(a + u, I) is a test, F is a randomised one, and by the lemma of Neyman and Pearson none of level >= p has less mass
after the change than the half-space across u: Phi(Phi^-1(p) - ||u||_2), which exceeds 1/2 within the radius. That F be
0 or 1 is needed nowhere, so the upper layers may be noisy, in any density, provided that this noise is independent of
the first layer's.

p is not known; a Monte Carlo estimate takes its place. `selection` draws choose the class, and `draws` others, that
had no part in the choice, count it: hits ~ Binomial(draws, p), so Clopper and Pearson's one-sided lower bound exceeds
p with probability at most alpha, and so does the radius the true one. With a bound <= 1/2 the certificate abstains.

All images share the same draws. For one image they are independent of each other, which is all that its bound asks for,
so each certificate fails with probability at most alpha as if it were alone, and the mean number of failures among n
images is at most alpha n. What is given up is that images fail independently; what is gained is that an image's
certificate does not depend on its batch, and that noise costs next to nothing.

Preconditions, refused otherwise: Gaussian noise at the first layer, which is affine in the image, behind nothing but
isometries and `Standardise`, which scales. The theorem is about real numbers; float32 rounds (Jin, Ohrimenko &
Rubinstein, "Getting a-round guarantees: floating-point attacks on certified robustness", arXiv:2205.10159, 2022).

Sources: Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019 (theorem and
algorithm); Lecuyer et al., "Certified robustness to adversarial examples with differential privacy", IEEE S&P 2019
(noise behind the first layer, and its operator norm); Salman et al., "Provably robust deep learning via adversarially
trained smoothed classifiers", NeurIPS 2019 (F in [0, 1]); Clopper & Pearson, Biometrika 26, 1934.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.networks import Standardise
from glr_lightning.noise import Gaussian, Noise
from glr_lightning.propagation.entrance import is_entrance
from glr_lightning.propagation.function_call import FunctionCall
from glr_lightning.propagation.graph import Graph
from glr_lightning.propagation.module_facts import facts_of
from glr_lightning.propagation.requirements import require_separate_samples
from glr_lightning.propagation.values import CleanPass
from glr_lightning.randomness import ImageRandom

NORMS = {
    "standardised": "||diag(1/sigma) W d||_2",
    "preactivation": "||W d||_2",
    "l2": "||d||_2",
    "linf": "||d||_inf",
}
STREAMS = 2**21  # of the votes; a threat's own are small numbers, a noise average's begin at 2**20
CHUNK = 2**20  # numbers in the widest layer's noisy pre-activations: 4 MB of float32, about what a cache holds


@final
@dataclass(frozen=True)
class Certificate:
    """What is proven about the smoothed vote on each image.

    prediction: int64 [n], the class that the selection draws chose.
    radius: float64 [n], the vote is `prediction` for all changes smaller than that; 0 where the certificate abstains.
    """

    prediction: Tensor
    radius: Tensor

    @property
    def abstained(self) -> Tensor:
        """Whether the certificate was refused, bool [n]."""
        return self.radius == 0

    def correct(self, y: Tensor, radius: float) -> Tensor:
        """Whether an image is right, and certified up to and including the radius, bool [n]. At 0: not abstained."""
        return (self.prediction == y) & (self.radius > radius)


@torch.no_grad()
def certify(
    network: nn.Module,
    x: Tensor,
    sigma: Sequence[float | Tensor],
    *,
    seed: int,
    noise: Noise | None = None,
    draws: int = 10_000,
    selection: int = 100,
    alpha: float = 0.001,
) -> Certificate:
    """Certify images in the norm ||diag(1/sigma) W d||_2, in standard deviations of the first layer's noise.

    Args:
        network: one in eval mode whose first layer is affine in the image.
        x: images [B, C, H, W].
        sigma: the scale of the noise at the first layer, and at each noisy layer after it; numbers, or tensors that
            broadcast to the pre-activation. The first layer's noise is Gaussian.
        seed: all randomness; the noise of draw j is a function of (seed, j, layer), the same for all images.
        noise: the density above the first layer, by default Gaussian. That its tails are cut beyond 2^-24 changes f,
            not the theorem.
        draws: Monte Carlo draws that count the class.
        selection: draws that choose it before.
        alpha: a certificate is false with at most this probability.

    Raises ConfigurationError for another network.
    """
    graph = Graph.of(network)
    _require_affine_start(graph)
    clean = graph.clean(x)
    scales = tuple(s.to(x) if isinstance(s, Tensor) else s for s in sigma)
    density = Gaussian() if noise is None else noise
    prediction = _votes(graph, clean, scales, density, seed, range(selection)).argmax(1)
    votes = _votes(graph, clean, scales, density, seed, range(selection, selection + draws))
    hits = votes.gather(1, prediction[:, None]).squeeze(1).cpu()
    radius = torch.special.ndtri(lower_bound(hits, draws, alpha)).clamp(min=0.0)
    return Certificate(prediction.cpu(), radius)


def lower_bound(hits: Tensor, n: int, alpha: float) -> Tensor:
    """Clopper and Pearson's lower bound of p, float64, one-sided at confidence 1 - alpha, from hits ~ Binomial(n, p).

    It is the p at which `hits` or more have probability alpha: the alpha-quantile of Beta(hits, n - hits + 1),
    and 0 without a hit.
    """
    from scipy.special import betaincinv  # here, since attacks and corruptions need no bound

    k = hits.double().numpy()
    bound = torch.from_numpy(betaincinv(k.clip(min=1.0), n - k + 1.0, alpha))
    return torch.where(hits > 0, bound, 0.0)


@torch.no_grad()
def largest_shift(network: nn.Module, x: Tensor, sigma: float | Tensor, norm: str) -> float:
    """Return an upper bound of ||diag(1/sigma) W d||_2 over all d of norm 1.

    A certificate's radius divided by it is one in that norm. W is the first layer's, over the std of a `Standardise`
    before it, for images like x [B, C, H, W]. For a linear layer it is exact in L2, the largest singular value. In
    L-infinity the maximum is NP-hard; the least of these is taken, with A = diag(1/sigma) W:

        ||A d||_2 <= || row sums of |A| ||_2
        ||A d||_2 <= sqrt(sum_i c_i) || A diag(c)^-1/2 ||   for any c > 0: here 1, and the row sums of |A^T A|

    (the second because sum_i c_i d_i^2 <= sum_i c_i; minimised over c it is the semidefinite relaxation). A convolution
    applies its kernels, as a matrix K, to patches: its norm is at most sqrt(m) ||K||, m the number of patches that a
    pixel is in, and in L-infinity sqrt(places) times the bound for K. Power iteration would bound from below, and
    certify what is false.

    Raises ConfigurationError for a first layer without such a bound.
    """
    graph = Graph.of(network)
    _require_affine_start(graph)
    layer, site = graph.layer(0), graph.shapes(x).sites[0]
    scale = torch.as_tensor(sigma, dtype=torch.float64).cpu().broadcast_to(site)
    if norm == "standardised":
        return 1.0
    if norm == "preactivation":
        return 1.0 / float(scale.min())
    overlap, places = _patches(layer, site)
    matrix = layer.get_parameter("weight").detach().cpu().double().flatten(1)
    matrix = matrix / math.prod(m.std for m in _before(graph) if isinstance(m, Standardise))
    matrix = matrix / scale.reshape(len(matrix), -1).amin(1)[:, None]  # a channel's smallest scale bounds the others
    l2 = math.sqrt(overlap) * float(torch.linalg.matrix_norm(matrix, 2))
    if norm == "l2":
        return l2
    return min(math.sqrt(x[0].numel()) * l2, math.sqrt(places) * _linf_bound(matrix))


def _votes(
    graph: Graph, clean: CleanPass, sigma: tuple[float | Tensor, ...], noise: Noise, seed: int, numbers: range
) -> Tensor:
    """How often each class wins in the draws of these numbers, int64 [B, classes]; memory does not grow with them."""
    counts = torch.zeros_like(clean.logits, dtype=torch.int64)
    batch, device = len(counts), counts.device
    widest = max(v[0].numel() for v in clean.preactivations)
    for part in torch.arange(numbers.start, numbers.stop, device=device).split(max(1, CHUNK // (batch * widest))):
        random = ImageRandom(seed, part)
        z: dict[int, Tensor] = {}  # [draws, 1, *site]: the images of the batch share it
        for site, v0 in enumerate(clean.preactivations[: len(sigma)]):
            stream, shape, dtype = STREAMS + site, v0.shape[1:], graph.weight_dtype(site)
            if site == 0:
                z[site] = random.normal(shape, stream).to(dtype)[:, None]
            else:
                z[site] = noise.icdf(random.open_uniform(shape, stream).to(dtype))[:, None]
        logits = graph.noisy(clean, z, sigma).logits
        winners = logits.argmax(1).unflatten(0, (len(part), batch)).T
        counts.scatter_add_(1, winners, torch.ones_like(winners))
    return counts


def _require_affine_start(graph: Graph) -> None:
    """Refuse a network whose first layer is not an affine function of the image, image by image, or is bypassed."""
    require_separate_samples(graph.named_modules)
    if not is_entrance(graph, 0):
        raise ConfigurationError(
            "a certificate needs a first layer that all of the image goes through, and other calls than "
            f"{graph.nodes[graph.sites[0]].what} read the image as well, as in a residual block; put a layer before "
            "them."
        )
    foreign = [module for module in _before(graph) if not facts_of(module).isometry and type(module) is not Standardise]
    foreign += [graph.layer(0)] if type(graph.layer(0)) not in (nn.Linear, nn.Conv2d) else []
    if foreign:
        raise ConfigurationError(
            "a certificate needs a first layer that is affine in the image: nn.Linear or nn.Conv2d after nothing but "
            f"nn.Flatten, Standardise and modules that declare ModuleFacts(isometry=True); got {_kind(foreign[0])}. "
            "Leave that out, and scale the images by Standardise (preprocess=standardise) or in the data."
        )


def _before(graph: Graph) -> list[nn.Module]:
    """What the image goes through before the first layer."""
    return [graph.nodes[number].module for number in graph.ancestors(graph.sites[0])[1:]]


def _kind(module: nn.Module) -> str:
    return str(module) if isinstance(module, FunctionCall) else type(module).__name__


def _patches(layer: nn.Module, site: torch.Size) -> tuple[int, int]:
    """In how many patches a pixel is at most, and how many patches there are."""
    if isinstance(layer, nn.Linear) and len(site) == 1:
        return 1, 1
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        # along an axis, the taps that a pixel meets are those whose offset fits the stride: every s / gcd(s, d)-th
        axes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        return math.prod(-(-k // (s // math.gcd(s, d))) for k, s, d in axes), math.prod(site[1:])
    raise ConfigurationError(
        f"there is no bound here of the norm of {layer} on images, so no certificate in norm=l2 or linf; use "
        "norm=preactivation, an nn.Linear after nn.Flatten, or an nn.Conv2d with groups=1 and padding by zeros."
    )


def _linf_bound(matrix: Tensor) -> float:
    """Bound ||matrix d||_2 over ||d||_inf <= 1, see `largest_shift`."""
    weights = (matrix.T @ matrix).abs().sum(1)
    weights = weights.clamp(min=1e-12 * float(weights.max()) or 1.0)  # columns of zeros
    scaled = torch.linalg.matrix_norm(matrix / weights.sqrt(), 2) * weights.sum().sqrt()
    return min(float(torch.linalg.vector_norm(matrix.abs().sum(1))), float(scaled))
