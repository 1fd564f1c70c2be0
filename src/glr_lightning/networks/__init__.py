"""Networks: functions that return a plain nn.Sequential."""

from glr_lightning.networks.convnet import convnet
from glr_lightning.networks.mlp import mlp
from glr_lightning.networks.modules import Recurrence, Residual, Shift, Sine, Standardise
from glr_lightning.networks.resnet5 import resnet5
from glr_lightning.networks.rnn import rnn
from glr_lightning.networks.vgg8 import vgg8

__all__ = ["Recurrence", "Residual", "Shift", "Sine", "Standardise", "convnet", "mlp", "resnet5", "rnn", "vgg8"]
