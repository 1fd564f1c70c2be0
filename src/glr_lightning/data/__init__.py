"""Data sets of images, whose pixels reach the network as float32 in [0, 1]."""

from glr_lightning.data.base import ImageDataModule
from glr_lightning.data.digits import Digits
from glr_lightning.data.fashion_mnist import FashionMNIST
from glr_lightning.data.mnist import MNIST
from glr_lightning.data.tiny_imagenet import TinyImageNet, TinyImageNet10

__all__ = ["MNIST", "Digits", "FashionMNIST", "ImageDataModule", "TinyImageNet", "TinyImageNet10"]
