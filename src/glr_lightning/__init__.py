"""Train neural networks without backpropagation, by the generalized likelihood ratio method."""

__version__ = "0.4.0"
