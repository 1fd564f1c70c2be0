"""ResNet-5, one of the two convolutional networks of paper 3."""

from collections.abc import Sequence

from torch import nn

from glr_lightning.networks.blocks import Builder, Init, Norm, TwoChannels, initialise, size_behind
from glr_lightning.networks.modules import Residual
from glr_lightning.validation import Size, checked


@checked
def resnet5(
    *,
    image_shape: Sequence[int],
    classes: Size,
    channels: TwoChannels,
    stride: Size,
    activation: nn.Module,
    centre: float = 0.0,
    norm: Norm = "none",
    init: Init = "torch",
    preprocess: nn.Module | None = None,
) -> nn.Sequential:
    """Build five layers: convolution -> residual block of two convolutions -> convolution -> linear.

    The block adds its input to what its two convolutions make of it, before the activation (He, Zhang, Ren, Sun, CVPR
    2016), and normalises, if at all, sample by sample. Jiang et al., ICLR 2024, train a network of this name; its
    widths are options here.

    Args:
        image_shape: (channels, height, width) of an input in [0, 1].
        classes: the number of logits.
        channels: of the first convolution and the block, and of the last convolution.
        stride: of the first and the last convolution.
        activation: copied after every layer but the logits.
        centre: subtracted from every activation; see `mlp`.
        norm: normalisation after a convolution; see `Builder`.
        init: how the first weights are drawn; see `initialise`.
        preprocess: the first module, for the pixels.

    Raises:
        ConfigurationError: an option out of range, or images too small for the strides.
    """
    built = Builder(activation, centre, preprocess, norm)
    size = (image_shape[1], image_shape[2])
    for number in (1, 4):
        size = size_behind(size, 3, stride, 1, f"convolution {number}")
    inner, outer = channels
    built.activated("conv1", initialise(nn.Conv2d(image_shape[0], inner, 3, stride, 1), init))
    body = built.branch()
    body.activated("conv2", initialise(nn.Conv2d(inner, inner, 3, padding=1), init))
    body.normalised("conv3", initialise(nn.Conv2d(inner, inner, 3, padding=1), init))
    built.activated("block3", Residual(body.network()))
    built.activated("conv4", initialise(nn.Conv2d(inner, outer, 3, stride, 1), init))
    built.add("flatten", nn.Flatten())
    built.add("linear5", initialise(nn.Linear(outer * size[0] * size[1], classes), init))
    return built.network()
