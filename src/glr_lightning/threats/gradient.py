"""The gradient that gradient attacks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """d/dx of the summed cross-entropy of model(x) against y, by autograd; [B, C, H, W] like x.

    The sum, not the mean, so that an image's gradient does not depend on the batch it came in. Where no path
    of the model is differentiable the gradient is zero: that is what autograd means by it, and the harness
    counts such images. Parameters receive no gradient. Raises ConfigurationError under torch.inference_mode,
    which records no graph.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigurationError(
            "an input gradient was asked for under torch.inference_mode, which forbids it; "
            "use torch.no_grad instead, or inside a Trainer pass Trainer(inference_mode=False)."
        )
    with torch.enable_grad():
        image = x.detach().clone().requires_grad_()
        loss = F.cross_entropy(model(image), y, reduction="sum")
        if not loss.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(loss, image, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.detach()
