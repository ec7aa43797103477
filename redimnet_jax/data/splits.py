"""Some recordings of every speaker kept out of training: what a classification loss can be measured on.

A recording is a session where sessions are known, and an utterance where they are not. Of several recordings of a
speaker some are kept out whole, so that none is on both sides. A speaker with one only is split in time: the first
part trains, the last is kept out, and the gap between them belongs to neither, so that nobody is judged by the breath
that follows what was trained on. Room and microphone are then still the same on both sides.
"""

import dataclasses
import math
from collections import Counter

import numpy as np

from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.data.subset import Excerpts, Subset
from redimnet_jax.errors import UserError

BY_SESSION, BY_UTTERANCE, IN_TIME, NOT_SPLIT = "session", "utterance", "time", "none"


@dataclasses.dataclass(frozen=True)
class SameSpeakerSplit:
    """Two corpora of one: `train` has every speaker, with the same labels, and `held` those that could be split.

    `ways` counts the speakers by how they were split.
    """

    train: Subset
    held: Subset
    ways: Counter[str]
    gap_seconds: float

    @property
    def description(self) -> str:
        """How many speakers were split how."""
        said = {
            BY_SESSION: "by session",
            BY_UTTERANCE: "by utterance (sessions unknown)",
            IN_TIME: f"in time, one recording on both sides of a gap of {self.gap_seconds:g} s",
            NOT_SPLIT: "not at all, having too little",
        }
        counts = "; ".join(f"{self.ways[way]:,} {how}" for way, how in said.items() if self.ways[way])
        return f"{len(self.held):,} utterances kept out of training; speakers split: {counts}"


def split(corpus: Corpus, share: float, *, gap_seconds: float, min_seconds: float, seed: int = 0) -> SameSpeakerSplit:
    """Keeps out a random `share` of every speaker's recordings, at least one, and leaves at least one to train on.

    Of a speaker with one recording the last `share` is kept out, its utterances in the order of the corpus (that of
    their names) taken as one signal, and `gap_seconds` before it are used for nothing. Nor is what is shorter than
    `min_seconds` once it is cut; where that would leave nothing on one side, the speaker trains on everything.
    Raises UserError when no speaker can be split.
    """
    rng = np.random.default_rng(seed)
    least = max(1, round(min_seconds * SAMPLE_RATE))
    # [start, stop) of every utterance on both sides; a side that an utterance is not on has none of its samples.
    lengths = getattr(corpus, "original_samples", corpus.samples)
    train = np.stack([np.zeros(len(corpus), np.int64), lengths], axis=1)
    held = np.zeros_like(train)
    ways: Counter[str] = Counter()
    ends = np.cumsum(np.bincount(corpus.labels, minlength=len(corpus.speakers)))
    for utterances in np.split(np.argsort(corpus.labels, kind="stable"), ends[:-1]):
        sessions = corpus.sessions[utterances]
        recordings = np.where(sessions < 0, -1 - np.arange(len(sessions)), sessions)
        names = np.unique(recordings)
        if len(names) > 1:
            count = min(max(1, round(share * len(names))), len(names) - 1)
            out = utterances[np.isin(recordings, rng.permutation(names)[:count])]
            held[out], train[out] = train[out], 0
            ways[BY_UTTERANCE if sessions.max() < 0 else BY_SESSION] += 1
            continue
        before, after = _in_time(lengths[utterances], share, round(gap_seconds * SAMPLE_RATE), least)
        if before.any() and after.any():
            train[utterances], held[utterances] = before, after
            ways[IN_TIME] += 1
        else:
            ways[NOT_SPLIT] += 1
    if ways[NOT_SPLIT] == len(corpus.speakers):
        raise UserError(
            f"classification.share={share:g} keeps out nothing: each of the {len(corpus.speakers):,} training "
            f"speakers has one recording, too short to give {min_seconds:g} s to both sides of a gap of "
            f"{gap_seconds:g} s; {_remedy(corpus, lengths, round(gap_seconds * SAMPLE_RATE), least)}."
        )
    return SameSpeakerSplit(_excerpts(corpus, train), _excerpts(corpus, held), ways, gap_seconds)


def _remedy(corpus: Corpus, lengths: np.ndarray, gap: int, least: int) -> str:
    """The settings by which the speaker with the longest recording can be split in time, as advice."""
    totals = np.bincount(corpus.labels, weights=lengths, minlength=len(corpus.speakers))
    own = lengths[corpus.labels == np.argmax(totals)]
    total = int(totals.max())
    smallest = math.ceil(1000 * least / total) / 1000
    # The gap is in whole milliseconds.
    for wanted, between in ((smallest, gap), (0.5, gap), (0.5, max(0, total - 2 * least) // 16 * 16)):
        if not 0 < wanted < 1 or between > gap:
            continue
        if all(side.any() for side in _in_time(own, wanted, between, least)):
            shorter = f" and classification.gap_seconds to {between / SAMPLE_RATE:g}" if between != gap else ""
            return f"set classification.share to {wanted:g}{shorter}, or to 0 and trust the EER"
    return "set classification.share to 0 and trust the EER"


def _in_time(lengths: np.ndarray, share: float, gap: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Spans (utterances, 2) of what trains and of what is kept out of utterances that follow one another."""
    ends = np.cumsum(lengths)
    cut = ends[-1] - round(share * int(ends[-1]))

    def between(first: int, last: int) -> np.ndarray:
        bounds = np.array([first, max(first, last)])
        spans = np.clip(bounds - (ends - lengths)[:, None], 0, lengths[:, None])
        return np.where(spans[:, 1:] - spans[:, :1] >= least, spans, 0)

    return between(0, cut - gap), between(cut, ends[-1])


def _excerpts(corpus: Corpus, spans: np.ndarray) -> Excerpts:
    index = np.flatnonzero(spans[:, 1] > spans[:, 0])
    return Excerpts(corpus, index, spans[index])
