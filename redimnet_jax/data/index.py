"""The index of a corpus: what can be used of what a source holds, as plain arrays, in memory or mapped from files."""

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from redimnet_jax import files
from redimnet_jax.data import audio
from redimnet_jax.errors import UserError

FORMAT = 2  # raised when what an index holds, or what it means, changes

_COLUMNS = ("labels", "sessions", "samples", "offsets", "text", "records")


class Bad(NamedTuple):
    """Something left out of the index: `kind` is counted, `reason` is for the list of all of them."""

    name: str
    kind: str
    reason: str


@dataclasses.dataclass
class Entries:
    """What a source holds, in any order: `samples` is -1, and `bad` says why, where an utterance cannot be read."""

    names: list[str]
    speakers: list[str]
    samples: np.ndarray  # int64
    bad: list[Bad] = dataclasses.field(default_factory=list)
    records: np.ndarray | None = None  # int64, where names alone do not find the audio
    empty_speakers: Sequence[str] = ()
    ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # files by suffix


@dataclasses.dataclass(frozen=True)
class Index:
    """The columns of a corpus, sorted by speaker and name."""

    speakers: tuple[str, ...]
    labels: np.ndarray  # int32
    sessions: np.ndarray  # int32
    samples: np.ndarray  # int64
    offsets: np.ndarray  # int64 (utterances + 1,): where each name begins in `text`
    text: np.ndarray  # uint8
    records: np.ndarray | None = None  # int64

    def digest(self) -> str:
        """SHA-256 of what is said about the utterances, wherever they are kept."""
        digest = hashlib.sha256(json.dumps(self.speakers).encode())
        for column in (self.labels, self.sessions, self.samples, self.offsets, self.text):
            digest.update(np.ascontiguousarray(column.astype(column.dtype.newbyteorder("<"), copy=False)))
        return digest.hexdigest()


def build(entries: Entries, min_seconds: float) -> tuple[Index, list[Bad]]:
    """The index of what can be used, and everything that cannot: unreadable, too short, speakers without the rest."""
    least = max(1, round(min_seconds * audio.SAMPLE_RATE))
    bad = list(entries.bad)
    for i in np.flatnonzero((entries.samples >= 0) & (entries.samples < least)):
        seconds = entries.samples[i] / audio.SAMPLE_RATE
        bad.append(Bad(entries.names[i], "too short", f"{seconds:.3f} s, less than {min_seconds:g} s"))
    kept = sorted(np.flatnonzero(entries.samples >= least), key=lambda i: (entries.speakers[i], entries.names[i]))
    speakers = tuple(sorted({entries.speakers[i] for i in kept}))
    for speaker in sorted({*entries.speakers, *entries.empty_speakers}.difference(speakers)):
        bad.append(Bad(speaker, "speaker without usable audio", "none of the speaker's files can be used"))
    label_of = {speaker: label for label, speaker in enumerate(speakers)}
    labels, sessions = np.empty(len(kept), np.int32), np.empty(len(kept), np.int32)
    session_ids: dict[tuple[str, str], int] = {}
    text, offsets = bytearray(), np.zeros(len(kept) + 1, np.int64)
    for row, i in enumerate(kept):
        speaker, name = entries.speakers[i], entries.names[i]
        session = session_of(name, speaker)
        labels[row] = label_of[speaker]
        sessions[row] = -1 if session is None else session_ids.setdefault((speaker, session), len(session_ids))
        text += os.fsencode(name)
        offsets[row + 1] = len(text)
    kept = np.array(kept, np.int64)
    records = None if entries.records is None else entries.records[kept]
    index = Index(
        speakers, labels, sessions, entries.samples[kept], offsets, np.frombuffer(bytes(text), np.uint8), records
    )
    return index, bad


def session_of(name: str, speaker: str) -> str | None:
    """The folders between the speaker's and the file: "x6u" of "id1/x6u/00001.wav"; None where there are none."""
    folders = name.split("/")[:-1]
    if speaker not in folders:
        return None
    return "/".join(folders[folders.index(speaker) + 1 :]) or None


def kinds(bad: Iterable[Bad]) -> dict[str, tuple[int, str]]:
    """For each kind how many there are, and the name of the first."""
    found: dict[str, tuple[int, str]] = {}
    for name, kind, _ in bad:
        count, first = found.get(kind, (0, name))
        found[kind] = count + 1, first
    return found


def save(index: Index, description: dict[str, Any], folder: Path) -> None:
    """Writes `folder` whole or not at all: the arrays, and `index.json` with the speakers and `description`.

    `description` has at least "digest", the index's.
    Raises UserError when it cannot be written.
    """
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for column in _COLUMNS:
            if getattr(index, column) is not None:
                np.save(part / f"{column}.npy", getattr(index, column), allow_pickle=False)
        content = {"speakers": index.speakers} | description
        content["columns"] = {path.name: _sha256(path.read_bytes()) for path in sorted(part.glob("*.npy"))}
        content["checksum"] = _checksum(content)
        (part / "index.json").write_text(json.dumps(content, indent=1) + "\n")
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # Otherwise another process was first, with the same index.
                raise
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another cache_dir.") from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def load(folder: Path, verify: bool = True) -> tuple[Index, dict[str, Any]]:
    """The index in `folder`, mapped, and its description.

    Raises UserError when it is damaged; `verify` False leaves out the checksum.
    """
    try:
        description = files.parse_json((folder / "index.json").read_bytes())
        if _checksum(description) != description["checksum"]:
            raise ValueError("index.json does not match its checksum")
        for name, checksum in description["columns"].items() if verify else ():
            if _sha256((folder / name).read_bytes()) != checksum:
                raise ValueError(f"{name} does not match its checksum")
        columns = {
            path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))
        }
        index = Index(tuple(description["speakers"]), **columns)
        if verify and index.digest() != description["digest"]:
            raise ValueError("it does not match its checksum")
    except (OSError, *files.NOT_AN_ARRAY, LookupError, AttributeError) as error:
        raise UserError(
            f"The index {folder} is damaged ({files.first_line(error)}); remove the folder to rebuild it."
        ) from error
    return index, description


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(description: dict[str, Any]) -> str:
    """SHA-256 of all of the description but its own checksum."""
    rest = {key: value for key, value in description.items() if key != "checksum"}
    return _sha256(json.dumps(rest, sort_keys=True).encode())
