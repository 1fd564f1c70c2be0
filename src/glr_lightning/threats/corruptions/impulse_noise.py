"""Salt and pepper."""

import torch
from torch import Tensor

from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.facts import checked_parameters
from glr_lightning.validation import Share


@checked_parameters
def impulse_noise(model: object, x: Tensor, y: object, *, random: ImageRandom, amount: Share) -> Tensor:
    """Every pixel of every channel becomes, with probability `amount`, 0 or 1 by a fair coin, and else stays.

    [B, C, H, W] in [0, 1]; model and y ignored. Channels are struck separately, as by scikit-image's
    random_noise in mode "s&p", which the source uses: Hendrycks & Dietterich, "Benchmarking neural network
    robustness to common corruptions and perturbations", ICLR 2019.
    """
    struck = random.once(ImageRandom.uniform, x.shape[1:], 0) < amount
    salt = random.once(_salt, x.shape[1:])
    return torch.where(struck, salt.to(x.dtype), x)


def _salt(random: ImageRandom, shape: torch.Size) -> Tensor:
    """Which pixels become 1 if they are struck: bool [B, *shape]."""
    return random.uniform(shape, stream=1) < 0.5
