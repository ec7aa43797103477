"""Decoding: an audio file, or its bytes, to a mono float32 waveform at one sample rate, whole or a segment of it.

A segment is the same slice of the whole. WAV and FLAC seek to the exact sample, and only the segment is decoded. MP3
and Ogg do not (decoders carry a state over packets, and seeks of libsndfile in Ogg can be off by a block, its issue
885), so these are decoded from the start, up to the end of the segment. AAC (`.m4a`) is decoded from a few packets
before the segment, which is exact too, except that noise an encoder left for the decoder to draw (perceptual noise
substitution) is drawn anew; its length is the header's, which most writers round to a millisecond. Where the rate is
changed, a margin around the segment is resampled along with it.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr

from redimnet_jax.errors import UserError

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"})
SAMPLE_RATE = 16000

_INEXACT_SEEK = ("MP3", "OGG")  # libsndfile's names of containers; Opus is in Ogg
# Beyond this the resampler's filter is below the last bit of a float32, at the rates of speech.
_MARGIN_SECONDS = 0.05
# Two packets of HE-AAC, four of AAC-LC: each packet overlaps with the one before.
_PREROLL = 4096

# PyAV's errors are of all these kinds but the first.
_DECODING_ERRORS = (soundfile.SoundFileError, OSError, EOFError, LookupError, ValueError)

Source = str | Path | bytes


class _Signal(Protocol):
    """An opened signal: `frames` at `rate` Hz."""

    rate: int
    frames: int

    def decode(self, first: int, last: int) -> np.ndarray:
        """Frames [first, last) as float32 (n,), the mean of the channels; fewer only where the data end early."""


class _SoundFile:
    def __init__(self, file: soundfile.SoundFile):
        self._file, self.rate, self.frames = file, file.samplerate, file.frames

    def decode(self, first: int, last: int) -> np.ndarray:
        skipped = first if self._file.format in _INEXACT_SEEK else 0
        if first and not skipped:
            self._file.seek(first)
        data = self._file.read(last - first + skipped, dtype="float32", always_2d=True)[skipped:]
        return data[:, 0] if data.shape[1] == 1 else data.mean(axis=1)


class _Container:
    """An MP4 container, through PyAV."""

    def __init__(self, container):
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        self._container, self._stream = container, container.streams.audio[0]
        self.rate = self._stream.rate
        if self._stream.duration is None:
            raise ValueError("it does not say how long it is")
        self.frames = self._index(self._stream.duration)

    def _index(self, time: int) -> int:
        return round(time * self._stream.time_base * self.rate)

    def decode(self, first: int, last: int) -> np.ndarray:
        origin = self._stream.start_time or 0
        if first > _PREROLL:
            time = origin + math.floor((first - _PREROLL) / self.rate / self._stream.time_base)
            self._container.seek(time, stream=self._stream)
        parts, begin, end = [], 0, 0
        for frame in self._container.decode(self._stream):
            if not parts:
                begin = end = self._index(frame.pts - origin)
            parts.append(_mono(frame))
            end += len(parts[-1])
            if end >= last:
                break
        if begin > first:
            raise ValueError("its packets are not where its index says")
        return np.concatenate(parts or [np.zeros(0, np.float32)])[first - begin : last - begin]


def _mono(frame) -> np.ndarray:
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    scale = 1.0 if data.dtype.kind == "f" else 1.0 / (np.iinfo(data.dtype).max + 1)
    return np.float32(scale) * data.astype(np.float32, copy=False).mean(axis=0)


def read(
    source: Source,
    start: int = 0,
    samples: int | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    name: str | None = None,
) -> np.ndarray:
    """The waveform in `source`, a path or the bytes of a file: float32 (n,), mono (the mean of the channels).

    `start` and `samples` are in samples at `sample_rate` (Hz), to which the signal is resampled. n is less than
    `samples` only where the signal ends. `name` is what errors call the source (default: the path).

    Raises UserError when the source cannot be decoded, ends before its header says, or is not finite.
    """
    if start < 0 or (samples is not None and samples < 0):
        raise ValueError(f"start and samples must not be negative, got {start} and {samples}")
    name = name or _name(source)
    with _opened(source, name) as signal:
        total = _length(signal, sample_rate)
        start = min(start, total)
        stop = total if samples is None else min(start + samples, total)
        waveform = _segment(signal, start, stop, sample_rate)
    if len(waveform) < stop - start:
        raise UserError(
            f"{name} ends at sample {start + len(waveform)} of the {total} that its header promises; "
            "replace or remove it."
        )
    if not np.isfinite(waveform).all():
        raise UserError(f"{name} holds samples that are not finite; replace or remove it.")
    return waveform


def duration(source: Source, *, sample_rate: int = SAMPLE_RATE, name: str | None = None) -> int:
    """The number of samples that `read` gives for the whole of `source`, from its header.

    Raises UserError when the source cannot be opened.
    """
    with _opened(source, name or _name(source)) as signal:
        return _length(signal, sample_rate)


def _name(source: Source) -> str:
    return f"audio of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _is_mp4(source: Source) -> bool:
    if isinstance(source, bytes):
        return source[4:8] == b"ftyp"
    return Path(source).suffix.lower() == ".m4a"


@contextlib.contextmanager
def _opened(source: Source, name: str) -> Iterator[_Signal]:
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise UserError(f"There is no audio file {name}; check the path.")
    data = io.BytesIO(source) if isinstance(source, bytes) else None
    try:
        if _is_mp4(source):
            import av

            with av.open(data or os.fspath(source)) as container:
                yield _Container(container)
        else:
            with soundfile.SoundFile(data or os.fsencode(source)) as file:
                yield _SoundFile(file)
    except _DECODING_ERRORS as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error) or "no reason"
        raise UserError(f"{name} cannot be decoded ({reason.rstrip('.')}); replace or remove it.") from error


def _length(signal: _Signal, sample_rate: int) -> int:
    # Rounded half up, as the resampler does.
    return (2 * signal.frames * sample_rate + signal.rate) // (2 * signal.rate)


def _segment(signal: _Signal, start: int, stop: int, sample_rate: int) -> np.ndarray:
    if start == stop:
        return np.zeros(0, np.float32)
    if signal.rate == sample_rate:
        return signal.decode(start, stop)
    # Every `block_in` frames of the source are `block_out` samples exactly: pieces that start there stay in phase.
    common = math.gcd(signal.rate, sample_rate)
    block_in, block_out = signal.rate // common, sample_rate // common
    margin = math.ceil(_MARGIN_SECONDS * sample_rate)
    first = max(0, start - margin) // block_out
    last = -(-(stop + margin) // block_out)
    piece = signal.decode(first * block_in, min(last * block_in, signal.frames))
    resampled = soxr.resample(piece, signal.rate, sample_rate)
    return resampled[start - first * block_out : stop - first * block_out]
