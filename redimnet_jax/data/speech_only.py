"""Recordings cut to their speech: what is between it is never read by whoever embeds them or trains on them."""

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files, names
from redimnet_jax.data import speech
from redimnet_jax.data.recordings import Recordings, Subset, Utterances
from redimnet_jax.data.tree import parallel
from redimnet_jax.errors import ArgumentError, UserError, shown, some_of

logger = logging.getLogger(__name__)

_CHUNK = 16  # recordings a task


@dataclasses.dataclass(frozen=True)
class Speech:
    """The speech in recordings, one after another.

    `segments`, int64 (segments, 2), are ranges of samples at 16 kHz; those of recording i are
    segments[offsets[i] : offsets[i + 1]]. `unreadable` says of a recording, which then has none, why.
    """

    segments: np.ndarray
    offsets: np.ndarray
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, index: int) -> np.ndarray:
        """Return the segments of a recording, int64 (segments, 2)."""
        return self.segments[self.offsets[index] : self.offsets[index + 1]]

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """The samples of speech in every recording, int64 (recordings,)."""
        totals = np.concatenate([[0], np.cumsum(self.segments[:, 1] - self.segments[:, 0])])
        return (totals[self.offsets[1:]] - totals[self.offsets[:-1]]).astype(np.int64)

    @property
    def seconds(self) -> np.ndarray:
        """The seconds of speech in every recording, float64 (recordings,)."""
        return self.samples / speech.SAMPLE_RATE


def find_speech(recordings: Recordings, *, workers: int | None = None, progress: bool = True) -> Speech:
    """Decode all `recordings` by `workers` threads and return the speech in them.

    Raises UserError when the extra `speech` is not installed.
    """
    speech.speech_segments(np.zeros(0, np.float32))  # so that a missing package is not the fault of a recording
    parts = [range(i, min(i + _CHUNK, len(recordings))) for i in range(0, len(recordings), _CHUNK)]

    def chunk(part: range) -> list[np.ndarray | str]:
        found: list[np.ndarray | str] = []
        for index in part:
            try:
                found.append(speech.speech_segments(recordings.read(index)))
            except UserError as error:
                found.append(str(error))
        return found

    workers = workers or min(32, (os.cpu_count() or 1) + 4)
    each = [one for found in parallel(chunk, parts, workers, progress, "speech", len) for one in found]
    unreadable = {i: one for i, one in enumerate(each) if isinstance(one, str)}
    segments = [np.zeros((0, 2), np.int64) if isinstance(one, str) else one for one in each]
    offsets = np.cumsum([0, *map(len, segments)])
    return Speech(np.concatenate([np.zeros((0, 2), np.int64), *segments]), offsets, unreadable)


class SpeechOnly:
    """Recordings of which only the speech can be read; implements what `recordings` implements.

    `samples` are those of the speech, and `digest` is another one than that of the whole recordings.
    """

    def __init__(self, recordings: Recordings, found: Speech):
        self._recordings: Any = recordings
        self.speech = found
        self.samples = found.samples
        self.original_samples = found.samples

    def __len__(self) -> int:
        return len(self.speech)

    @property
    def speakers(self) -> tuple[str, ...]:
        return self._recordings.speakers

    @property
    def labels(self) -> np.ndarray:
        return self._recordings.labels

    @property
    def sessions(self) -> np.ndarray:
        return self._recordings.sessions

    @property
    def gone(self) -> np.ndarray:
        return self._recordings.gone

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(self._recordings.digest.encode())
        for array in (self.speech.segments, self.speech.offsets):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def name(self, index: int) -> str:
        return self._recordings.name(index)

    def source(self, index: int) -> Path | bytes:
        raise ValueError(f"only the speech of {self.name(index)} is to be used; use read")

    def whole_source(self, index: int) -> Path | bytes:
        """Return the encoded audio of the whole recording."""
        return self._recordings.source(index)

    def seeks(self, index: int) -> bool:
        return self._recordings.seeks(index)

    def removed(self, index: int) -> bool:
        return self._recordings.removed(index)

    def left_out(self, name: str) -> str | None:
        return self._recordings.left_out(name) or ("almost without speech" if name in self._names else None)

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(map(self.name, range(len(self))))

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        """Return the speech from sample `start` of the speech on, float32 (n,)."""
        if start < 0 or (samples is not None and samples < 0):
            raise ValueError(f"start and samples must not be negative, got {start} and {samples}")
        segments = self.speech.of(index)
        lengths = segments[:, 1] - segments[:, 0]
        ends = np.cumsum(lengths)
        stop = ends[-1] if samples is None and len(ends) else start + (samples or 0)
        # Of every segment, the part within [start, stop) of the speech.
        skipped = np.clip(start - (ends - lengths), 0, lengths)
        taken = np.clip(stop - (ends - lengths), 0, lengths)
        used = np.flatnonzero(taken > skipped)
        if not len(used):
            return np.zeros(0, np.float32)
        parts = np.stack([segments[used, 0] + skipped[used], segments[used, 0] + taken[used]], axis=1)
        # One pass over the file, since most formats are decoded from their start.
        first = int(parts[0, 0])
        waveform = self._recordings.read(index, first, int(parts[-1, 1]) - first)
        return speech.joined(waveform, parts - first)


