"""Signals that need no recording."""

import numpy as np


def reference(seconds: float = 3.0, sample_rate: int = 16000) -> np.ndarray:
    """Return a buzz of gliding harmonics in soft noise, float32 (samples,): the same on every machine.

    It is no speech; embeddings of it tell whether two installations compute the same thing.
    """
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(120.0 + 20.0 * np.sin(2 * np.pi * 0.7 * time)) / sample_rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 30))
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 3.0 * time)
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(len(time))
    return (0.1 * envelope * voice + 0.003 * noise).astype(np.float32)
