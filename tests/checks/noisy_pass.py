"""A check of passes with noise against torch's own pass and hooks."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from glr_lightning.propagation.graph import Graph
from tests.checks.convolutional_cases import (
    PIXELS,
    noisy_logits,
    weighted,
)

COPIES, SIGMA = 3, 0.5


def check_passes(make: Any) -> None:
    """From every site where noise can start, with and without further ones: torch's own pass, with noise by hooks."""
    network = make(nn.Tanh())
    graph = Graph.of(network)
    names = list(weighted(network))
    assert list(graph.layers) == names
    clean = graph.clean(PIXELS)
    torch.testing.assert_close(clean.logits, network(PIXELS), rtol=1e-12, atol=1e-12)
    sigma = tuple(0.3 + 0.1 * site for site in range(len(names)))  # one of its own for each
    for sites in itertools.chain.from_iterable(
        itertools.combinations(range(len(names)), size) for size in (1, 2, len(names))
    ):
        z: dict[str, Tensor] = {}

        for site in sites:
            v0, generator = clean.preactivations[site], torch.Generator().manual_seed(len(z))
            z[names[site]] = torch.randn(COPIES, *v0.shape, generator=generator, dtype=v0.dtype)

        noisy = graph.noisy(clean, {site: z[names[site]] for site in sites}, sigma)
        noise = {name: sigma[names.index(name)] * value.flatten(0, 1) for name, value in z.items()}
        expected = noisy_logits(network, PIXELS.repeat(COPIES, 1, 1, 1), noise)  # copy-major
        torch.testing.assert_close(noisy.logits, expected, rtol=1e-10, atol=1e-10, msg=lambda m, s=sites: f"{s}: {m}")
        end = nn.Sequential(*(graph.nodes[number].module for number in graph.end))
        head = sigma[-1] * z[names[-1]].flatten(0, 1) if names[-1] in z else 0.0
        assert len(noisy.readout) == len(PIXELS) * (1 if sites == (len(names) - 1,) else COPIES)
        torch.testing.assert_close(
            end(noisy.readout).repeat(len(noisy.logits) // len(noisy.readout), 1) + head, noisy.logits
        )
        assert [at.site for at in noisy.seen] == list(sites)
