"""A corpus made of arithmetic, with the interface of `redimnet_jax.data.corpus.Corpus` that training reads."""

import numpy as np

from redimnet_jax.errors import UserError


class FakeCorpus:
    """Utterance i holds i + (0, 1, 2, ...) * 2**-14: every sample tells which one it is, and of which utterance."""

    digest = "fake"

    def __init__(self, lengths, speakers: int = 3, broken: int | None = None):
        self.samples = np.asarray(lengths, np.int64)
        self.labels = (np.arange(len(lengths)) % speakers).astype(np.int32)
        self.sessions = np.full(len(lengths), -1, np.int32)
        self.gone = np.zeros(len(lengths), bool)
        self.speakers = tuple(f"id{index}" for index in range(speakers))
        self.broken = broken

    @property
    def original_samples(self):
        return self.samples

    def seeks(self, index):
        return False

    def left_out(self, name):
        return None

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return f"{self.speakers[self.labels[index]]}/{index}.wav"

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        if index == self.broken:
            raise UserError(f"{self.name(index)} cannot be decoded; replace or remove it.")
        stop = self.samples[index] if samples is None else min(start + samples, self.samples[index])
        return (index + np.arange(start, stop) * 2.0**-14).astype(np.float32)
