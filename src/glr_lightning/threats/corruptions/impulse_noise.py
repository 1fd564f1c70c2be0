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
    struck = random.uniform(x.shape[1:], stream=0) < amount
    salt = random.uniform(x.shape[1:], stream=1) < 0.5
    return torch.where(struck, salt.to(x.dtype), x)
