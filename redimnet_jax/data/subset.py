"""Some utterances of a corpus, or stretches of them, as a corpus."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redimnet_jax.data.corpus import Corpus
from redimnet_jax.errors import UserError
from redimnet_jax.names import normalised


class Subset:
    """The utterances `index` (utterances,) of `corpus`, in that order; what a `Corpus` offers, labels anew."""

    def __init__(self, corpus: Corpus, index: np.ndarray):
        self._corpus, self._index = corpus, index
        present, labels = np.unique(corpus.labels[index], return_inverse=True)
        self.speakers = tuple(corpus.speakers[label] for label in present)
        self.labels = labels.astype(np.int32)
        self.sessions, self.samples = corpus.sessions[index], corpus.samples[index]
        self.gone = gone_of(corpus)[index]
        self.digest = hashlib.sha256(corpus.digest.encode() + index.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def name(self, i: int) -> str:
        return self._corpus.name(int(self._index[i]))

    def source(self, i: int) -> Path | bytes:
        return self._corpus.source(int(self._index[i]))

    def removed(self, i: int) -> bool:
        return self._corpus.removed(int(self._index[i]))

    def read(self, i: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        return self._corpus.read(int(self._index[i]), start, samples)


class Excerpts(Subset):
    """Of every utterance of a `Subset` only the samples of its span, `spans` int64 (utterances, 2), [start, stop).

    Nothing else of it can be read, so whatever takes a corpus keeps to the spans.
    """

    def __init__(self, corpus: Corpus, index: np.ndarray, spans: np.ndarray):
        super().__init__(corpus, index)
        self._starts = spans[:, 0]
        # Of a recording that has become shorter, what is left of the span.
        self.samples = np.clip(corpus.samples[index], spans[:, 0], spans[:, 1]) - spans[:, 0]
        self.digest = hashlib.sha256(self.digest.encode() + spans.astype("<i8").tobytes()).hexdigest()

    def source(self, i: int) -> Path | bytes:
        raise ValueError(f"{self.name(i)} is an excerpt, and its encoded audio that of the whole utterance; use read")

    def read(self, i: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        if start < 0 or (samples is not None and samples < 0):
            raise ValueError(f"start and samples must not be negative, got {start} and {samples}")
        length = int(self.samples[i])
        start = min(start, length)
        stop = length if samples is None else min(start + samples, length)
        return super().read(i, int(self._starts[i]) + start, stop - start)


def gone_of(corpus: Corpus) -> np.ndarray:
    """bool (utterances,): which were removed since the run started, see `resumed_corpus`; of other corpora none."""
    return getattr(corpus, "gone", np.zeros(len(corpus), bool))


def named(corpus: Corpus, names: Sequence[str]) -> Subset:
    """The utterances `names` of `corpus`, as written or normalised, in that order; UserError when one is missing."""
    number = {corpus.name(i): i for i in range(len(corpus))}
    found = [number.get(name, number.get(normalised(name))) for name in names]
    missing = [name for name, i in zip(names, found, strict=True) if i is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} recordings of the trials are not in the corpus, the first "
            f"{missing[0]!r}; check that the list belongs to it."
        )
    return Subset(corpus, np.array(found, int))


def hold_out(corpus: Corpus, share: float, seed: int) -> tuple[Subset, Subset]:
    """(`corpus` without, and only) a random `share` of its speakers, at least two.

    Raises UserError when fewer than two remain to be trained on.
    """
    count = max(2, round(share * len(corpus.speakers)))
    if len(corpus.speakers) < count + 2:
        raise UserError(
            f"Of {len(corpus.speakers)} training speakers {count} would be kept out for validation, which leaves too "
            "few; give validation.trials or validation.tree."
        )
    held = np.random.default_rng(seed).permutation(len(corpus.speakers))[:count]
    chosen = np.isin(corpus.labels, held)
    return Subset(corpus, np.flatnonzero(~chosen)), Subset(corpus, np.flatnonzero(chosen))
