"""Frames that PyAV decodes, as parts of mono float32 whose end is where the file says."""

from collections.abc import Iterator
from typing import Any

import numpy as np

_RAW = ("mp3", "aac")  # streams without a container, which often end in tags
_PADDING = 4096  # frames: two packets of HE-AAC, by which MP4 data may exceed what the header says


def decoded(container, stream, promised: int | None) -> Iterator[Any]:
    """Return the decoded frames; raise ValueError when there are fewer packets than `promised`."""
    import av.error

    failure, packets = None, 0
    for packet in container.demux(stream):
        packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            failure = failure or error
            continue
        if failure is not None and packet.size:
            raise failure
        yield from frames
    # A tag at the end looks like a packet; damage is followed by more audio, or found by the number of packets.
    if failure is not None and container.format.name not in _RAW:
        raise failure
    if promised is not None and packets < promised - 1:
        raise ValueError(f"it ends after {packets:,} of the {promised:,} frames that its header promises")


def mono(frames: Iterator[Any], rate: int) -> Iterator[np.ndarray]:
    """Yield the mean of the channels of every frame, float32; raise ValueError unless all are at `rate` Hz."""
    for frame in frames:
        if frame.sample_rate != rate:
            raise ValueError("its sampling rate changes within the file")
        # Nearly every frame of speech is one plane of floats, whose memory needs no copy: `to_ndarray` takes longer
        # than an AAC decoder.
        if frame.format.name == "fltp" and len(frame.planes) == 1:
            yield np.frombuffer(frame.planes[0], np.float32, frame.samples)
            continue
        data = frame.to_ndarray()
        if not frame.format.is_planar:
            data = data.reshape(-1, frame.layout.nb_channels).T
        if data.dtype.kind == "f":
            yield np.float32(1) * data[0] if len(data) == 1 else data.astype(np.float32, copy=False).mean(axis=0)
            continue
        scale = 1.0 / (np.iinfo(data.dtype).max // 2 + 1) / 2
        offset = 0 if data.dtype.kind == "i" else np.iinfo(data.dtype).max // 2 + 1
        yield np.float32(2 * scale if offset else scale) * (data.astype(np.float32) - np.float32(offset)).mean(axis=0)


def without_padding(parts: Iterator[np.ndarray], promised: int, rate: int) -> Iterator[np.ndarray]:
    """Return the parts without the padding of the last packets, or all where they go on beyond what padding can be.

    Raises ValueError when they end before `promised` frames, which is rounded to a millisecond.
    """
    position, padding = 0, []
    for part in parts:
        keep = max(0, promised - position) if padding is not None else len(part)
        position += len(part)
        if padding is not None and position - promised > _PADDING:
            yield from [*padding, part] if padding else [part]
            padding = None
            continue
        if keep:
            yield part[:keep]
        if padding is not None and keep < len(part):
            padding.append(part[keep:])
    if position < promised - rate // 1000 - 1:
        raise ValueError(
            f"it ends after {position / rate:.3f} of the {promised / rate:.3f} s that its header promises"
        )


def in_blocks(parts: Iterator[np.ndarray], block: int, last: int | None) -> Iterator[np.ndarray]:
    """Yield the parts in blocks of `block` samples or a little more; one ends with the part that reaches `last`."""
    held, count, position = [], 0, 0
    for part in parts:
        held.append(part)
        count += len(part)
        reached = last is not None and position + count >= last
        if count >= block or reached:
            yield np.concatenate(held)
            position += count
            held, count = [], 0
    if held:
        yield np.concatenate(held)


def mp3_packets(head: bytes) -> int | None:
    """Return the number of frames that the Xing header of an MP3 says, which `head` begins with; None without one."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    mpeg1, mono = head[1] & 0x18 == 0x18, head[3] & 0xC0 == 0xC0
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    tag = head[4 + side : 4 + side + 12]
    if len(tag) < 12 or tag[:4] not in (b"Xing", b"Info") or not tag[7] & 1:
        return None
    return int.from_bytes(tag[8:12], "big")
