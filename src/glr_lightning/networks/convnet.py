"""A small convolutional network in the manner of LeNet."""

from collections.abc import Sequence

from torch import nn

from glr_lightning.networks.blocks import Builder, Channels, Init, Norm, Widths, initialise, size_behind
from glr_lightning.validation import Size, checked


@checked
def convnet(
    *,
    image_shape: Sequence[int],
    classes: Size,
    channels: Channels,
    kernel: Size,
    stride: Size,
    hidden: Widths,
    activation: nn.Module,
    centre: float = 0.0,
    norm: Norm = "none",
    init: Init = "torch",
    preprocess: nn.Module | None = None,
) -> nn.Sequential:
    """Build (convolution -> activation) x channels -> flatten -> (linear -> activation) x hidden -> linear.

    Args:
        image_shape: (channels, height, width) of an input in [0, 1].
        classes: the number of logits.
        channels: of each convolution.
        kernel: side of their windows; the padding is kernel // 2.
        stride: of all of them; 2 halves the sides.
        hidden: widths of linear layers before the logits; with none, the last convolution is under the logits, where a
            local expectation is cheap.
        activation: copied after every layer but the logits.
        centre: subtracted from every activation; see `mlp`.
        norm: normalisation after a convolution; see `Builder`.
        init: how the first weights are drawn; see `initialise`.
        preprocess: the first module, for the pixels.

    Raises:
        ConfigurationError: an option out of range, or images too small for that many layers.
    """
    built = Builder(activation, centre, preprocess, norm)
    before, size = image_shape[0], (image_shape[1], image_shape[2])
    for number, width in enumerate(channels, start=1):
        size = size_behind(size, kernel, stride, kernel // 2, f"convolution {number}")
        convolution = nn.Conv2d(before, width, kernel, stride, kernel // 2)
        built.activated(f"conv{number}", initialise(convolution, init))
        before = width
    built.add("flatten", nn.Flatten())
    before *= size[0] * size[1]
    for number, width in enumerate(hidden, start=len(channels) + 1):
        built.activated(f"linear{number}", initialise(nn.Linear(before, width), init))
        before = width
    built.add(f"linear{len(channels) + len(hidden) + 1}", initialise(nn.Linear(before, classes), init))
    return built.network()
