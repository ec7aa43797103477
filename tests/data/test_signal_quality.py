"""Measures of a recording: each follows what was done to the signal, and each has its sentence."""

import dataclasses

import numpy as np
import pytest
import soxr
from audio_files import voice

from redimnet_jax.data.signal_quality import SignalQuality, signal_quality, warnings

GOOD = SignalQuality(seconds=5.0, speech_seconds=4.0, level_db=-25.0, clipped=0.0, bandwidth_hz=7500.0)
WHOLE = np.array([[0, 80000]])


def noise(samples: int = 80000) -> np.ndarray:
    return np.random.default_rng(3).normal(size=samples).astype(np.float32)


def test_level_is_that_of_the_speech():
    waveform = np.concatenate([0.1 * noise(), np.zeros(80000, np.float32)])
    assert signal_quality(waveform, WHOLE).level_db == pytest.approx(-20, abs=0.1)
    assert signal_quality(waveform, WHOLE).seconds == 10
    assert signal_quality(waveform, WHOLE).speech_seconds == 5
    assert signal_quality(waveform, WHOLE[:0]).level_db == pytest.approx(-23, abs=0.1)


def test_clipped_samples_are_counted():
    waveform = np.clip(noise(), -1, 1)
    assert signal_quality(waveform, WHOLE).clipped == pytest.approx(0.32, abs=0.01)
    assert signal_quality(0.5 * waveform, WHOLE).clipped == 0


@pytest.mark.parametrize("rate, bandwidth", [(8000, 4000), (11025, 5512), (16000, 8000)])
def test_bandwidth_is_that_of_the_source(rate, bandwidth):
    waveform = soxr.resample(0.1 * noise(), 16000, rate)
    waveform = 0.3 + soxr.resample(waveform, rate, 16000)  # An offset is not the peak of the spectrum.
    assert signal_quality(waveform, WHOLE).bandwidth_hz == pytest.approx(bandwidth, rel=0.05)


@pytest.mark.parametrize("samples", [0, 1, 511, 16000])
def test_nothing_and_silence_have_measures(samples):
    quality = signal_quality(np.zeros(samples, np.float32))
    assert quality == SignalQuality(samples / 16000, 0.0, -120.0, 0.0, 0.0)
    assert warnings(quality) == ("The recording is silent: its level is -120 dB of full scale.",)


def test_every_warning_has_its_limit():
    assert warnings(GOOD) == ()
    assert warnings(signal_quality(voice(80000), WHOLE)) == ()
    (short,) = warnings(dataclasses.replace(GOOD, speech_seconds=1.44))
    assert short == "The recording is short: 1.44 s of speech in 5.00 s, less than 2 s."
    (clipped,) = warnings(dataclasses.replace(GOOD, clipped=0.0123))
    assert clipped == "The recording is clipped: 1.2% of its samples are at full scale."
    (telephone,) = warnings(dataclasses.replace(GOOD, bandwidth_hz=3900.0))
    assert telephone == "The recording has the band of a telephone: nothing is above 3.9 kHz."
