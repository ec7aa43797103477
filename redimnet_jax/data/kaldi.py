"""Utterances of Kaldi data folders: `wav.scp`, `utt2spk` and, where recordings hold several utterances, `segments`.

`wav.scp` has lines `recording path`, `segments` lines `utterance recording start end` in seconds, and `utt2spk`
lines `utterance speaker`. Without `segments` recordings are utterances. Commands in `wav.scp`, which Kaldi would run,
and Kaldi's archives are refused.
"""

import dataclasses
import functools
import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from redimnet_jax import addresses, names, utterance_speakers
from redimnet_jax.data import audio, decoding
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.index import Bad, Entries
from redimnet_jax.data.tree import examine
from redimnet_jax.errors import UserError, shown

WAV_SCP, UTT2SPK, SEGMENTS = "wav.scp", "utt2spk", "segments"
# Segments may end this much behind their recording, as in Kaldi; seconds.
OVERSHOOT = 0.5
_RATES = (SAMPLE_RATE, 4 * SAMPLE_RATE)  # samples and bytes a second
_ARCHIVE = re.compile(r"\.ark(:\d+)?$", re.IGNORECASE)


class Span(NamedTuple):
    """A part of a recording, in seconds; `end` is None for the end of the recording."""

    path: Path
    start: float = 0.0
    end: float | None = None

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end is None


def is_kaldi(folder: str | Path) -> bool:
    """Return whether a folder, or an address, holds a `wav.scp`."""
    return addresses.is_file(Path(folder) / WAV_SCP)


@dataclasses.dataclass(frozen=True)
class KaldiFolders:
    """The utterances of Kaldi folders; with `only`, those among them.

    Paths in `wav.scp` are absolute, or relative to `audio_root`, by default their folder. An utterance that is a part
    of a recording is read as a WAV file of that part, in memory.
    """

    roots: tuple[Path, ...]
    audio_root: Path | None = None
    only: frozenset[str] | None = None

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for root in self.roots:
            for name in (WAV_SCP, UTT2SPK, SEGMENTS):
                digest.update(addresses.read(root / name) if addresses.is_file(root / name) else b"")
                digest.update(b"\0")
        roots = [str(root) for root in self.roots]
        return {"kaldi": roots, "content": digest.hexdigest(), "root": str(self.audio_root)}

    def entries(self, workers: int, progress: bool) -> Entries:
        spans = self._spans
        speaker_of: dict[str, str] = {}
        for root in self.roots:
            speaker_of |= utterance_speakers.read_utt2spk(root / UTT2SPK)
        wanted = list(speaker_of if self.only is None else self.only.intersection(spans))
        for name in spans if self.only is None else wanted:
            if name not in speaker_of:
                raise UserError(f"{UTT2SPK} in {self.roots[0]} has no speaker of {shown(name)}; add a line for it.")
        found = [name for name in wanted if name in spans]
        without = (name for name in wanted if name not in spans)
        missing = [
            Bad(name, "missing", f"{UTT2SPK} has it, but neither {WAV_SCP} nor {SEGMENTS}") for name in without
        ]
        samples, bad = examine(found, self.fetch, workers, progress)
        return Entries(found, [speaker_of[name] for name in found], samples, missing + bad)

    def fetch(self, name: str, record: int | None) -> Path | bytes:
        span = self._spans[name]
        return span.path if span.is_whole else _cut(span, name)

    def seeks(self, name: str) -> bool:
        span = self._spans[name]
        return span.is_whole and decoding.seeks(span.path)

    @functools.cached_property
    def _spans(self) -> Mapping[str, Span]:
        spans: dict[str, Span] = {}
        for root in self.roots:
            found = _read_spans(root, root if self.audio_root is None else self.audio_root)
            if repeated := next((name for name in found if name in spans), None):
                raise UserError(f"{root} has the utterance {shown(repeated)} of another folder; give one of the two.")
            spans |= found
        return spans

    def __getstate__(self) -> dict[str, Any]:
        # Workers read the lists themselves: a million lines take seconds.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _read_spans(root: Path, audio_root: Path) -> dict[str, Span]:
    """Return where the utterances of a folder are."""
    recordings = _read_recordings(root / WAV_SCP, audio_root)
    if not addresses.is_file(root / SEGMENTS):
        return {name: Span(path) for name, path in recordings.items()}
    spans: dict[str, Span] = {}
    for line, where in _lines(root / SEGMENTS):
        name, recording, start, end = _segment(line.split(), line, where)
        if recording not in recordings:
            raise UserError(
                f"{where} names the recording {shown(recording)}, which {WAV_SCP} lacks; correct one of them."
            )
        if name in spans:
            raise UserError(f"{where} lists {shown(name)} a second time; remove the line.")
        spans[name] = Span(recordings[recording], start, end)
    return spans


def _read_recordings(path: Path, audio_root: Path) -> dict[str, Path]:
    """Return the file of every recording in a `wav.scp`; raise UserError for what is no file."""
    recordings: dict[str, Path] = {}
    for line, where in _lines(path):
        name, *rest = line.split(maxsplit=1)
        source = rest[0].strip() if rest else ""
        if not source:
            raise UserError(f"{where} reads {shown(line)} but must be `recording path`; correct it.")
        if source.startswith("|") or source.endswith("|"):
            raise UserError(
                f"{where} is a command, {shown(source)}, and commands of lists are never run; write its output to a "
                "file and list that."
            )
        if source == "-" or _ARCHIVE.search(source):
            raise UserError(
                f"{where} names {shown(source)}, which is no audio file; list a file such as WAV or FLAC."
            )
        if name in recordings:
            raise UserError(f"{where} lists {shown(name)} a second time; remove the line.")
        recordings[name] = Path(source) if addresses.of(source) else audio_root / source
    if not recordings:
        raise UserError(f"{path} is empty; give lines `recording path`.")
    return recordings


def _segment(cells: list[str], line: str, where: str) -> tuple[str, str, float, float | None]:
    """Return (utterance, recording, start, end) of a line of `segments`, whose fifth cell may be the channel."""
    try:
        start, end = float(cells[2]), float(cells[3])
    except (IndexError, ValueError):
        start = end = math.nan
    # Kaldi writes -1 for the end of the recording.
    if len(cells) > 5 or not (0 <= start < end < math.inf or (end == -1 and 0 <= start < math.inf)):
        raise UserError(
            f"{where} reads {shown(line)} but must be `utterance recording start end`, in seconds; correct it."
        )
    return cells[0], cells[1], start, None if end == -1 else end


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a list that are not blank, each with a phrase that says where it is."""
    for number, line in enumerate(names.read_lines(path, "The list"), 1):
        text = names.decode(line).strip(names.BLANKS)
        if text:
            yield text, f"Line {number} of {path}"


def _cut(span: Span, name: str) -> bytes:
    """Return a part of a recording as a WAV file of float32 at 16 kHz, the same bytes every time."""
    start = round(span.start * SAMPLE_RATE)
    samples = None if span.end is None else round(span.end * SAMPLE_RATE) - start
    waveform = audio.read(span.path, start, samples)
    if len(waveform) == 0 or (samples is not None and len(waveform) < samples - OVERSHOOT * SAMPLE_RATE):
        end = "in the end" if span.end is None else f"at {span.end:g} s"
        raise UserError(
            f"The segment {shown(name)} from {span.start:g} s ends {end}, but {span.path} ends before; correct it."
        )
    data = waveform.astype("<f4").tobytes()
    # Written here, since libsndfile would put the time into the header.
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, *_RATES, 4, 32)
    return header + struct.pack("<4sI", b"data", len(data)) + data
