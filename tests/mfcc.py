r"""Mel-frequency cepstral coefficients, the usual front end of speech models, for tests on recorded speech.

    frames of 25 ms every 10 ms, Hamming window, power spectrum |X_f|^2, M triangular filters spaced evenly in
    mel = 2595 log10(1 + f / 700), log energies, and their discrete cosine transform (type II, orthonormal).

Davis & Mermelstein 1980, "Comparison of parametric representations for monosyllabic word recognition".
"""

from __future__ import annotations

import numpy as np
from scipy.fft import dct


def mfcc(x: np.ndarray, rate: int, count: int = 20, filters: int = 40) -> np.ndarray:
    """(frames, count) coefficients of a sound x (samples,), scaled to a peak of 1 beforehand."""
    x = x / max(1e-9, float(np.abs(x).max()))
    x = np.append(x[0], x[1:] - 0.97 * x[:-1])  # pre-emphasis
    size, hop, fft = rate * 25 // 1000, rate // 100, 256
    x = np.pad(x, (0, max(0, size - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, size)[::hop] * np.hamming(size)
    power = np.abs(np.fft.rfft(frames, fft)) ** 2 / fft
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, filters + 2) / 2595) - 1)
    f = np.fft.rfftfreq(fft, 1 / rate)
    rise = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.clip(np.minimum(rise, fall), 0, None)
    return dct(np.log(power @ bank.T + 1e-8), norm="ortho", axis=1)[:, :count]
