"""Decoding an audio file, or its bytes, to blocks of mono float32, in memory that does not grow with its length.

The content chooses the decoder, never the suffix:

| begins with | decoder | length |
|---|---|---|
| `fLaC`, RIFF/RF64 `WAVE`, AIFF, AU, W64, CAF | libsndfile | the header's; a segment is found by an exact seek |
| the same, of a codec that libsndfile does not seek (GSM, ADPCM) | libsndfile | known after decoding |
| `OggS` with Vorbis or Opus | libsndfile, one link of the chain after the other | known after decoding |
| anything else (MP3, MP4, ADTS, WMA, FLAC or WAV of unknown length ...) | PyAV | known after decoding |
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from redimnet_jax import addresses
from redimnet_jax.data import av_frames
from redimnet_jax.errors import UserError

Source = str | Path | bytes

# Files of these suffixes are taken for recordings where a folder is searched.
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"})

_BLOCK = 1 << 16  # frames of one channel
_EXACT = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
_LIBSNDFILE = (b"fLaC", b"RIFF", b"RIFX", b"RF64", b"FORM", b".snd", b"riff", b"caff")
# FFmpeg also has playlists and scripts, which open other files.
_DEMUXERS = "mp3,aac,mov,wav,w64,flac,ogg,asf,matroska,amr,amrnb,amrwb,caf,aiff,au,ac3,eac3,mpegts,avi,flv,ape,wv,tta"
_RIFF_SLACK = 64  # bytes: some writers count the header too
_RIFF_UNKNOWN = 0x7FFFF000  # sizes from here on are those of recorders that never came back to the header
_PACKED = 1 << 16  # no supported codec, digital silence included, has more frames in a byte

_ERRORS = (
    *(soundfile.SoundFileError, OSError, EOFError, LookupError, ValueError),
    *(ArithmeticError, MemoryError, RuntimeError, struct.error),
)


@dataclasses.dataclass(frozen=True)
class Signal:
    """An opened signal at `rate` Hz.

    frames: how many there are, where the header can be trusted; None where only decoding tells.
    blocks: gives blocks of float32 (n,), the mean of the channels, from frame `first` on, and may stop at `last`.
        It starts from frame 0 instead where `seeks` is False. It raises UserError for what cannot be decoded, and may
        be called once.
    """

    rate: int
    frames: int | None
    seeks: bool
    blocks: Callable[[int, int | None], Iterator[np.ndarray]]

    def decode(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """Blocks of the frames [first, last); fewer only where the data end earlier."""
        position = first if self.seeks else 0
        for block in self.blocks(first, last):
            part = block[max(0, first - position) : None if last is None else max(0, last - position)]
            position += len(block)
            if len(part):
                yield part
            if last is not None and position >= last:
                return


def seeks(path: Path) -> bool:
    """Return True for a file here whose first bytes are of a format in which a segment is found by a seek.

    Of these, the codecs that libsndfile does not seek (GSM, ADPCM) are decoded from the start all the same.
    """
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(4) in _LIBSNDFILE
    return False


@contextlib.contextmanager
def opened(source: Source, name: str) -> Iterator[Signal]:
    """Return the signal in `source`, a path or the bytes of a file.

    Raises UserError, which calls the source `name`, when it cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        with _refusals(name):
            signal = _open(source if isinstance(source, bytes) else _located(source, name), stack)
        yield dataclasses.replace(signal, blocks=functools.partial(_guarded, signal.blocks, name))


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        av = sys.modules.get("av")
        if not isinstance(error, _ERRORS) and (av is None or not isinstance(error, av.error.FFmpegError)):
            raise
        reason = "out of memory" if isinstance(error, MemoryError) else ""
        reason = reason or getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        reason = " ".join(str(reason).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{name} cannot be decoded ({reason}); replace or remove it.") from error


def _guarded(
    blocks: Callable[[int, int | None], Iterator[np.ndarray]], name: str, first: int, last: int | None
) -> Iterator[np.ndarray]:
    """Return the blocks, with errors of the decoder, but not of who uses the blocks, as UserErrors."""
    iterator = blocks(first, last)
    while True:
        with _refusals(name):
            block = next(iterator, None)
        if block is None:
            return
        yield block


def _located(source: str | Path, name: str) -> Source:
    """Return a path where there is a file, or the bytes of the file at an address."""
    with contextlib.suppress(FileNotFoundError):
        if addresses.of(source) or os.path.isfile(source):
            return addresses.read(source) if addresses.of(source) else source
    raise UserError(f"There is no audio file {addresses.repaired(name)}; check the path.")


def _open(source: Source, stack: contextlib.ExitStack) -> Signal:
    if isinstance(source, bytes):
        file: BinaryIO = io.BytesIO(source)
    else:
        file = stack.enter_context(open(source, "rb"))  # noqa: SIM115 (the stack closes it)
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ValueError("it is empty")
    start = _tag_size(file)
    file.seek(start)
    magic = file.read(4)
    if magic == b"OggS":
        return _ogg(source, file, stack)
    if magic in _LIBSNDFILE and not _unknown_length(file, start, size, magic):
        try:
            return _libsndfile(source, stack, size)
        except soundfile.LibsndfileError:
            file.seek(0)  # It may be of a codec that only PyAV has.
    return _pyav(file, start, stack)


def _tag_size(file: BinaryIO) -> int:
    """Return the bytes of the ID3v2 tags that `file` begins with."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return start
        start += 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _unknown_length(file: BinaryIO, start: int, size: int, magic: bytes) -> bool:
    """Tells whether the header was never completed, so that the data go on to the end of the file.

    Raises ValueError when the file ends before its header says.
    """
    if magic == b"fLaC":
        file.seek(start + 21)
        word = file.read(5)
        return len(word) == 5 and not int.from_bytes(word, "big") & 0xFFFFFFFFF
    if magic not in (b"RIFF", b"RIFX", b"RF64"):
        return False
    found = _riff_data(file, start, "<" if magic != b"RIFX" else ">")
    if found is None:
        return False
    position, promised = found
    available = size - position
    if promised == 0:
        return available > 0 and not _is_chunk(file, position, available)
    if promised > available and promised >= _RIFF_UNKNOWN and magic != b"RF64":
        return True
    if promised > available + _RIFF_SLACK:
        raise ValueError(f"it ends after {available:,} of the {promised:,} bytes that its header promises")
    return False


def _riff_data(file: BinaryIO, start: int, order: str) -> tuple[int, int] | None:
    """(where the samples of a WAV begin, how many bytes the header promises); None where they are not found."""
    position, long_size = start + 12, None
    for _ in range(1000):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return None
        kind, size = head[:4], struct.unpack(f"{order}I", head[4:])[0]
        if kind == b"ds64":
            content = file.read(16)
            long_size = struct.unpack("<Q", content[8:])[0] if len(content) == 16 else None
        if kind == b"data":
            return position + 8, long_size if size == 0xFFFFFFFF and long_size is not None else size
        position += 8 + size + size % 2
    return None


def _is_chunk(file: BinaryIO, position: int, available: int) -> bool:
    file.seek(position)
    head = file.read(8)
    return (
        len(head) == 8
        and head[:4].decode("latin-1").strip().isalnum()
        and head[:4].isascii()
        and (int.from_bytes(head[4:], "little") + 8 <= available + 1)
    )


def _libsndfile(source: Source, stack: contextlib.ExitStack, size: int) -> Signal:
    file = _sound_file(source, stack)
    if file.frames > size * _PACKED:
        raise ValueError(f"its header promises {file.frames:,} frames in {size:,} bytes")
    seeks = file.seekable() and (file.format == "FLAC" or file.subtype in _EXACT)
    return Signal(
        file.samplerate, file.frames if seeks else None, seeks, functools.partial(_sound_blocks, file, seeks)
    )


def _sound_file(source: Source | BinaryIO, stack: contextlib.ExitStack) -> soundfile.SoundFile:
    content: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    file: Any = content if isinstance(content, io.IOBase) else os.fsencode(content)
    return stack.enter_context(soundfile.SoundFile(file))


def _sound_blocks(file: soundfile.SoundFile, seeks: bool, first: int, last: int | None) -> Iterator[np.ndarray]:
    position = first if seeks else 0
    if position:
        file.seek(position)
    most = max(1, _BLOCK // file.channels)
    while last is None or position < last:
        count = most if last is None else min(most, last - position)
        data = file.read(count, dtype="float32", always_2d=True)
        position += len(data)
        if len(data):
            yield data[:, 0] if data.shape[1] == 1 else data.mean(axis=1)
        if len(data) < count:
            return


def _ogg(source: Source, file: BinaryIO, stack: contextlib.ExitStack) -> Signal:
    """Open an Ogg file, a chain of links that are streams of their own; libsndfile reads the first link only."""
    data = source if isinstance(source, bytes) else stack.enter_context(_mapped(file))
    links = _links(data)
    if not all(kind.startswith((b"\x01vorbis", b"OpusHead")) for _, _, kind in links):
        return _pyav(file, 0, stack)
    whole = len(links) == 1 and links[0][:2] == (0, len(data))
    contents = [source] if whole else (io.BytesIO(data[begin:end]) for begin, end, _ in links)
    sounds = (_sound_file(content, stack) for content in contents)
    leading = next(sounds)

    def blocks(first: int, last: int | None) -> Iterator[np.ndarray]:
        position = 0
        for sound in itertools.chain([leading], sounds):
            if sound.samplerate != leading.samplerate:
                raise ValueError("its sampling rate changes within the file")
            for block in _sound_blocks(sound, False, 0, None if last is None else last - position):
                position += len(block)
                yield block
            sound.close()

    return Signal(leading.samplerate, None, False, blocks)


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _links(data: bytes | mmap.mmap) -> list[tuple[int, int, bytes]]:
    """(begin, end, the first bytes of the first packet) of every link of an Ogg file.

    Raises ValueError when the file ends within a page, or when there is something else between pages.
    """
    links: list[list[Any]] = []
    position, heads, size = data.find(b"OggS"), False, len(data)
    while position < size:
        if data[position : position + 4] != b"OggS":
            if data.find(b"OggS", position) >= 0:
                raise ValueError(f"it is damaged at byte {position:,}")
            break  # a tag behind the last page
        body = position + 27 + (data[position + 26] if position + 26 < size else 0)
        end = body + sum(data[position + 27 : body])
        if body > size or end > size or body == position + 27 and position + 27 > size:
            raise ValueError(f"it ends within a page, at byte {size:,}")
        begins = bool(data[position + 5] & 2)
        if begins and not heads:
            links.append([position, end, bytes(data[body : body + 8])])
        elif not links:
            raise ValueError("it has no first page")
        links[-1][1], heads, position = end, begins, end
    return [tuple(link) for link in links]


def _pyav(file: BinaryIO, start: int, stack: contextlib.ExitStack) -> Signal:
    import av

    file.seek(start)
    packets = av_frames.mp3_packets(file.read(4096))
    file.seek(0)
    # An object, since FFmpeg takes "a:b" for a protocol, and names need not be UTF-8.
    container = stack.enter_context(
        av.open(file, container_options={"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"})
    )
    if not container.streams.audio:
        raise ValueError("it has no audio stream")
    stream = container.streams.audio[0]
    frames = av_frames.decoded(container, stream, packets if container.format.name == "mp3" else None)
    head = list(itertools.islice(frames, 1))
    rate = head[0].sample_rate if head else stream.rate
    if not rate:
        raise ValueError("it has no sampling rate")
    parts = av_frames.mono(itertools.chain(head, frames), rate)
    if container.format.name.startswith("mov") and stream.duration and stream.duration > 0 and stream.time_base:
        parts = av_frames.without_padding(parts, round(stream.duration * stream.time_base * rate), rate)
    return Signal(rate, None, False, lambda first, last: av_frames.in_blocks(parts, _BLOCK, last))
