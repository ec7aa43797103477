"""Speech detection: artificial voices are speech, noise and tones are not, and segments are what the rules say."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from redimnet_jax import optional
from redimnet_jax.data import speech
from redimnet_jax.data.synthetic import voices
from redimnet_jax.errors import UserError

FRAME = 512


@pytest.fixture(scope="module")
def spoken():
    """Two seconds of a voice after one second, and again after seven, in ten seconds of faint noise."""
    waveform = 1e-4 * np.random.default_rng(0).normal(size=160000).astype(np.float32)
    waveform[16000:48000] += voices.synthesize(0, 0, 0, 2.0)
    waveform[112000:144000] += voices.synthesize(0, 0, 1, 2.0)
    return waveform


def test_speech_is_found_where_it_is(spoken):
    segments = speech.speech_segments(spoken)
    assert segments.dtype == np.int64
    np.testing.assert_allclose(segments, [[16000, 48000], [112000, 144000]], atol=0.25 * 16000)
    assert speech.speech_seconds(segments) == pytest.approx(4.0, abs=0.5)
    (first, second) = segments
    expected = np.concatenate([spoken[slice(*first)], spoken[slice(*second)]])
    np.testing.assert_array_equal(speech.only_speech(spoken), expected)


@pytest.mark.parametrize("kind", ["nothing", "silence", "noise", "tone", "constant"])
def test_what_is_no_speech(kind):
    signals = {
        "nothing": np.zeros(0),
        "silence": np.zeros(48000),
        "noise": 0.1 * np.random.default_rng(1).normal(size=48000),
        "tone": 0.1 * np.sin(2 * np.pi * 440 * np.arange(48000) / 16000),
        "constant": np.full(48000, 0.3),
    }
    waveform = signals[kind].astype(np.float32)
    assert speech.speech_segments(waveform).shape == (0, 2)
    assert speech.only_speech(waveform).shape == (0,) and speech.only_speech(waveform).dtype == np.float32


def test_a_result_depends_on_the_recording_alone(spoken):
    """Neither on what the thread detected before nor on other threads."""
    waveforms = [spoken, spoken[8000:], spoken[:30000]] * 3
    expected = [speech.speech_segments(each).tolist() for each in waveforms]
    with ThreadPoolExecutor(3) as pool:
        assert [each.tolist() for each in pool.map(speech.speech_segments, waveforms)] == expected


def test_short_gaps_are_speech_and_ends_get_a_margin():
    frames = np.zeros(100, bool)
    frames[10:20] = frames[29:40] = True  # 0.288 s apart
    frames[60:61] = True
    segments = speech.to_segments(frames, FRAME, 100 * FRAME)
    assert segments.tolist() == [[10 * FRAME - 1600, 40 * FRAME + 1600], [60 * FRAME - 1600, 61 * FRAME + 1600]]


def test_segments_stay_within_the_recording():
    assert speech.to_segments(np.ones(10, bool), FRAME, 9 * FRAME + 1).tolist() == [[0, 9 * FRAME + 1]]
    frames = np.arange(40) % 39 == 0  # the first and the last
    assert speech.to_segments(frames, FRAME, 40 * FRAME).tolist() == [[0, 2112], [39 * FRAME - 1600, 40 * FRAME]]


def test_a_missing_detector_is_named(monkeypatch):
    monkeypatch.setattr(speech, "_local", type(speech._local)())
    monkeypatch.setitem(optional.PACKAGES, "speech", ("no_such_package",))
    with pytest.raises(UserError, match=r"pip install 'redimnet_jax\[speech\]'\.$"):
        speech.speech_segments(np.zeros(1000, np.float32))
