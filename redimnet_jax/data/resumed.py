"""The corpus that a run was started with, when recordings were removed or replaced since.

A run that is resumed needs the same utterances under the same numbers, because its epochs, its held-out speakers and
its cached features follow from them. The index from the start of the run therefore stays in use, together with what
is left of each of its utterances now.
"""

import json
import logging
from pathlib import Path

import numpy as np

from redimnet_jax.data import index as corpus_index
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.data.recordings import Recordings
from redimnet_jax.data.tree import Tree
from redimnet_jax.errors import UserError

_log = logging.getLogger(__name__)


class ResumedCorpus:
    """The utterances of `old`, the index from the start of a run, read from `now`; it implements `Utterances`.

    `place`, int64 (utterances,), is the number of each utterance in `now`, or -1. `samples` are the lengths now;
    those of removed utterances, and `original_samples`, are the lengths at the start. Reading an utterance that is
    `gone` raises UserError.
    """

    def __init__(self, old: Corpus, now: Corpus, place: np.ndarray):
        self._old = old
        self._now = now
        self._place = place
        self.digest = old.digest
        self.speakers = old.speakers
        self.labels = old.labels
        self.sessions = old.sessions
        self.gone = place < 0
        if isinstance(now.origin, Tree):
            # The index of a tree is not rebuilt when a file is put back below a speaker's folder.
            self.gone[[i for i in np.flatnonzero(self.gone) if not old.removed(int(i))]] = False
        self.original_samples = np.asarray(old.samples)
        self.samples = np.where(place < 0, old.samples, now.samples[np.maximum(place, 0)])
        self.summary = now.summary

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self._old.name(index)

    def source(self, index: int) -> Path | bytes:
        corpus, number = self._where(index)
        return corpus.source(number)

    def seeks(self, index: int) -> bool:
        corpus, number = self._where(index)
        return corpus.seeks(number)

    def removed(self, index: int) -> bool:
        if self.gone[index]:
            return True
        corpus, number = self._where(index)
        return corpus.removed(number)

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        corpus, number = self._where(index)
        return corpus.read(number, start, samples)

    def left_out(self, name: str) -> str | None:
        return self._now.left_out(name)

    def _where(self, index: int) -> tuple[Corpus, int]:
        """Return the corpus that an utterance is read from, and its number there."""
        if self.gone[index]:
            raise UserError(f"{self.name(index)} was removed since the run was started; restore it.")
        return (self._old, index) if self._place[index] < 0 else (self._now, int(self._place[index]))


def resumed(now: Corpus, digest: str | None, cache_dir: Path, *, show: bool = True) -> Corpus | ResumedCorpus:
    """Return `now`, or the corpus with `digest` that a run was started with where `now` differs from it.

    The index of that corpus is looked for in `cache_dir`. Where it is not there, or has other speakers or another
    speaker of a recording, the result is `now`, which resuming then refuses. With `show` the differences are logged.
    """
    if digest is None or now.digest == digest:
        return now
    folder = _find_index(digest, cache_dir)
    if folder is None:
        return now
    index, description = corpus_index.load(folder)
    old = Corpus(index, now.origin, digest, description["summary"], folder)
    number = {now.name(i): i for i in range(len(now))}
    place = np.array([number.get(old.name(i), -1) for i in range(len(old))], np.int64)
    present = place >= 0
    if old.speakers != now.speakers or (old.labels[present] != now.labels[place[present]]).any():
        return now
    corpus = ResumedCorpus(old, now, place)
    if show:
        _log.warning(
            "the run was started with %s recordings: %s of them were removed, and others take their place; %s were "
            "added, and are not used",
            f"{len(old):,}",
            f"{int(corpus.gone.sum()):,}",
            f"{len(now) - int(present.sum()):,}",
        )
    return corpus


def _find_index(digest: str, cache_dir: Path) -> Path | None:
    """Return the folder of the index with `digest`, or None."""
    for path in sorted(cache_dir.glob("index-*/index.json")):
        try:
            if json.loads(path.read_text())["digest"] == digest:
                return path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Another index that is damaged is refused where it is used.
    return None


def require_all(recordings: Recordings, what: str) -> None:
    """Raise UserError when one of the recordings of `what` was removed since the run was started."""
    gone = np.flatnonzero(getattr(recordings, "gone", np.zeros(0, bool)))  # audio files have no such attribute
    if len(gone):
        raise UserError(
            f"{len(gone):,} of the {len(recordings):,} recordings of {what} were removed since the run was started, "
            f"the first {recordings.name(int(gone[0]))}; restore them, because every epoch of a run is evaluated on "
            "the same recordings."
        )
