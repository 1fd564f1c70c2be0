"""Bias, variance and cost of gradient estimators on one batch."""
