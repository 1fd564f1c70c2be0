"""VGG-8, one of the two convolutional networks of paper 3."""

from collections.abc import Sequence

from torch import nn

from glr_lightning.networks.blocks import Builder, Channels, Init, Norm, initialise, size_behind
from glr_lightning.validation import Size, checked


@checked
def vgg8(
    *,
    image_shape: Sequence[int],
    classes: Size,
    channels: Channels,
    hidden: Size,
    activation: nn.Module,
    centre: float = 0.0,
    norm: Norm = "none",
    init: Init = "torch",
    preprocess: nn.Module | None = None,
) -> nn.Sequential:
    """Build (two 3 x 3 convolutions -> max pooling) x stages -> flatten -> linear -> linear.

    Three stages make eight layers.

    Every convolution and the first linear layer are followed by the activation (Simonyan & Zisserman, ICLR 2015, in
    small). Jiang et al., ICLR 2024, train a network of this name; its widths are options here.

    Args:
        image_shape: (channels, height, width) of an input in [0, 1].
        classes: the number of logits.
        channels: of the convolutions of each stage, which halves the sides.
        hidden: width of the first linear layer.
        activation: copied after every layer but the logits.
        centre: subtracted from every activation; see `mlp`.
        norm: normalisation after a convolution; see `Builder`.
        init: how the first weights are drawn; see `initialise`.
        preprocess: the first module, for the pixels.

    Raises:
        ConfigurationError: an option out of range, or images too small for the number of stages.
    """
    built = Builder(activation, centre, preprocess, norm)
    before, size = image_shape[0], (image_shape[1], image_shape[2])
    for stage, width in enumerate(channels, start=1):
        size = size_behind(size, 2, 2, 0, f"the pooling of stage {stage}")
        for number in (2 * stage - 1, 2 * stage):
            built.activated(f"conv{number}", initialise(nn.Conv2d(before, width, 3, padding=1), init))
            before = width
        built.add(f"pool{stage}", nn.MaxPool2d(2))
    built.add("flatten", nn.Flatten())
    number = 2 * len(channels) + 1
    built.activated(f"linear{number}", initialise(nn.Linear(before * size[0] * size[1], hidden), init))
    built.add(f"linear{number + 1}", initialise(nn.Linear(hidden, classes), init))
    return built.network()
