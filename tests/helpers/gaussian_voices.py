"""Embeddings of speakers who differ clearly, for tests of what is done with embeddings."""

import numpy as np


def gaussian_voices(speakers: int, each: int, dim: int = 24, spread: float = 0.6, seed: int = 0):
    """Return (unit embeddings float32 (speakers * each, dim), their speakers int64), speaker after speaker."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(speakers), each)
    vectors = rng.normal(size=(speakers, dim))[labels] + spread * rng.normal(size=(len(labels), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels
