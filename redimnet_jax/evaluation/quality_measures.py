"""Quality measures: what a calibration knows of the two sides of a trial besides their score.

Short, quiet or unusual recordings score lower whoever speaks. A measure is a number of each side; a trial has the
lower and the higher of its two sides, so that its order does not matter. docs/reference/metrics.md names the sources.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from redimnet_jax.data.signal_quality import SignalQuality

# Seconds of recording and of speech, length of the raw embedding, mean score with the cohort.
DURATION = "duration"
SPEECH = "speech"
NORM = "norm"
COHORT = "cohort"
UNITS = {DURATION: " s", SPEECH: " s", NORM: "", COHORT: ""}

# Values of the sides of trials by measure, float64 (names,).
Sides = Mapping[str, np.ndarray]
# The lower and the higher side of every trial by measure, float64 (2, trials).
Pairs = Mapping[str, np.ndarray]

_LEAST = 1e-3  # seconds or length: below it, logarithms say nothing


def of_vectors(vectors: np.ndarray, qualities: Sequence[SignalQuality], dim: int) -> dict[str, np.ndarray]:
    """Return duration, speech and norm of recordings with raw `vectors` (recordings, width), cut to `dim`."""
    return {
        DURATION: np.array([quality.seconds for quality in qualities], np.float64),
        SPEECH: np.array([quality.speech_seconds for quality in qualities], np.float64),
        NORM: norms(vectors, dim),
    }


def norms(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Return the length, float64 (rows,), of the first `dim` elements of every row of `vectors` (rows, width)."""
    return np.sqrt(np.square(vectors[:, :dim], dtype=np.float64).sum(axis=1))


def pairs(sides: Sides, left: np.ndarray, right: np.ndarray, measures: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the lower and the higher value of `measures` for the trials of `left` and `right`, int (trials,)."""
    return {name: np.sort(np.stack([sides[name][left], sides[name][right]]), axis=0) for name in measures}


def feature(name: str, values: np.ndarray) -> np.ndarray:
    """Return what the regression sees of `values` of a measure: their logarithm, but for scores with the cohort."""
    return np.asarray(values, np.float64) if name == COHORT else np.log(np.maximum(values, _LEAST))


def outside(name: str, values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return for which trials the lower or the higher of `values` (2, trials) is beyond `limits`: bool (trials,)."""
    low, high = limits
    return (values[0] < low) | (values[1] > high)
