"""Fashion-MNIST: the same files as MNIST, with clothes in them."""

from typing import final

import torchvision

from glr_lightning.data.mnist import MNISTLike


@final
class FashionMNIST(MNISTLike):
    """Clothes: 60,000 training and 10,000 test images, 10 classes."""

    name = "fashion_mnist"
    published = torchvision.datasets.FashionMNIST
