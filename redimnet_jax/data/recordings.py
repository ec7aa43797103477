"""Recordings by number: the interfaces that training and evaluation read from, and views of a corpus."""

import copy
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from redimnet_jax import addresses
from redimnet_jax.data import audio
from redimnet_jax.errors import UserError, shown, some_of
from redimnet_jax.names import normalised

_log = logging.getLogger(__name__)
# The largest root mean square of a crop: the squares of far louder ones overflow float32. Integers of 32 bits that
# are read as floats stay far below.
LOUDEST = 1e12
# The longest utterance of which `ReadOnce` keeps the waveform, 4 MB.
WHOLE_SECONDS = 60


class Recordings(Protocol):
    """Recordings that can be read by number."""

    @property
    def samples(self) -> np.ndarray:
        """Lengths at 16 kHz, int64 (recordings,)."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of a recording, as lists and messages use it."""
        ...

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        """Return the waveform at 16 kHz, float32 (n,), from sample `start` on.

        n is less than `samples` only where the recording ends. Raise UserError when it cannot be read.
        """
        ...


class Utterances(Recordings, Protocol):
    """Recordings of known speakers: a `Corpus`, a part of one, or the corpus of a resumed run."""

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """The speaker of every utterance, an index of `speakers`: int32 (utterances,)."""
        ...

    @property
    def sessions(self) -> np.ndarray:
        """The session of every utterance, int32 (utterances,), unique over the corpus; -1 where it is not known."""
        ...

    @property
    def original_samples(self) -> np.ndarray:
        """Lengths when the run was started, int64 (utterances,); `samples` are the lengths now."""
        ...

    @property
    def gone(self) -> np.ndarray:
        """True for utterances that were removed since the run was started: bool (utterances,)."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of names, speakers, sessions and lengths."""
        ...

    def source(self, index: int) -> Path | bytes:
        """Return the encoded audio: the path of a file, or the bytes of one."""
        ...

    def seeks(self, index: int) -> bool:
        """Return True when reading a stretch of an utterance costs no more than the stretch.

        False where the decoder begins at the start, and for what is fetched or cut from a longer recording.
        """
        ...

    def removed(self, index: int) -> bool:
        """Return True when the file of an utterance no longer exists."""
        ...

    def left_out(self, name: str) -> str | None:
        """Return why the index left out the file `name`, such as "too short"; None when it did not."""
        ...


def read_stretch(corpus: Recordings, utterance: int, start: int, samples: int) -> np.ndarray:
    """Return the samples of an utterance from `start` on, float32 (samples,); a shorter utterance is repeated.

    Raises UserError when they cannot be read, are fewer than the index of the corpus says, or so loud that their
    features would be infinite.
    """
    length = int(corpus.samples[utterance])
    waveform = corpus.read(utterance, start, samples)
    if len(waveform) < min(samples, length - start) or not length:
        raise UserError(
            f"The utterance {corpus.name(utterance)} is shorter than the {length} samples that the index of"
            " the corpus gives it, so restore the recording or remove it."
        )
    # Written as `not <=`, so that NaN is refused too.
    if not np.dot(waveform, waveform) <= LOUDEST**2 * len(waveform):
        raise UserError(
            f"The utterance {corpus.name(utterance)} has samples beyond {LOUDEST:g}, of which no features can be"
            " computed, so scale the recording or remove it."
        )
    return np.resize(waveform, samples)


class ReadOnce:
    """Utterances of which the last one stays in memory where so many `stretches` of it are cheaper by one decoding.

    One that cannot be decoded whole is decoded stretch by stretch.
    """

    def __init__(self, utterances: Utterances, stretches: int):
        self.samples = utterances.samples
        self._utterances = utterances
        self._stretches = stretches
        self._index: int | None = None
        self._whole: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._utterances)

    def name(self, index: int) -> str:
        return self._utterances.name(index)

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        if index != self._index:
            worth_it = samples is None or whole_is_cheaper(self._utterances, index, self._stretches, samples)
            self._index, self._whole = index, self._read_whole(index) if worth_it else None
        if self._whole is None:
            return self._utterances.read(index, start, samples)
        return self._whole[start : None if samples is None else start + samples]

    def _read_whole(self, index: int) -> np.ndarray | None:
        try:
            return self._utterances.read(index)
        except UserError:
            return None  # Whoever reads a damaged stretch is told, and the others can be read.


def whole_is_cheaper(utterances: Utterances, index: int, stretches: int, samples: int) -> bool:
    """Return True when decoding an utterance whole takes less than so many random stretches of `samples` samples."""
    length = utterances.samples[index]
    if stretches == 1 or length > WHOLE_SECONDS * audio.SAMPLE_RATE:
        return False
    return bool(stretches * samples >= length) or not utterances.seeks(index)


