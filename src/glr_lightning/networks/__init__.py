"""Networks: functions that return a plain nn.Sequential."""

from glr_lightning.networks.mlp import mlp

__all__ = ["mlp"]