def description(min_seconds: float | None = None) -> dict[str, str | float]:
    """Return all that the speech of recordings depends on but the recordings, as JSON."""
    return speech.detector() | {"min_seconds": speech.MIN_SECONDS if min_seconds is None else min_seconds}


def require_speech(recordings: Recordings, found: Speech, min_seconds: float | None = None) -> SpeechOnly:
    """Return the speech of `recordings`; raise UserError when one has less than `min_seconds` or cannot be read.

    min_seconds: the least speech in a recording, by default `speech.MIN_SECONDS`.
    """
    min_seconds = speech.MIN_SECONDS if min_seconds is None else min_seconds
    for index, reason in found.unreadable.items():
        raise UserError(f"{recordings.name(index)} cannot be searched for speech: {reason}")
    few = np.flatnonzero(found.seconds < min_seconds).tolist()
    if few:
        listed = (f"{shown(recordings.name(index))} ({found.seconds[index]:.2f} s)" for index in few)
        raise ArgumentError(
            f"{len(few):,} of {len(found):,} recordings have less than {min_seconds:g} s of speech: "
            f"{some_of(listed)}; leave them out, or lower `min_speech`."
        )
    return SpeechOnly(recordings, found)


def speech_corpus(
    corpus: Utterances,
    cache_dir: Path,
    *,
    min_seconds: float | None = None,
    max_bad: float = 0.01,
    workers: int | None = None,
    progress: bool = True,
) -> Subset:
    """Return the speech of the utterances of `corpus` that have at least `min_seconds` (0.5 by default) of it.

    The others are counted and listed in a text file beside the cache. The speech is found once and kept in
    `cache_dir`, for the digest of the corpus and the settings of the detector. Raises UserError when more than the
    fraction `max_bad` of the utterances have too little speech or cannot be read.
    """
    min_seconds = speech.MIN_SECONDS if min_seconds is None else min_seconds
    key = hashlib.sha256(json.dumps([corpus.digest, speech.detector()]).encode()).hexdigest()[:16]
    path = cache_dir / f"speech-{key}.npz"
    if path.exists():
        found = _load(path, len(corpus))
    else:
        found = find_speech(corpus, workers=workers, progress=progress)
        _save(found, path)
    few = np.flatnonzero(found.seconds < min_seconds).tolist()
    if few:
        listing = path.with_suffix(".bad.txt")
        reasons = (
            found.unreadable.get(i, f"{found.seconds[i]:.2f} s of speech, less than {min_seconds:g} s") for i in few
        )
        rows = (
            f"{names.quote(corpus.name(i))}\t{names.one_line(reason)}\n"
            for i, reason in zip(few, reasons, strict=True)
        )
        files.write(listing, "".join(rows))
        text = f"{len(few):,} of {len(corpus):,} utterances have less than {min_seconds:g} s of speech"
        if len(few) > max_bad * len(corpus):
            raise ArgumentError(
                f"{text}, more than `max_bad` {max_bad:g} allows: {some_of(corpus.name(i) for i in few)} (all in "
                f"{listing}); remove them, or raise `max_bad` or lower `min_speech`."
            )
        if progress:
            logger.info("%s and are left out, see %s", text, listing)
    if progress:
        hours = found.samples.sum() / speech.SAMPLE_RATE / 3600
        share = found.samples.sum() / max(1, np.sum(corpus.samples, dtype=np.int64))
        logger.info("speech: %.1f h, %.0f%% of the audio", hours, 100 * share)
    return Subset(SpeechOnly(corpus, found), np.flatnonzero(found.seconds >= min_seconds))


def _save(found: Speech, path: Path) -> None:
    buffer = io.BytesIO()
    reasons = np.frombuffer(json.dumps(found.unreadable).encode(), np.uint8)
    np.savez(buffer, segments=found.segments, offsets=found.offsets, unreadable=reasons)
    content = buffer.getvalue()
    files.write(path, hashlib.sha256(content).digest() + content)


def _load(path: Path, recordings: int) -> Speech:
    """Return what `_save` wrote; raise UserError when it is damaged."""
    advice = "remove the file to search for speech again"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("it does not match its checksum")
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
            reasons = {int(i): reason for i, reason in json.loads(arrays["unreadable"].tobytes()).items()}
            found = Speech(arrays["segments"], arrays["offsets"], reasons)
        if len(found) != recordings:
            raise ValueError(f"it is of {len(found)} recordings, not {recordings}")
    except (OSError, KeyError, *files.NOT_AN_ARRAY) as error:
        raise UserError(f"{path} is damaged ({files.first_line(error)}); {advice}.") from error
    return found
