"""A check of the signal-to-noise ratio."""

import pytest
import torch

from glr_lightning.training.callbacks.gradient_quality import WINDOW, SignalToNoise


def check_signal_to_noise() -> None:
    """Gradients signal + noise of known lengths, in two layers, over many windows: the ratio is that of the lengths."""
    generator = torch.Generator().manual_seed(0)
    snr = SignalToNoise()
    signal = torch.randn(40, generator=generator, dtype=torch.float64)
    for _ in range(2000 * WINDOW):
        noise = torch.randn(40, generator=generator, dtype=torch.float64)
        snr.update({"a.weight": 0.1 * signal[:30] + noise[:30], "a.bias": noise[30:], "b.weight": noise[:30]})
    found = snr.compute_and_reset()
    assert found["snr_a"] == pytest.approx(0.01 * float(signal[:30].square().sum()) / 40, rel=0.2), "not close"
    assert found["snr_b"] == pytest.approx(0, abs=1e-3), "not close"
