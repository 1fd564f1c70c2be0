"""A network as a chain of modules, and its forward pass with noise at chosen sites.

The network stays an ordinary nn.Sequential (nested ones allowed): no wrappers, no hooks, no armed state. Its
state dict, its evaluation and every attack on it are plain torch; noise exists only in the functions below.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from glr_lightning.errors import ConfigurationError
from glr_lightning.layers import contract, is_contractible


@dataclass(frozen=True)
class CleanPass:
    """A noise-free forward pass. `inputs[i]` and `preactivations[i]` belong to site i, [batch, ...] each."""

    inputs: list[Tensor]
    preactivations: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class NoisySite:
    """What one noisy site saw.

    Attributes:
        site: its number.
        x: the layer's input, [batch, ...] if nothing before it was noisy, else [copies * batch, ...].
        v0: the pre-activation without this site's noise, [1 or copies, batch, *site].
        v: the noisy pre-activation v0 + sigma z, [copies, batch, *site].
        z: the standardised noise, [copies, batch, *site].
    """

    site: int
    x: Tensor
    v0: Tensor
    v: Tensor
    z: Tensor


@dataclass(frozen=True)
class Chain:
    """The modules of a network in the order they are applied, and the positions of its sites.

    A site is a layer with a registered weight gradient; it is where noise can enter.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    sites: tuple[int, ...]

    @staticmethod
    def of(network: nn.Module) -> "Chain":
        """Flatten a network.

        Raises:
            ConfigurationError: the network is not a chain, has no site, or holds parameters that are not those of
                exactly one site.
        """
        if not isinstance(network, nn.Sequential) or type(network).forward is not nn.Sequential.forward:
            raise ConfigurationError(
                f"noise is injected into an nn.Sequential, got {type(network).__name__}; "
                "write the network as an nn.Sequential (nested ones are fine)."
            )
        pairs = list(_leaves("", network))
        _check_inplace(pairs)
        _check_parameters(pairs)
        sites = tuple(i for i, (_, module) in enumerate(pairs) if is_contractible(module))
        if not sites:
            raise ConfigurationError("the network has no layer with weights, so there is nothing to train.")
        return Chain(tuple(n for n, _ in pairs), tuple(m for _, m in pairs), sites)

    def layer(self, site: int) -> nn.Module:
        """The layer at a site."""
        return self.modules[self.sites[site]]

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
        prefix = self.names[self.sites[site]]
        return f"{prefix}.{name}" if prefix else name

    def contract(self, site: int, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
        """`layers.contract` of the layer at a site, by the network's names of its parameters."""
        gradients = contract(self.layer(site), x, signal)
        return {self.parameter_name(site, name): gradient for name, gradient in gradients.items()}

    def clean(self, x: Tensor) -> CleanPass:
        """Run without noise, keeping what the sites saw. x [batch, ...]."""
        inputs, preactivations = [], []
        for position, module in enumerate(self.modules):
            out = module(x)
            if position in self.sites:
                inputs.append(x)
                preactivations.append(out)
            x = out
        return CleanPass(inputs, preactivations, x)

    def noisy(
        self,
        clean: CleanPass,
        noisy_sites: tuple[int, ...],
        sigma: tuple[float | Tensor, ...],
        draw: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, list[NoisySite]]:
        """Run with noise at the given sites, starting from the noise-free state at the first of them.

        Args:
            clean: the noise-free pass over the same batch; its prefix is not computed again.
            noisy_sites: ascending site numbers.
            sigma: the noise scale of every site; a tensor broadcasts to its pre-activation.
            draw: takes a pre-activation [1 or copies, batch, *site], returns noise [copies, batch, *site].

        Returns:
            logits [copies * batch, classes], copy-major, and what each noisy site saw.
        """
        batch = clean.logits.shape[0]
        first = noisy_sites[0]
        h = clean.inputs[first]
        seen: list[NoisySite] = []
        for position in range(self.sites[first], len(self.modules)):
            module = self.modules[position]
            site = self.sites.index(position) if position in self.sites else -1
            if site not in noisy_sites:
                h = module(h)
                continue
            # noise and scores need the parameters' precision, which autocast may have lowered
            v0 = clean.preactivations[first] if site == first else module(h)
            v0 = v0.to(module.get_parameter("weight").dtype).unflatten(0, (-1, batch))
            z = draw(v0)
            v = v0 + sigma[site] * z
            seen.append(NoisySite(site, h, v0, v, z))
            h = v.flatten(0, 1)
        return h, seen


def require_separate_samples(chain: Chain) -> None:
    """Refuse layers through which a sample's loss depends on other samples or on noise of their own (Law 3).

    Raises:
        ConfigurationError: batch normalisation by the batch's own statistics, or a layer that draws.
    """
    inner = [(n, m) for n, leaf in zip(chain.names, chain.modules, strict=True) for m in leaf.modules()]
    for name, module in inner:
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm and (module.training or module.running_mean is None):
            raise ConfigurationError(
                f"module '{name}' ({type(module).__name__}) is in train mode or keeps no statistics, and couples "
                "the samples of a batch, which breaks an estimate from each sample's own loss; remove it, use a "
                "per-sample normalisation (nn.GroupNorm without affine parameters), or put it in eval mode."
            )
    require_no_draws(inner)


def require_no_draws(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse layers that draw noise of their own. Raises ConfigurationError."""
    for name, module in modules:
        draws = isinstance(module, nn.RReLU) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
        if draws and module.training:
            raise ConfigurationError(
                f"module '{name}' ({type(module).__name__}) draws noise of its own from the global generator; "
                "remove it: the injected noise already regularises."
            )


def _leaves(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for name, child in module._modules.items():  # named_children() leaves out a module's second use
            if child is not None:
                yield from _leaves(f"{prefix}.{name}" if prefix else name, child)
    else:
        yield prefix, module


def _check_inplace(pairs: list[tuple[str, nn.Module]]) -> None:
    """Refuse modules that write into their input, which a pass keeps. Raises ConfigurationError."""
    for name, module in pairs:
        if any(getattr(inner, "inplace", False) for inner in module.modules()):
            raise ConfigurationError(
                f"module '{name}' ({type(module).__name__}) writes into its input, the pre-activation that noise is "
                "added to; use inplace=False."
            )


def _check_parameters(pairs: list[tuple[str, nn.Module]]) -> None:
    """Refuse parameters whose gradient would be missing or incomplete. Raises ConfigurationError."""
    owner: dict[Tensor, str] = {}
    for name, module in pairs:
        kind = f"module '{name}' ({type(module).__name__})"
        own = {parameter_name for parameter_name, _ in module.named_parameters(recurse=False)}
        if is_parametrized(module) or (is_contractible(module) and not own <= {"weight", "bias"}):
            raise ConfigurationError(
                f"{kind} computes its weight from other parameters, whose gradient is not estimated; remove that "
                "(torch.nn.utils.parametrize.remove_parametrizations)."
            )
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if trainable and not is_contractible(module):
            raise ConfigurationError(
                f"{kind} holds parameters, and no weight gradient is registered for it; replace it, freeze it "
                "(requires_grad=False), or register one with glr_lightning.layers.contract.register."
            )
        for parameter in trainable:
            if parameter in owner:
                raise ConfigurationError(
                    f"{kind} shares a parameter with module '{owner[parameter]}', and the gradients of the two uses "
                    "are not added up; give each layer parameters of its own."
                )
            owner[parameter] = name
