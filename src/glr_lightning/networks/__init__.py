"""Networks: functions that return a plain nn.Sequential."""

from glr_lightning.networks.convnet import convnet
from glr_lightning.networks.mlp import mlp
from glr_lightning.networks.modules import Residual, Shift, Sine, Standardise
from glr_lightning.networks.resnet5 import resnet5
from glr_lightning.networks.vgg8 import vgg8

__all__ = ["Residual", "Shift", "Sine", "Standardise", "convnet", "mlp", "resnet5", "vgg8"]
