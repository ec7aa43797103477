"""What a channel does to a signal: its frequency response, its bandwidth and its level."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.augment.step import Range, Step, at_power, power
from redimnet_jax.errors import UserError


def _slope(ratio: np.ndarray) -> np.ndarray:
    """Return the attenuation of a Butterworth filter of order 4; repeated squares are faster than a power."""
    return np.sqrt(1 + np.square(np.square(np.square(ratio))))


@dataclass(frozen=True, kw_only=True)
class Channel(Step):
    """A random zero-phase channel: a smooth frequency response, a tilt and a pass band; the power is kept.

    Gains from `equaliser` (dB) are drawn at ten frequencies, equally spaced in octaves, and interpolated linearly;
    `tilt` is in dB per octave, around 1 kHz. Below `low` and above `high` (Hz) the response falls by 24 dB per
    octave. In corpora with one recording a speaker it keeps the network from learning the recording.
    """

    equaliser: Range = (-6.0, 6.0)
    tilt: Range = (-2.0, 2.0)
    low: Range = (20.0, 300.0)
    high: Range = (3400.0, 8000.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            if getattr(self, name)[0] <= 0:
                raise UserError(f"{self.where(name)} is {getattr(self, name)!r}, so give frequencies above 0 Hz.")

    def response(self, frequencies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a random amplitude response, float32, at `frequencies` (Hz)."""
        frequencies = np.maximum(frequencies, 1.0).astype(np.float32)
        octaves = np.log2(frequencies / 1000)
        grid = np.linspace(np.log2(50 / 1000), np.log2(8000 / 1000), 10)
        decibels = (
            np.interp(octaves, grid, rng.uniform(*self.equaliser, len(grid))) + rng.uniform(*self.tilt) * octaves
        )
        low = np.float32(rng.uniform(*self.low))
        high = np.float32(rng.uniform(*self.high))
        gain = np.exp(np.float32(np.log(10) / 20) * decibels.astype(np.float32))
        return gain / (_slope(low / frequencies) * _slope(frequencies / high))

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from scipy import fft

        # Zeros at the end keep the circular convolution from joining both ends of the signal.
        size: Any = fft.next_fast_len(len(waveform) + SAMPLE_RATE // 4, real=True)
        response = self.response(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), rng)
        filtered = fft.irfft(fft.rfft(waveform, size) * response, size)[: len(waveform)]
        return at_power(np.asarray(filtered), power(waveform))


@dataclass(frozen=True, kw_only=True)
class Gain(Step):
    """Change the level by `decibels`."""

    decibels: Range = (-10.0, 10.0)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return waveform * np.float32(10 ** (rng.uniform(*self.decibels) / 20))


@dataclass(frozen=True, kw_only=True)
class LowPass(Step):
    """A zero-phase low-pass filter: what is lost below a lower sampling rate; the power is not kept.

    `cutoff` and `width` are fractions of the band, 8 kHz. The response is 1 below cutoff - width / 2 and 0 above
    cutoff + width / 2. Between them it is (1 + cos(pi (f - cutoff) / width)) / 2: 0.5 at both ends and 1 at the
    cut-off, as in `LowPassAug` of the authors' recipes of ReDimNet2. The signal counts as periodic.
    """

    cutoff: Range = (0.6, 0.6)
    width: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cutoff[0] <= self.cutoff[1] <= 1:
            raise UserError(f"{self.where('cutoff')} is {self.cutoff!r}, so give fractions above 0 and up to 1.")
        if not isinstance(self.width, int | float) or not 0 < self.width <= 1:
            raise UserError(f"{self.where('width')} is {self.width!r}, so give a fraction above 0 and up to 1.")

    def response(self, frequencies: np.ndarray, cutoff: float) -> np.ndarray:
        """Return the amplitude response, float32, at `frequencies`, fractions of the band."""
        distance = np.abs(frequencies - cutoff)
        transition = 0.5 * (1 + np.cos(np.pi * distance / self.width))
        response = np.where(distance <= self.width / 2, transition, frequencies < cutoff)
        return response.astype(np.float32)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from scipy import fft

        cutoff = rng.uniform(*self.cutoff)
        response = self.response(np.linspace(0, 1, len(waveform) // 2 + 1), cutoff)
        return np.asarray(fft.irfft(fft.rfft(waveform) * response, len(waveform)))
