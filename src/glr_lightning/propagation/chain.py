"""A network as a chain of modules, and its forward pass with noise at chosen sites.

The network stays an ordinary nn.Sequential (nested ones and residual blocks allowed): no wrappers, no hooks, no armed
state. Its state dict, its evaluation and every attack on it are plain torch; noise exists only in the functions below.

What travels along the chain is a `State`: the present tensor, and those that wait for the end of a residual block (see
`residual_steps.py`). Every position can be a start or an end of a pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.networks.modules import Residual
from glr_lightning.propagation.layer_vjp import has_weights, weight_vjp
from glr_lightning.propagation.module_facts import facts_of, observe
from glr_lightning.propagation.probing import ModuleFacts
from glr_lightning.propagation.requirements import require_own_output, require_own_parameters
from glr_lightning.propagation.residual_steps import Fork, Merge, State, Step, Swap


@dataclass(frozen=True)
class CleanPass:
    """A noise-free forward pass.

    Attributes:
        inputs, preactivations: of site i, [batch, ...] each.
        waiting: what waits at site i.
        shapes: of one sample, behind every module of the chain.
        readout: [batch, ...], the input of `Chain.readout`.
        logits: [batch, classes].
    """

    inputs: list[Tensor]
    preactivations: list[Tensor]
    waiting: list[State]
    shapes: list[torch.Size]
    readout: Tensor
    logits: Tensor


@dataclass(frozen=True)
class NoisySite:
    """Input, noise and pre-activations at one noisy site.

    Attributes:
        site: its number.
        x: the layer's input, [batch, ...] if nothing before it was noisy, else [copies * batch, ...].
        v0: the pre-activation without this site's noise, [1 or copies, batch, *site].
        v: the noisy pre-activation v0 + sigma z, [copies, batch, *site].
        z: the standardised noise, [copies, batch, *site].
        waiting: what waits there, with as many rows as x.
    """

    site: int
    x: Tensor
    v0: Tensor
    v: Tensor
    z: Tensor
    waiting: State = ()


class NoisyPass(NamedTuple):
    """A pass with noise.

    Attributes:
        logits: [copies * batch, classes], copy-major.
        seen: what each noisy site saw.
        readout: the input of `Chain.readout`, [copies * batch, ...] or, below all noise, [batch, ...].
    """

    logits: Tensor
    seen: list[NoisySite]
    readout: Tensor


@dataclass(frozen=True)
class Chain:
    """The modules of a network in the order they are applied, and the positions of its sites.

    A site is a layer with weights and a registered weight gradient; it is where noise can enter.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    sites: tuple[int, ...]

    @staticmethod
    def of(network: nn.Module, x: Tensor | None = None) -> "Chain":
        """Flatten a network.

        Args:
            network: an nn.Sequential.
            x: a batch [batch, ...]; modules neither declared nor known are probed on their inputs for the first.

        Raises:
            ConfigurationError: the network is not a chain, has no site, or holds parameters that are not those of
                exactly one site.
        """
        if isinstance(network, _Chained):
            return network.chain
        if not isinstance(network, nn.Sequential) or type(network).forward is not nn.Sequential.forward:
            raise ConfigurationError(
                f"noise is injected into an nn.Sequential, got {type(network).__name__}; write the network as an "
                "nn.Sequential (nested ones are fine, and glr_lightning.networks.Residual for residual blocks)."
            )
        pairs = list(_leaves("", network))
        require_own_output(pairs)
        require_own_parameters(pairs)
        sites = tuple(i for i, (_, module) in enumerate(pairs) if has_weights(module))
        if not sites:
            raise ConfigurationError("the network has no layer with weights, so there is nothing to train.")
        if x is not None:
            observe(network, x)
        return Chain(tuple(n for n, _ in pairs), tuple(m for _, m in pairs), sites)

    def layer(self, site: int) -> nn.Module:
        """The layer at a site."""
        return self.modules[self.sites[site]]

    @property
    def named_modules(self) -> tuple[tuple[str, nn.Module], ...]:
        """The modules with their names, in order."""
        return tuple(zip(self.names, self.modules, strict=True))

    @property
    def site_names(self) -> tuple[str, ...]:
        """The network's names of the layers at the sites."""
        return tuple(self.names[position] for position in self.sites)

    def follower(self, site: int) -> nn.Module | None:
        """The module that reads the site's pre-activation, None after the last."""
        position = self.sites[site] + 1
        return self.modules[position] if position < len(self.modules) else None

    def parameter_name(self, site: int, name: str) -> str:
        """The network's name of a parameter of the layer at a site."""
        return _join(self.names[self.sites[site]], name)

    def weight_vjp(self, site: int, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
        """`layer_vjp.weight_vjp` of the layer at a site, by the network's names of its parameters."""
        gradients = weight_vjp(self.layer(site), x, signal)
        return {self.parameter_name(site, name): gradient for name, gradient in gradients.items()}

    @property
    def readout(self) -> int:
        """Position at which the affine end begins: the last layer, and modules without parameters right before it."""
        start = self.sites[-1]
        while start > 0 and _is_affine(self.modules[start - 1]):
            start -= 1
        return start

    def readout_weight(self, like: Tensor) -> Tensor:
        """The matrix by which the logits read the input of `readout`, [classes, ...]; like: that input, [rows, ...]."""
        last = self.layer(len(self.sites) - 1).get_parameter("weight").detach()
        at = like.detach().new_zeros(len(last), *like.shape[1:])
        end = nn.Sequential(*self.modules[self.readout :])
        # one layer deep, and affine: row c of the pull-back of the identity is the gradient of logit c
        pull = torch.func.vjp(end, at)[1]
        weight: Tensor = pull(torch.eye(len(last), dtype=at.dtype, device=at.device))[0]
        return weight

    def step(self, position: int, state: State) -> State:
        """The state behind a module."""
        module = self.modules[position]
        return module.step(state) if isinstance(module, Step) else (module(state[0]), *state[1:])

    def network(self) -> nn.Module:
        """The chain as a module, [batch, ...] -> [batch, classes]."""
        return _Chained(self)

    def clean(self, x: Tensor) -> CleanPass:
        """Run without noise, keeping what the sites saw. x [batch, ...]."""
        inputs, preactivations, waiting, shapes = [], [], [], []
        state: State = (x,)
        start, readout = self.readout, x
        for position in range(len(self.modules)):
            before, state = state, self.step(position, state)
            shapes.append(state[0].shape[1:])
            if position == start:
                readout = before[0]
            if position in self.sites:
                inputs.append(before[0])
                waiting.append(before[1:])
                preactivations.append(state[0])
        return CleanPass(inputs, preactivations, waiting, shapes, readout, state[0])

    def noisy(
        self,
        clean: CleanPass,
        noisy_sites: tuple[int, ...],
        sigma: tuple[float | Tensor, ...],
        draw: Callable[[Tensor], Tensor],
    ) -> NoisyPass:
        """Run with noise at the given sites, starting from the noise-free state at the first of them.

        Args:
            clean: the noise-free pass over the same batch; its prefix is not computed again.
            noisy_sites: ascending site numbers.
            sigma: the noise scale of every site; a tensor broadcasts to its pre-activation.
            draw: takes a pre-activation [1 or copies, batch, *site], returns noise [copies, batch, *site].
        """
        batch = clean.logits.shape[0]
        first = noisy_sites[0]
        state: State = (clean.inputs[first], *clean.waiting[first])
        seen: list[NoisySite] = []
        start, readout = self.readout, clean.readout
        for position in range(self.sites[first], len(self.modules)):
            if position == start:
                readout = state[0]
            site = self.sites.index(position) if position in self.sites else -1
            if site not in noisy_sites:
                state = self.step(position, state)
                continue
            h, *waiting = state
            module = self.modules[position]
            # noise and scores need the parameters' precision, which autocast may have lowered
            v0 = clean.preactivations[first] if site == first else module(h)
            v0 = v0.to(module.get_parameter("weight").dtype).unflatten(0, (-1, batch))
            scale = sigma[site]
            if isinstance(scale, Tensor) and scale.dim() > v0.dim() - 2:  # it would broadcast along the copies
                raise ConfigurationError(
                    f"noise scales of shape {list(scale.shape)} do not fit the pre-activations {list(v0.shape[2:])} of "
                    f"'{self.names[position]}' ({type(module).__name__}); give the layer one scale "
                    "(callbacks.learned_sigma.per=layer), or normalise vectors by nn.LayerNorm."
                )
            z = draw(v0)
            v = v0 + scale * z
            seen.append(NoisySite(site, h, v0, v, z, tuple(waiting)))
            state = (v.flatten(0, 1), *waiting)
        return NoisyPass(state[0], seen, readout)


class _Chained(nn.Module):
    """A chain's forward pass."""

    facts = ModuleFacts()

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.steps = nn.ModuleList(chain.modules)
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        state: State = (x,)
        for position in range(len(self.chain.modules)):
            state = self.chain.step(position, state)
        return state[0]


def _is_affine(module: nn.Module) -> bool:
    return facts_of(module).affine and next(module.parameters(), None) is None


def _leaves(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is Residual:
        yield prefix, Fork()
        yield from _leaves(_join(prefix, "body"), module.body)
        if not isinstance(module.shortcut, nn.Identity):
            yield prefix, Swap()
            yield from _leaves(_join(prefix, "shortcut"), module.shortcut)
        yield prefix, Merge()
    elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for name, child in module._modules.items():  # named_children() leaves out a module's second use
            if child is not None:
                yield from _leaves(_join(prefix, name), child)
    else:
        yield prefix, module


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
