"""The corpus that a run was started with, when recordings were removed or replaced since.

A run that goes on needs the same utterances by the same numbers: its epochs, its held-out speakers and its cached
features follow from them. So the old index stays, and says of every utterance what is there of it now.
"""

import json
import sys
from pathlib import Path

import numpy as np

from redimnet_jax.data import index as corpus_index
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.data.tree import Tree
from redimnet_jax.errors import UserError


class ResumedCorpus:
    """What a `Corpus` offers: the utterances of `old`, an index from the start of a run, read from `now`.

    samples:          lengths as they are now; of what was removed, as they were.
    original_samples: lengths as they were.
    gone:             bool (utterances,), which were removed; reading one raises UserError.
    """

    def __init__(self, old: Corpus, now: Corpus, place: np.ndarray):
        self._old, self._now, self._place = old, now, place
        self.digest, self.speakers, self.labels, self.sessions = old.digest, old.speakers, old.labels, old.sessions
        self.gone = place < 0
        if isinstance(now._origin, Tree):
            # A tree's index is not built anew for what is put back below a speaker's folder.
            self.gone[[i for i in np.flatnonzero(self.gone) if not old.removed(int(i))]] = False
        self.original_samples = np.asarray(old.samples)
        self.samples = np.where(place < 0, old.samples, now.samples[np.maximum(place, 0)])
        self.summary = now.summary

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return self._old.name(i)

    def source(self, i: int) -> Path | bytes:
        corpus, number = self._where(i)
        return corpus.source(number)

    def removed(self, i: int) -> bool:
        return bool(self.gone[i]) or self._where(i)[0].removed(self._where(i)[1])

    def read(self, i: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        corpus, number = self._where(i)
        return corpus.read(number, start, samples)

    def _where(self, i: int) -> tuple[Corpus, int]:
        """The corpus that an utterance is read from, and its number there."""
        if self.gone[i]:
            raise UserError(f"{self.name(i)} was removed since the run was started; restore it.")
        return (self._old, i) if self._place[i] < 0 else (self._now, int(self._place[i]))


def resumed(now: Corpus, digest: str | None, cache_dir: Path, *, show: bool = True) -> Corpus | ResumedCorpus:
    """`now`, or where it differs from the corpus with `digest` that a run was started with, that corpus.

    Its index is looked for in `cache_dir`. The corpus stays `now` where that index is not there, or has other
    speakers or another speaker of a recording, which resuming then refuses.
    """
    if digest is None or now.digest == digest:
        return now
    folder = _folder_of(digest, cache_dir)
    if folder is None:
        return now
    index, description = corpus_index.load(folder)
    old = Corpus(index, now._origin, digest, description["summary"], folder)
    number = {now.name(i): i for i in range(len(now))}
    place = np.array([number.get(old.name(i), -1) for i in range(len(old))], np.int64)
    there = place >= 0
    if old.speakers != now.speakers or (old.labels[there] != now.labels[place[there]]).any():
        return now
    corpus = ResumedCorpus(old, now, place)
    if show:
        added = len(now) - int(there.sum())
        print(
            f"the run was started with {len(old):,} recordings: {int(corpus.gone.sum()):,} of them were removed, and "
            f"others take their place; {added:,} were added, and are not used",
            file=sys.stderr,
        )
    return corpus


def _folder_of(digest: str, cache_dir: Path) -> Path | None:
    """The folder of the index with `digest`."""
    for path in sorted(cache_dir.glob("index-*/index.json")):
        try:
            if json.loads(path.read_text())["digest"] == digest:
                return path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Another index that is damaged says so where it is used.
    return None


def require_all(corpus: Corpus, what: str) -> None:
    """Raises UserError when a recording that the run is judged by was removed."""
    gone = np.flatnonzero(getattr(corpus, "gone", np.zeros(0, bool)))
    if len(gone):
        raise UserError(
            f"{len(gone):,} of the {len(corpus):,} recordings of {what} were removed since the run was started, the "
            f"first {corpus.name(int(gone[0]))}; restore them, since all of a run is judged by the same recordings."
        )
