"""Salt and pepper."""

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom


def impulse_noise(
    model: nn.Module | None, x: Tensor, y: Tensor | None, *, random: ImageRandom, amount: float
) -> Tensor:
    """Every pixel of every channel becomes, with probability `amount`, 0 or 1 by a fair coin, and else stays.

    [B, C, H, W] in [0, 1]; model and y ignored. Channels are struck separately, as by scikit-image's
    random_noise in mode "s&p", which the source uses: Hendrycks & Dietterich, "Benchmarking neural network
    robustness to common corruptions and perturbations", ICLR 2019. Raises ConfigurationError if amount lies
    outside [0, 1].
    """
    if not 0.0 <= amount <= 1.0:
        raise ConfigurationError(f"impulse_noise needs an amount within [0, 1], got {amount}.")
    struck = random.uniform(x.shape[1:], stream=0) < amount
    salt = random.uniform(x.shape[1:], stream=1) < 0.5
    return torch.where(struck, salt.to(x.dtype), x)
