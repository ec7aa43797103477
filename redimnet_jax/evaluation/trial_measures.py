"""Quality measures of what the trials of a list compare."""

import os
from collections.abc import Sequence

import numpy as np

from redimnet_jax.data import speech
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.recordings import Recordings
from redimnet_jax.data.tree import parallel
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.quality_measures import DURATION, NORM, SPEECH, Sides, norms


def recording_sides(
    embeddings: np.ndarray, trial_set: TrialSet, dims: Sequence[int], windows: CropPolicy, measures: Sequence[str]
) -> dict[int, dict[str, np.ndarray]]:
    """Return for every dimension the measures of every name of the trials, (names,) each.

    They are duration and norm, and speech where it is one of `measures`. `embeddings` (recordings, crops, embed_dim)
    are those of the `windows` of the recordings. A model has the sum of the seconds of its recordings, and the mean
    of their norms.
    """
    recordings = trial_set.recordings
    _, lengths = windows.segments(np.asarray(recordings.samples), SAMPLE_RATE)
    seconds = {DURATION: lengths[:, 0] / SAMPLE_RATE}
    if SPEECH in measures:
        seconds[SPEECH] = speech_seconds(recordings, lengths[:, 0])
    crops = embeddings.shape[1]
    sides = {}
    for dim in dims:
        each = norms(embeddings.reshape(-1, embeddings.shape[-1]), dim).reshape(-1, crops).mean(axis=1)
        sides[dim] = _of_names({**seconds, NORM: each}, trial_set)
    return sides


def _of_names(measures: Sides, trial_set: TrialSet) -> dict[str, np.ndarray]:
    """Return the measures of the names of the trials, given those of the recordings."""
    enrolment = trial_set.enrolment
    if enrolment is None:
        return dict(measures)
    sums = {name: np.bincount(enrolment.names, each[enrolment.recordings]) for name, each in measures.items()}
    return sums | {NORM: sums[NORM] / np.bincount(enrolment.names)}


def speech_seconds(recordings: Recordings, samples: np.ndarray) -> np.ndarray:
    """Return the seconds of speech, float64 (recordings,), in the first `samples` of every recording."""
    speech.speech_segments(np.zeros(0, np.float32))  # so that a missing package shows before any work

    def measured(index: int) -> float:
        waveform = recordings.read(index, 0, int(samples[index]))
        return speech.speech_seconds(speech.speech_segments(waveform))

    workers = min(32, (os.cpu_count() or 1) + 4)
    return np.array(list(parallel(measured, range(len(recordings)), workers, True, "speech")))
