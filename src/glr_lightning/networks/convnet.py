"""A small convolutional network in the manner of LeNet."""

from collections.abc import Sequence

from torch import nn

from glr_lightning.networks.blocks import Builder, Init, Norm, initialise, size_behind, whole_number, whole_numbers


def convnet(
    *,
    image_shape: Sequence[int],
    classes: int,
    channels: Sequence[int],
    kernel: int,
    stride: int,
    hidden: Sequence[int],
    activation: nn.Module,
    centre: float = 0.0,
    norm: Norm = "none",
    init: Init = "torch",
    preprocess: nn.Module | None = None,
) -> nn.Sequential:
    """(convolution -> activation) x channels -> flatten -> (linear -> activation) x hidden -> linear.

    Args:
        image_shape: (channels, height, width) of an input in [0, 1].
        classes: the number of logits.
        channels: of each convolution.
        kernel, stride: of all of them; the padding is kernel // 2, so a stride of 2 halves the sides.
        hidden: widths of linear layers before the logits; with none, the last convolution is under the logits, where a
            local expectation is cheap.
        activation, centre, norm, preprocess: see `Builder`.
        init: see `initialise`.

    Raises:
        ConfigurationError: an option out of range, or images too small for so many layers.
    """
    channels = whole_numbers("channels", channels, "[16, 32]")
    hidden = whole_numbers("hidden", hidden, "[128], or [] for none", at_least_one=False)
    kernel, stride = whole_number("kernel", kernel), whole_number("stride", stride)
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
