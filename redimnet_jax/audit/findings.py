"""An audit: which recordings of a corpus to listen to, with reasons, and which are left without them."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from redimnet_jax.audit import duplicates, labels
from redimnet_jax.audit.duplicates import Duplicates, Read
from redimnet_jax.audit.labels import UNKNOWN, Sets, Voices
from redimnet_jax.errors import UserError

WRONG = "wrong label"
SECOND = "second speaker under one name"
ALIAS = "one speaker under two names"
DUPLICATE = "duplicate"
REASONS = (WRONG, SECOND, ALIAS, DUPLICATE)  # in the order of reports

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A recording to listen to.

    `suspected` is the number of the speaker it seems to be of, or `labels.UNKNOWN`. `score` is the log-odds of the
    reason, for a duplicate the correlation of the waveforms. `other` is the recording that a duplicate repeats.
    """

    recording: int
    reason: str
    suspected: int
    score: float
    other: int | None = None


@dataclasses.dataclass(frozen=True)
class Audit:
    """All findings, the surest of each reason first, and what they are based on.

    `log_odds` (n,) are those of a wrong label, for every recording.
    """

    findings: list[Finding]
    log_odds: np.ndarray
    duplicates: Duplicates

    def keep(self) -> np.ndarray:
        """Return which recordings have no finding, bool (n,)."""
        kept = np.ones(len(self.log_odds), bool)
        kept[[finding.recording for finding in self.findings]] = False
        return kept

    def counts(self) -> dict[str, int]:
        """Return the number of findings of every reason."""
        return {reason: sum(finding.reason == reason for finding in self.findings) for reason in REASONS}


def audit(
    vectors: np.ndarray,
    speakers: np.ndarray,
    sessions: np.ndarray,
    read: Read,
    *,
    prior: float = 0.01,
    workers: int = 8,
    progress: bool = True,
) -> Audit:
    """Return what is doubtful about recordings with the embeddings `vectors` (n, dim), unit length.

    speakers: the claimed speakers, numbers from 0 without gaps, int (n,). sessions: int (n,), -1 where not known.
    read: gives the audio of a recording, as `Recordings.read`. prior: the fraction of labels, and of names, that are
    expected to be wrong.

    A recording is found once, for the first reason that holds: it belongs to the smaller of two speakers under its
    name, its label is wrong, its name is a second one of a speaker (that with fewer recordings), or it repeats
    another recording. Raises UserError when there are too few speakers or recordings to compare.
    """
    names = int(speakers.max(initial=-1)) + 1
    if names < 2:
        raise UserError("The corpus has one speaker, so there is nobody to confuse it with; give at least two.")
    same_audio = duplicates.find(vectors, read, workers=workers, progress=progress)
    # A copy must not vouch for a label: copies under one name are one observation.
    sets = Sets(speakers, _joined(labels.observations(speakers, sessions), same_audio.pairs, speakers))
    voices = labels.listen(vectors, sets, prior)
    second_names = labels.same_speakers(voices, sets, prior)
    one_name = labels.united(speakers, second_names)
    if second_names:
        voices = labels.listen(vectors, Sets(one_name, sets.groups), prior)
    found: dict[int, Finding] = {}
    for finding in (
        *_second_speakers(voices, sets, one_name, speakers, prior),
        *_wrong(voices, one_name, speakers),
        *_aliases(second_names, speakers),
    ):
        found.setdefault(finding.recording, finding)
    for finding in _copies(same_audio, speakers, found):
        found.setdefault(finding.recording, finding)
    ordered = sorted(found.values(), key=lambda finding: (REASONS.index(finding.reason), -finding.score))
    return Audit(ordered, voices.doubts.log_odds, same_audio)


def _joined(groups: np.ndarray, pairs: np.ndarray, speakers: np.ndarray) -> np.ndarray:
    """Return `groups` (n,), where both of the `pairs` under one name belong to one group, numbered without gaps."""
    pairs = pairs[speakers[pairs[:, 0]] == speakers[pairs[:, 1]]]
    return labels.united(groups, [(int(groups[a]), int(groups[b]), 0.0) for a, b in pairs])


def _aliases(pairs: Sequence[tuple[int, int, float]], speakers: np.ndarray) -> list[Finding]:
    """Return all recordings of the smaller name of every pair."""
    sizes = np.bincount(speakers)
    findings = []
    for one, other, score in pairs:
        smaller, larger = (one, other) if sizes[one] < sizes[other] else (other, one)
        findings += [Finding(int(row), ALIAS, larger, score) for row in np.flatnonzero(speakers == smaller)]
    return findings


def _second_speakers(
    voices: Voices, sets: Sets, one_name: np.ndarray, speakers: np.ndarray, prior: float
) -> list[Finding]:
    findings = []
    for split in labels.several_speakers(voices, sets, prior):
        suspected = voices.doubts.suspected[split.recordings]
        votes = np.bincount(suspected[suspected >= 0], minlength=1)
        # The speaker that at least half of the part is suspected to be of.
        number = int(votes.argmax()) if 2 * votes.max() >= len(suspected) else UNKNOWN
        name = _name_of(number, one_name, speakers)
        findings += [Finding(int(row), SECOND, name, split.log_odds) for row in split.recordings]
    return findings


def _wrong(voices: Voices, one_name: np.ndarray, speakers: np.ndarray) -> list[Finding]:
    doubts = voices.doubts
    rows = np.flatnonzero(doubts.log_odds > 0).tolist()
    return [
        Finding(row, WRONG, _name_of(int(doubts.suspected[row]), one_name, speakers), float(doubts.log_odds[row]))
        for row in rows
    ]


def _name_of(number: int, one_name: np.ndarray, speakers: np.ndarray) -> int:
    """Return the name with the most recordings of speaker `number` of `one_name`; an unknown one stays unknown."""
    return UNKNOWN if number == UNKNOWN else int(np.bincount(speakers[one_name == number]).argmax())


def _copies(same_audio: Duplicates, speakers: np.ndarray, found: dict[int, Finding]) -> list[Finding]:
    """Return the later recording of every pair, or the other one where that has been found already."""
    findings = []
    gone = set(found)
    for (first, second), score in zip(same_audio.pairs.tolist(), same_audio.correlations.tolist(), strict=True):
        if first in gone or second in gone:
            continue
        gone.add(second)
        findings.append(Finding(second, DUPLICATE, int(speakers[first]), score, first))
    return findings
