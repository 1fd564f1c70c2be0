"""The noisy network as a model of its own: the prediction averaged over passes with the training's noise."""

import math

import torch
from torch import Tensor, nn

from glr_lightning.noise import Noise
from glr_lightning.propagation.asked_values import see
from glr_lightning.propagation.graph import Graph
from glr_lightning.randomness import ImageRandom

STREAMS = 2**20
"""First random stream of the neurons' noise; a threat's own streams have small numbers."""


class NoiseAveraged(nn.Module):
    """x -> the logarithm of the mean over S passes of softmax(logits), with noise at all layers in every pass.

    The noise of an image is F^-1(u) with u a function of (seed, image index, pass, layer) alone, so that neither the
    batch size nor the choice of images changes a prediction. u is a multiple of 2^-24 plus 2^-25: the Gaussian's
    draws stay within 5.4 sigma.

    Args:
        network: a network that can be traced.
        noise: the density.
        sigma: its scale for every site, numbers or tensors that broadcast to the pre-activation.
        passes: S.
    """

    def __init__(self, network: nn.Module, noise: Noise, sigma: tuple[float | Tensor, ...], passes: int) -> None:
        super().__init__()
        self.network = network
        self.noise = noise
        self.sigma = sigma
        self.passes = passes

    def sigma_of(self, x: Tensor) -> tuple[float | Tensor, ...]:
        """The scales where x is, and of its type."""
        return tuple(s.to(x) if isinstance(s, Tensor) else s for s in self.sigma)

    def around(self, network: nn.Module) -> "NoiseAveraged":
        """The same noise in another network of the same layers."""
        return NoiseAveraged(network, self.noise, self.sigma, self.passes).eval()

    def forward(self, x: Tensor, random: ImageRandom) -> Tensor:
        """[B, classes]; random: the randomness of these images."""
        see(self.network, x)
        graph = Graph.of(self.network)
        sigma = self.sigma_of(x)
        clean = graph.clean(x)
        passes = []
        for number in range(self.passes):
            first = STREAMS + number * len(graph.sites)
            z = {}
            for site, v0 in enumerate(clean.preactivations):
                u = random.open_uniform(v0.shape[1:], first + site)
                z[site] = self.noise.icdf(u.to(graph.weight_dtype(site)))[None]
            logits = graph.noisy(clean, z, sigma).logits
            passes.append(logits.log_softmax(1))
        return torch.logsumexp(torch.stack(passes), dim=0) - math.log(self.passes)
