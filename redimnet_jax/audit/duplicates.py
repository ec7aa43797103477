"""Recordings that hold the same audio, whatever its format, level and position in the file."""

import dataclasses
from collections.abc import Callable

import numpy as np

from redimnet_jax.audit import neighbours
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.tree import parallel
from redimnet_jax.errors import UserError

LEAST_COSINE = 0.8  # of embeddings whose audio is compared
LEAST_CORRELATION = 0.6
MAX_SAMPLES = 60 * SAMPLE_RATE  # of a recording that are compared
_LEAST_OVERLAP = 0.5  # of the shorter recording

Read = Callable[[int, int, int | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Pairs of recordings with the same audio, int64 (pairs, 2), the first below the second, and what was compared.

    `correlations` (pairs,) are those of the waveforms where they overlap. `unread` are the pairs of which a recording
    could not be read, out of `compared` pairs.
    """

    pairs: np.ndarray
    correlations: np.ndarray
    compared: int
    unread: int


def find(vectors: np.ndarray, read: Read, *, workers: int = 8, progress: bool = True) -> Duplicates:
    """Return the duplicates among recordings with the embeddings `vectors` (n, dim), unit length.

    Pairs of embeddings that are among each other's three nearest are candidates; `read`, called as
    `Recordings.read`, gives the audio that decides.
    """
    candidates, _ = neighbours.mutual_pairs(vectors, LEAST_COSINE)

    def compare(pair: np.ndarray) -> float:
        try:
            left, right = (read(int(index), 0, MAX_SAMPLES) for index in pair)
        except UserError:
            return np.nan
        return correlation(left, right)

    values = np.array(list(parallel(compare, list(candidates), workers, progress, "duplicates")), np.float64)
    same = values >= LEAST_CORRELATION
    unread = int(np.isnan(values).sum())
    return Duplicates(candidates[same], values[same], len(candidates), unread)


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Return the largest correlation, 0 to 1, of two waveforms (samples,) over all shifts, in their overlap.

    The shift is that with the largest product; an overlap of less than half of the shorter signal counts as 0.
    """
    if not (len(left) and len(right)):
        return 0.0
    left, right = (signal.astype(np.float64) - np.mean(signal, dtype=np.float64) for signal in (left, right))
    size = 1 << (len(left) + len(right) - 1).bit_length()
    products = np.fft.irfft(np.fft.rfft(left, size) * np.conj(np.fft.rfft(right, size)), size)
    shift = int(np.argmax(np.abs(products)))
    shift -= size * (shift >= len(left))
    a = left[max(shift, 0) : shift + len(right)]
    b = right[max(-shift, 0) :][: len(a)]
    a = a[: len(b)]
    energy = np.sqrt(np.dot(a, a) * np.dot(b, b))
    if len(a) < _LEAST_OVERLAP * min(len(left), len(right)) or energy == 0:
        return 0.0
    return float(abs(np.dot(a, b)) / energy)
