"""Fashion-MNIST: the same files as MNIST, with clothes in them."""

from typing import final

from glr_lightning.data.mnist import MNISTLike, Published


@final
class FashionMNIST(MNISTLike):
    """Clothes: 60,000 training and 10,000 test images, 10 classes."""

    name = "fashion_mnist"
    published = Published(
        "FashionMNIST",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    )
