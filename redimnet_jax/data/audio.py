"""Decode an audio file, or its bytes, to a mono float32 waveform at one sample rate, whole or in segments.

A segment equals the same slice of the whole waveform. WAV and FLAC seek to the exact sample, and only the segment is
decoded. Other formats are decoded from the start to the end of the segment, because their decoders carry a state from
packet to packet and their headers do not give exact lengths; the skipped part takes no memory. Where the rate
changes, a margin around the segment is resampled with it.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import soxr

from redimnet_jax.data import decoding
from redimnet_jax.data.decoding import Signal, Source
from redimnet_jax.errors import UserError

SAMPLE_RATE = 16000
# One step of 16-bit audio, -90 dB of full scale; rounding errors and the dither of digital silence are below it.
MIN_LEVEL = 2.0**-15

# Beyond this the resampler's filter is below the last bit of a float32, at the rates of speech.
_MARGIN_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The length and level of a recording that was decoded to its end.

    `samples` is the length of what `read` returns. `level` is the standard deviation of the mono waveform before
    resampling; full scale is 1.
    """

    samples: int
    level: float

    @property
    def has_signal(self) -> bool:
        """False for digital silence, a constant, and channels that cancel; these all have one embedding."""
        return self.level >= MIN_LEVEL


def read(
    source: Source,
    start: int = 0,
    samples: int | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    name: str | None = None,
) -> np.ndarray:
    """Return the waveform in `source`, a path or the bytes of a file: float32 (n,), the mean of the channels.

    `start` and `samples` are in samples at `sample_rate` (Hz), to which the signal is resampled. n is less than
    `samples` only where the signal ends. Errors call the source `name` (default: the path).

    Raises UserError when the source cannot be decoded, ends before its header says, or is not finite.
    """
    if start < 0 or (samples is not None and samples < 0):
        raise ValueError(f"start and samples must not be negative, got {start} and {samples}")
    name = name or name_of(source)
    stop = None if samples is None else start + samples
    with decoding.opened(source, name) as signal:
        total = None if signal.frames is None else _length(signal.frames, signal.rate, sample_rate)
        if total is not None:
            start = min(start, total)
            stop = total if stop is None else min(stop, total)
        waveform = _segment(signal, start, stop, sample_rate)
    if total is not None and stop is not None and len(waveform) < stop - start:
        raise _too_short(name, start + len(waveform), total)
    if not np.isfinite(waveform).all():
        raise UserError(f"{name} holds samples that are not finite; replace or remove it.")
    return waveform


def duration(source: Source, *, sample_rate: int = SAMPLE_RATE, name: str | None = None) -> int:
    """Return the number of samples that `read` returns for the whole of `source`.

    For WAV and FLAC it comes from the header; other formats are decoded to their end.
    Raises UserError when the source cannot be opened or, where needed, decoded.
    """
    with decoding.opened(source, name or name_of(source)) as signal:
        frames = sum(map(len, signal.decode())) if signal.frames is None else signal.frames
        return _length(frames, signal.rate, sample_rate)


def inspect(source: Source, *, sample_rate: int = SAMPLE_RATE, name: str | None = None) -> Inspection:
    """Decode the whole of `source` in constant memory, and return its length and level.

    Raises UserError where `read` would.
    """
    name = name or name_of(source)
    frames = 0
    total = 0.0
    squares = 0.0
    with decoding.opened(source, name) as signal:
        for block in signal.decode():
            exact = block.astype(np.float64)
            frames += len(block)
            total += exact.sum()
            squares += exact.dot(exact)
    if not np.isfinite(squares):
        raise UserError(f"{name} holds samples that are not finite; replace or remove it.")
    samples = _length(frames, signal.rate, sample_rate)
    if signal.frames is not None and frames < signal.frames:
        raise _too_short(name, samples, _length(signal.frames, signal.rate, sample_rate))
    count = max(frames, 1)
    return Inspection(samples, math.sqrt(max(0.0, squares / count - (total / count) ** 2)))


def name_of(source: Source) -> str:
    """Return what messages call `source`: its path, or its size."""
    return f"audio of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _too_short(name: str, samples: int, promised: int) -> UserError:
    return UserError(
        f"{name} ends at sample {samples} of the {promised} that its header promises; replace or remove it."
    )


def _length(frames: int, rate: int, sample_rate: int) -> int:
    # Rounded half up, as the resampler does.
    return (2 * frames * sample_rate + rate) // (2 * rate)


def _segment(signal: Signal, start: int, stop: int | None, sample_rate: int) -> np.ndarray:
    """Return the samples [start, stop) at `sample_rate`, up to the end where `stop` is None."""
    if start == stop:
        return np.zeros(0, np.float32)
    if signal.rate == sample_rate:
        return _joined(signal.decode(start, stop))
    # Every `block_in` frames of the source are `block_out` samples exactly: pieces that start there stay in phase.
    common = math.gcd(signal.rate, sample_rate)
    block_in, block_out = signal.rate // common, sample_rate // common
    margin = math.ceil(_MARGIN_SECONDS * sample_rate)
    first = max(0, start - margin) // block_out
    last = None if stop is None else -(-(stop + margin) // block_out) * block_in
    pieces = signal.decode(first * block_in, last)
    origin = first * block_out
    return _joined(_resampled(pieces, signal.rate, sample_rate))[
        start - origin : None if stop is None else stop - origin
    ]


def _resampled(pieces: Iterator[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    for piece in pieces:
        yield stream.resample_chunk(piece)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _joined(pieces: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *pieces])
