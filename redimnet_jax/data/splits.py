"""Parts of a corpus that are kept out of training: whole speakers, or some recordings of every speaker.

`hold_out` keeps out whole speakers, for trials of unseen speakers. `split` keeps out recordings of every speaker, on
which a classification loss can be measured. There a recording is a session where sessions are known, and an utterance
where they are not. A speaker with several recordings loses whole ones, so that no recording is on both sides. A
speaker with one recording is split in time: its first part is trained on, its last part is kept out, and the gap
between them is used for neither, so that what is measured does not directly follow what was trained on. Room and
microphone are then still the same on both sides.
"""

import dataclasses
import math
from collections import Counter

import numpy as np

from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.recordings import Excerpts, Subset, Utterances
from redimnet_jax.errors import UserError

# How the recordings of a speaker were split.
BY_SESSION = "session"
BY_UTTERANCE = "utterance"
IN_TIME = "time"
NOT_SPLIT = "none"


@dataclasses.dataclass(frozen=True)
class SameSpeakerSplit:
    """Two parts of one corpus: `train` has every speaker, `held_out` those that could be split.

    `methods` counts the speakers by the way in which they were split.
    """

    train: Subset
    held_out: Subset
    methods: Counter[str]
    gap_seconds: float

    @property
    def description(self) -> str:
        """How many utterances are kept out, and how many speakers were split in which way."""
        phrases = {
            BY_SESSION: "by session",
            BY_UTTERANCE: "by utterance (sessions unknown)",
            IN_TIME: f"in time, one recording on both sides of a gap of {self.gap_seconds:g} s",
            NOT_SPLIT: "not at all, having too little",
        }
        counts = self.methods
        parts = "; ".join(f"{counts[method]:,} {phrase}" for method, phrase in phrases.items() if counts[method])
        return f"{len(self.held_out):,} utterances kept out of training; speakers split: {parts}"


def hold_out(corpus: Utterances, share: float, seed: int) -> tuple[Subset, Subset]:
    """Return (the other speakers, the held-out speakers): a random `share` of the speakers, at least two, held out.

    Raises UserError when fewer than two speakers remain for training.
    """
    count = max(2, round(share * len(corpus.speakers)))
    if len(corpus.speakers) < count + 2:
        raise UserError(
            f"Of {len(corpus.speakers)} training speakers {count} would be kept out for validation, which leaves too "
            "few to train on; give validation trials or a validation tree of other speakers."
        )
    chosen = np.random.default_rng(seed).permutation(len(corpus.speakers))[:count]
    is_held_out = np.isin(corpus.labels, chosen)
    return Subset(corpus, np.flatnonzero(~is_held_out)), Subset(corpus, np.flatnonzero(is_held_out))


def split(
    corpus: Utterances, share: float, *, gap_seconds: float, min_seconds: float, seed: int = 0
) -> SameSpeakerSplit:
    """Keep out a random `share` of every speaker's recordings, at least one, and leave at least one to train on.

    The utterances of a speaker with one recording, in the order of the corpus (that of their names), are taken as one
    signal: its last `share` is kept out, and the `gap_seconds` before it are not used. Pieces shorter than
    `min_seconds` are not used either. Where that would leave nothing on one side, all of the speaker is trained on.
    Raises UserError when no speaker can be split.
    """
    rng = np.random.default_rng(seed)
    min_samples = max(1, round(min_seconds * SAMPLE_RATE))
    gap = round(gap_seconds * SAMPLE_RATE)
    # [start, stop) of every utterance on both sides; an utterance that is not on a side has an empty span there.
    lengths = corpus.original_samples
    train = np.stack([np.zeros(len(corpus), np.int64), lengths], axis=1)
    held_out = np.zeros_like(train)
    methods: Counter[str] = Counter()
    ends = np.cumsum(np.bincount(corpus.labels, minlength=len(corpus.speakers)))
    for utterances in np.split(np.argsort(corpus.labels, kind="stable"), ends[:-1]):
        sessions = corpus.sessions[utterances]
        recordings = np.where(sessions < 0, -1 - np.arange(len(sessions)), sessions)
        names = np.unique(recordings)
        if len(names) > 1:
            count = min(max(1, round(share * len(names))), len(names) - 1)
            out = utterances[np.isin(recordings, rng.permutation(names)[:count])]
            held_out[out] = train[out]
            train[out] = 0
            methods[BY_UTTERANCE if sessions.max() < 0 else BY_SESSION] += 1
            continue
        before, after = _split_in_time(lengths[utterances], share, gap, min_samples)
        if before.any() and after.any():
            train[utterances] = before
            held_out[utterances] = after
            methods[IN_TIME] += 1
        else:
            methods[NOT_SPLIT] += 1
    if methods[NOT_SPLIT] == len(corpus.speakers):
        raise UserError(
            f"share={share:g} keeps out nothing: each of the {len(corpus.speakers):,} training speakers has one "
            f"recording, too short to give {min_seconds:g} s to both sides of a gap of {gap_seconds:g} s; "
            f"{_advice(corpus, gap, min_samples)}."
        )
    return SameSpeakerSplit(_excerpts(corpus, train), _excerpts(corpus, held_out), methods, gap_seconds)


def _advice(corpus: Utterances, gap: int, min_samples: int) -> str:
    """Return which `share` and `gap_seconds` would split the speaker with the longest recording in time."""
    lengths = corpus.original_samples
    totals = np.bincount(corpus.labels, weights=lengths, minlength=len(corpus.speakers))
    longest = lengths[corpus.labels == np.argmax(totals)]
    total = int(totals.max())
    smallest_share = math.ceil(1000 * min_samples / total) / 1000
    # The gap is rounded down to whole milliseconds, which the message can say.
    largest_gap = max(0, total - 2 * min_samples) // 16 * 16
    for share, new_gap in ((smallest_share, gap), (0.5, gap), (0.5, largest_gap)):
        if not 0 < share < 1 or new_gap > gap:
            continue
        if all(side.any() for side in _split_in_time(longest, share, new_gap, min_samples)):
            shorter = f" and gap_seconds to {new_gap / SAMPLE_RATE:g}" if new_gap != gap else ""
            return f"set share to {share:g}{shorter}, or to 0 and rely on the EER"
    return "set share to 0 and rely on the EER"


def _split_in_time(lengths: np.ndarray, share: float, gap: int, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return spans (utterances, 2) to train on and to keep out, of utterances that follow one another."""
    ends = np.cumsum(lengths)
    cut = ends[-1] - round(share * int(ends[-1]))

    def between(first: int, last: int) -> np.ndarray:
        bounds = np.array([first, max(first, last)])
        spans = np.clip(bounds - (ends - lengths)[:, None], 0, lengths[:, None])
        return np.where(spans[:, 1:] - spans[:, :1] >= min_samples, spans, 0)

    return between(0, cut - gap), between(cut, ends[-1])


def _excerpts(corpus: Utterances, spans: np.ndarray) -> Excerpts:
    index = np.flatnonzero(spans[:, 1] > spans[:, 0])
    return Excerpts(corpus, index, spans[index])