class AudioFiles:
    """Audio files as recordings: each name is the file of that path below the first of `roots` that has one.

    A name that ends in ".wav" may also be a file that ends in ".flac", as in the lists of CN-Celeb; these are counted
    in the log.

    Every file is decoded once to find its length and level. `without_signal` (recordings,), bool, marks those without
    a signal: their embeddings are alike, so their scores mean nothing.

    Raises UserError when a file is below none of the roots or cannot be decoded.
    """

    def __init__(self, roots: Sequence[Path], names: Sequence[str]):
        self._names = names
        with ThreadPoolExecutor() as pool:
            self._paths = _locate(roots, names, pool)
            inspections = list(pool.map(audio.inspect, self._paths))
        self.samples = np.array([inspection.samples for inspection in inspections], np.int64)
        self.without_signal = np.array([not inspection.has_signal for inspection in inspections], bool)

    def subset(self, index: np.ndarray) -> "AudioFiles":
        """Return the files `index`, int (recordings,), in that order; none is decoded again."""
        chosen = copy.copy(self)
        chosen._names = [self._names[i] for i in index]
        chosen._paths = [self._paths[i] for i in index]
        chosen.samples = self.samples[index]
        chosen.without_signal = self.without_signal[index]
        return chosen

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def source(self, index: int) -> Path:
        return self._paths[index]

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        return audio.read(self._paths[index], start, samples)


def _locate(roots: Sequence[Path], names: Sequence[str], pool: ThreadPoolExecutor) -> list[Path]:
    """Return the file of every name; raise UserError when some are below none of the `roots`."""

    def locate(name: str) -> Path | None:
        forms = [normalised(name)]
        if name.endswith(".wav"):
            forms.append(f"{forms[0].removesuffix('.wav')}.flac")
        paths = (root / form for form in forms for root in roots)
        return next((path for path in paths if addresses.is_file(path)), None)

    located = list(pool.map(locate, names))
    pairs = zip(names, located, strict=True)
    recoded = sum(name.endswith(".wav") and path is not None and path.suffix == ".flac" for name, path in pairs)
    if recoded:
        _log.info("%s recordings are .wav in the list, and .flac files of the same names", f"{recoded:,}")
    missing = [name for name, path in zip(names, located, strict=True) if path is None]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(names):,} recordings of the trials are not below {some_of(roots)}, the first "
            f"{shown(missing[0])}; check the audio root."
        )
    return [path for path in located if path is not None]


class Subset:
    """The utterances `index`, int (utterances,), of `corpus` in that order; speakers are numbered anew."""

    def __init__(self, corpus: Utterances, index: np.ndarray):
        self._corpus = corpus
        self._index = index
        present, labels = np.unique(corpus.labels[index], return_inverse=True)
        self.speakers = tuple(corpus.speakers[label] for label in present)
        self.labels = labels.astype(np.int32)
        self.sessions = corpus.sessions[index]
        self.samples = corpus.samples[index]
        self.original_samples = corpus.original_samples[index]
        self.gone = corpus.gone[index]
        self.digest = hashlib.sha256(corpus.digest.encode() + index.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def name(self, index: int) -> str:
        return self._corpus.name(int(self._index[index]))

    def source(self, index: int) -> Path | bytes:
        return self._corpus.source(int(self._index[index]))

    def seeks(self, index: int) -> bool:
        return self._corpus.seeks(int(self._index[index]))

    def removed(self, index: int) -> bool:
        return self._corpus.removed(int(self._index[index]))

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        return self._corpus.read(int(self._index[index]), start, samples)

    def left_out(self, name: str) -> str | None:
        return self._corpus.left_out(name)


class Excerpts(Subset):
    """A `Subset` of which only a span of every utterance can be read.

    `spans`, int64 (utterances, 2), holds [start, stop) of each in samples at 16 kHz.
    """

    def __init__(self, corpus: Utterances, index: np.ndarray, spans: np.ndarray):
        super().__init__(corpus, index)
        self._starts = spans[:, 0]
        # A recording that has become shorter since the run was started has lost the end of its span.
        self.samples = np.clip(corpus.samples[index], spans[:, 0], spans[:, 1]) - spans[:, 0]
        self.original_samples = spans[:, 1] - spans[:, 0]
        self.digest = hashlib.sha256(self.digest.encode() + spans.astype("<i8").tobytes()).hexdigest()

    def source(self, index: int) -> Path | bytes:
        raise ValueError(
            f"{self.name(index)} is an excerpt but its encoded audio is that of the whole utterance; use read"
        )

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        if start < 0 or (samples is not None and samples < 0):
            raise ValueError(f"start and samples must not be negative, got {start} and {samples}")
        length = int(self.samples[index])
        start = min(start, length)
        stop = length if samples is None else min(start + samples, length)
        return super().read(index, int(self._starts[index]) + start, stop - start)


def select(corpus: Utterances, names: Sequence[str]) -> Subset:
    """Return the utterances `names` of `corpus`, as written or normalised, in that order.

    Raises UserError when the corpus lacks one, with the reason when its index left that one out.
    """
    number = {corpus.name(i): i for i in range(len(corpus))}
    index = [number.get(name, number.get(normalised(name), -1)) for name in names]
    missing = [name for name, i in zip(names, index, strict=True) if i < 0]
    if missing:
        reason = corpus.left_out(missing[0]) or corpus.left_out(normalised(missing[0]))
        raise UserError(
            f"{len(missing):,} of {len(names):,} recordings of the trials are not in the corpus, the first "
            f"{shown(missing[0])}"
            + (
                f", which the corpus leaves out because it is {reason}; leave its trials out of the list."
                if reason
                else "; check that the list belongs to it."
            )
        )
    return Subset(corpus, np.array(index, int))
