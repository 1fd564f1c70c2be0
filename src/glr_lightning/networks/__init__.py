"""Networks: functions that return a plain nn.Sequential."""

from glr_lightning.networks.mlp import Shift, mlp

__all__ = ["Shift", "mlp"]
