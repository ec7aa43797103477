"""What can be said of a recording before its speaker is scored: length, speech, level, clipping and bandwidth."""

import dataclasses
import math

import numpy as np

from redimnet_jax.data import speech
from redimnet_jax.data.audio import MIN_LEVEL, SAMPLE_RATE

# Limits of `warnings`.
SHORT_SECONDS = 2.0
CLIPPED_FRACTION = 0.001
TELEPHONE_HZ = 4200.0

_FULL_SCALE = 0.99  # Resampling and lossy coding move clipped samples a little.
_BAND_DB = 60.0  # the spectrum's floor below its peak; speech has 40 to 50 dB between its vowels and its fricatives
_WINDOW = 512
_BLOCK = 1 << 20  # samples a Fourier transform works on at once


@dataclasses.dataclass(frozen=True)
class SignalQuality:
    """Measures of a recording.

    `seconds` is its length and `speech_seconds` the length of the speech in it. `level_db` is the root mean square
    of the speech (of all, where there is none) in dB of full scale, -120 at least. `clipped` is the fraction of
    samples at full scale. `bandwidth_hz` is the highest frequency at which the mean spectrum is within 60 dB of its
    peak.
    """

    seconds: float
    speech_seconds: float
    level_db: float
    clipped: float
    bandwidth_hz: float


def signal_quality(waveform: np.ndarray, segments: np.ndarray | None = None) -> SignalQuality:
    """Return the measures of `waveform`, float32 (n,) at 16 kHz.

    segments: the speech in it, int64 (segments, 2), where `speech.speech_segments` has been called already.
    """
    segments = speech.speech_segments(waveform) if segments is None else segments
    voiced = speech.joined(waveform, segments) if len(segments) else waveform
    power = float(np.mean(np.square(voiced, dtype=np.float64))) if len(voiced) else 0.0
    return SignalQuality(
        seconds=len(waveform) / SAMPLE_RATE,
        speech_seconds=speech.speech_seconds(segments),
        level_db=max(-120.0, 10 * math.log10(max(power, 1e-12))),
        clipped=float(np.mean(np.abs(waveform) >= _FULL_SCALE)) if len(waveform) else 0.0,
        bandwidth_hz=_bandwidth(waveform),
    )


def warnings(quality: SignalQuality) -> tuple[str, ...]:
    """Return a sentence for each reason to doubt a score with a recording of this `quality`."""
    if quality.level_db < 20 * math.log10(MIN_LEVEL):
        return (f"The recording is silent: its level is {quality.level_db:.0f} dB of full scale.",)
    sentences = []
    if quality.speech_seconds < SHORT_SECONDS:
        sentences.append(
            f"The recording is short: {quality.speech_seconds:.2f} s of speech in {quality.seconds:.2f} s, less than "
            f"{SHORT_SECONDS:g} s."
        )
    if quality.clipped > CLIPPED_FRACTION:
        sentences.append(f"The recording is clipped: {quality.clipped:.1%} of its samples are at full scale.")
    if 0 < quality.bandwidth_hz < TELEPHONE_HZ:
        sentences.append(
            f"The recording has the band of a telephone: nothing is above {quality.bandwidth_hz / 1000:.1f} kHz."
        )
    return tuple(sentences)


def _bandwidth(waveform: np.ndarray) -> float:
    """Return the highest frequency, in Hz, at which the mean power spectrum is within `_BAND_DB` of its peak."""
    frames = len(waveform) // _WINDOW
    if not frames:
        return 0.0
    rows = waveform[: frames * _WINDOW].reshape(frames, _WINDOW)
    window = np.hanning(_WINDOW).astype(np.float32)
    power = np.zeros(_WINDOW // 2 + 1)
    for start in range(0, frames, _BLOCK // _WINDOW):
        spectra = np.fft.rfft(rows[start : start + _BLOCK // _WINDOW] * window, axis=1)
        power += np.square(np.abs(spectra)).sum(0)
    power[:2] = 0  # A constant offset is no signal.
    if power.max() == 0:
        return 0.0
    return float(np.flatnonzero(power >= power.max() * 10 ** (-_BAND_DB / 10))[-1] * SAMPLE_RATE / _WINDOW)
