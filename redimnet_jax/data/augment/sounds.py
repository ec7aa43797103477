"""Sounds for the augmentation: files of folders, and random stretches of them and of a corpus."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from redimnet_jax.data import audio, decoding
from redimnet_jax.data.recordings import Utterances, read_stretch
from redimnet_jax.errors import UserError

# Recordings of a corpus that are tried before one that cannot be read stops the run.
TRIES = 6


def list_audio(folder: str, where: str) -> tuple[str, ...]:
    """Return the audio files under `folder`, sorted and relative to it.

    Raises UserError, which begins with `where`, when there are none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{where} is {str(folder)!r}, which is no folder, so give one that holds audio files.")
    paths = (path for path in root.rglob("*") if path.suffix.lower() in decoding.SUFFIXES)
    files = tuple(sorted(path.relative_to(root).as_posix() for path in paths))
    if not files:
        raise UserError(
            f"{where} is {str(folder)!r}, under which is no audio file ({' '.join(sorted(decoding.SUFFIXES))})."
        )
    return files


# The lengths of the same noise files are needed again and again; an entry is one number, so many are cheap.
_duration = lru_cache(maxsize=65536)(audio.duration)


def random_segment(path: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random segment of a file, float32 (samples,), and repeat shorter files to that length."""
    start = int(rng.integers(max(_duration(path) - samples, 0) + 1))
    segment = audio.read(path, start, samples)
    if not len(segment):
        raise UserError(f"The noise file {path} holds no samples at {start}, so repair or remove it.")
    return np.resize(segment, samples)


def random_speech(corpus: Utterances, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random stretch of a random recording of `corpus`, float32 (samples,); shorter ones are repeated.

    Another recording takes the place of one that cannot be read, which is counted where it is drawn as a crop.
    Raises UserError when `TRIES` in a row cannot be read.
    """
    for attempt in range(1, TRIES + 1):
        utterance = int(rng.integers(len(corpus)))
        start = int(rng.integers(max(int(corpus.samples[utterance]) - samples, 0) + 1))
        try:
            return read_stretch(corpus, utterance, start, samples)
        except UserError:
            if attempt == TRIES:
                raise
    raise AssertionError("the last attempt returns or raises")
