"""Where in a recording somebody speaks."""

import numpy as np

from redimnet_jax.data.audio import MIN_LEVEL, SAMPLE_RATE

_FRAME = SAMPLE_RATE * 30 // 1000


def speech_segments(waveform: np.ndarray) -> np.ndarray:
    """Return the sample ranges [start, stop) of the speech in `waveform`: int64 (segments, 2), in order.

    waveform: float32 (n,) at 16 kHz.
    """
    frames = len(waveform) // _FRAME
    rows = waveform[: frames * _FRAME].reshape(frames, _FRAME)
    level = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
    loud = level > max(MIN_LEVEL, 0.03 * level.max(initial=0))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2).astype(np.int64) * _FRAME


def speech_seconds(segments: np.ndarray) -> float:
    """Return the length of the speech `segments`, int64 (segments, 2), in seconds."""
    return float((segments[:, 1] - segments[:, 0]).sum() / SAMPLE_RATE)


def joined(waveform: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Return the `segments`, int64 (segments, 2), of `waveform` one after the other, float32 (n,)."""
    return np.concatenate([waveform[:0], *(waveform[start:stop] for start, stop in segments)])


def only_speech(waveform: np.ndarray) -> np.ndarray:
    """Return the speech of `waveform`, float32 (n,) at 16 kHz, without what is between it."""
    return joined(waveform, speech_segments(waveform))
