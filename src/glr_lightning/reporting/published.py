"""The accuracies that paper 1 published for the method; pages that quote them are compared with this file by a test.

They are accuracies in % from the README of the authors' code of Peng, Xiao, Heidergott, Hong & Lam,
"A New Likelihood Ratio Method for Training Artificial Neural Networks", INFORMS Journal on Computing 34(1), 2022. They
are single runs: no seeds or error bars are given, there are two versions of the LRT and BP settings and which made the
rows is not said, BP+ (backpropagation through a noisy forward pass) has no row, and which ten classes of Tiny-ImageNet
were used is not said either.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MODELS = ("BP", "BP+", "LRS", "LRT", "LRSZ", "LRTZ")
ATTACKS = {"clean": "clean", "lbfgs": "L-BFGS", "fgsm": "FGSM"}
CORRUPTIONS = {
    "gaussian_noise": "Gaussian noise",
    "impulse_noise": "impulse noise",
    "glass_blur": "glass blur",
    "contrast": "contrast",
}
SHARED = {"attacks": ATTACKS, "corruptions": CORRUPTIONS}


@dataclass(frozen=True)
class DataSet:
    """What the authors published for one data set.

    Attributes:
        title: the name of the data set.
        epsilon: the budget of FGSM, in units of the pixel range.
        accuracies: in %, by model, of the threats in the order of ATTACKS and CORRUPTIONS.
    """

    title: str
    epsilon: float
    accuracies: Mapping[str, tuple[float, ...]]

    def accuracy(self, model: str, threat: str) -> float | None:
        """Return an accuracy as a share, or None if nothing was published."""
        values = dict(zip([*ATTACKS, *CORRUPTIONS], self.accuracies.get(model, ()), strict=False))
        return values[threat] / 100 if threat in values else None


PUBLISHED = {
    "mnist": DataSet(
        "MNIST",
        0.13,
        {
            "BP": (96.34, 57.29, 28.37, 96.35, 91.95, 86.16, 67.25),
            "LRS": (95.54, 77.60, 45.91, 95.37, 93.78, 87.79, 76.98),
            "LRT": (95.33, 73.30, 54.35, 94.17, 95.01, 86.76, 68.13),
            "LRSZ": (84.54, 73.50, 58.05, 82.53, 81.23, 79.25, 80.92),
            "LRTZ": (90.22, 77.74, 61.36, 90.54, 90.10, 87.19, 79.81),
        },
    ),
    "fashion_mnist": DataSet(
        "Fashion-MNIST",
        0.13,
        {
            "BP": (86.45, 49.61, 17.86, 81.05, 65.40, 55.02, 41.05),
            "LRS": (83.93, 53.54, 52.85, 82.53, 80.23, 79.09, 49.96),
            "LRT": (85.54, 52.92, 42.62, 82.79, 82.65, 77.16, 45.82),
            "LRSZ": (58.68, 51.00, 46.35, 54.26, 52.43, 51.05, 40.77),
            "LRTZ": (62.05, 60.15, 57.19, 57.93, 57.25, 53.13, 44.68),
        },
    ),
    "tiny_imagenet_10": DataSet(
        "Tiny-ImageNet, 10 classes",
        0.03,
        {
            "BP": (21.70, 11.60, 8.70, 12.68, 12.52, 13.40, 11.36),
            "LRS": (20.30, 14.60, 17.04, 17.47, 17.52, 17.68, 16.28),
            "LRT": (17.30, 15.60, 14.34, 16.24, 16.48, 16.96, 14.88),
            "LRSZ": (15.22, 7.00, 14.35, 14.56, 14.47, 14.68, 14.40),
            "LRTZ": (19.57, 13.60, 16.52, 15.40, 15.48, 15.92, 13.99),
        },
    ),
}
