"""The index of a corpus: the usable utterances of a source as plain arrays, in memory or mapped from files."""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from redimnet_jax import files
from redimnet_jax.data import audio
from redimnet_jax.errors import UserError

FORMAT = 2  # raised when the content of an index, or its meaning, changes

_COLUMNS = ("labels", "sessions", "samples", "offsets", "text", "records")


class Bad(NamedTuple):
    """Something that the index leaves out: `kind` is counted, `reason` appears in the list of everything left out."""

    name: str
    kind: str
    reason: str


@dataclasses.dataclass
class Entries:
    """The utterances of a source, in any order.

    `samples`, int64, is -1 for an utterance that cannot be read, and `bad` says why. `records`, int64, are numbers of
    records where names do not suffice to find the audio. `ignored` counts the ignored files by suffix.
    """

    names: list[str]
    speakers: list[str]
    samples: np.ndarray
    bad: list[Bad] = dataclasses.field(default_factory=list)
    records: np.ndarray | None = None
    empty_speakers: Sequence[str] = ()
    ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class Index:
    """The columns of a corpus, sorted by speaker and name.

    `labels`, int32; `sessions`, int32; `samples`, int64; `records`, int64 or None: each (utterances,). The name of
    utterance i is text[offsets[i] : offsets[i + 1]], uint8; `offsets`, int64, is (utterances + 1,).
    """

    speakers: tuple[str, ...]
    labels: np.ndarray
    sessions: np.ndarray
    samples: np.ndarray
    offsets: np.ndarray
    text: np.ndarray
    records: np.ndarray | None = None

    def digest(self) -> str:
        """Return the SHA-256 of names, speakers, sessions and lengths, wherever the audio is."""
        digest = hashlib.sha256(json.dumps(self.speakers).encode())
        for column in (self.labels, self.sessions, self.samples, self.offsets, self.text):
            digest.update(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()


def build(entries: Entries, min_seconds: float) -> tuple[Index, list[Bad]]:
    """Return the index of the usable utterances, and everything else: unreadable, too short, speakers left empty."""
    min_samples = max(1, round(min_seconds * audio.SAMPLE_RATE))
    bad = list(entries.bad)
    for i in np.flatnonzero((entries.samples >= 0) & (entries.samples < min_samples)):
        seconds = entries.samples[i] / audio.SAMPLE_RATE
        bad.append(Bad(entries.names[i], "too short", f"{seconds:.3f} s, less than {min_seconds:g} s"))
    usable = np.flatnonzero(entries.samples >= min_samples).tolist()
    rows = np.array(sorted(usable, key=lambda i: (entries.speakers[i], entries.names[i])), np.int64)
    speakers = tuple(sorted({entries.speakers[i] for i in rows}))
    for speaker in sorted({*entries.speakers, *entries.empty_speakers}.difference(speakers)):
        bad.append(Bad(speaker, "speaker without usable audio", "none of the speaker's files can be used"))
    label_of = {speaker: label for label, speaker in enumerate(speakers)}
    labels = np.empty(len(rows), np.int32)
    sessions = np.empty(len(rows), np.int32)
    offsets = np.zeros(len(rows) + 1, np.int64)
    session_ids: dict[tuple[str, str], int] = {}
    text = bytearray()
    for row, i in enumerate(rows.tolist()):
        speaker = entries.speakers[i]
        name = entries.names[i]
        session = session_of(name, speaker)
        labels[row] = label_of[speaker]
        sessions[row] = -1 if session is None else session_ids.setdefault((speaker, session), len(session_ids))
        text += os.fsencode(name)
        offsets[row + 1] = len(text)
    records = None if entries.records is None else entries.records[rows]
    index = Index(
        speakers, labels, sessions, entries.samples[rows], offsets, np.frombuffer(bytes(text), np.uint8), records
    )
    return index, bad


def session_of(name: str, speaker: str) -> str | None:
    """Return the folders between the speaker's and the file, "x6u" for "id1/x6u/00001.wav"; None without any."""
    folders = name.split("/")[:-1]
    if speaker not in folders:
        return None
    return "/".join(folders[folders.index(speaker) + 1 :]) or None


def count_kinds(bad: Iterable[Bad]) -> dict[str, tuple[int, str]]:
    """Return how many entries of each kind there are, and the name of the first."""
    kinds: dict[str, tuple[int, str]] = {}
    for name, kind, _ in bad:
        count, first = kinds.get(kind, (0, name))
        kinds[kind] = count + 1, first
    return kinds


def save(index: Index, description: Mapping[str, Any], folder: Path) -> None:
    """Write `folder` whole or not at all: the arrays, and `index.json` with the speakers and `description`.

    `description` has at least "digest", that of the index. When another process has written the folder meanwhile,
    its index is kept: the name of the folder follows from the content of the source, so both are the same.
    Raises UserError when the folder cannot be written.
    """
    try:
        with files.new_folder(folder, "choose another cache_dir") as part:
            for column in _COLUMNS:
                if getattr(index, column) is not None:
                    np.save(part / f"{column}.npy", getattr(index, column), allow_pickle=False)
            content = {"speakers": index.speakers, **description}
            content["columns"] = {path.name: _sha256(path.read_bytes()) for path in sorted(part.glob("*.npy"))}
            content["checksum"] = _checksum(content)
            (part / "index.json").write_text(json.dumps(content, indent=1) + "\n")
    except UserError:
        if not (folder / "index.json").is_file():
            raise


def load(folder: Path, verify: bool = True) -> tuple[Index, dict[str, Any]]:
    """Return the index in `folder`, memory-mapped, and its description.

    Raises UserError when it is damaged; with `verify` False, checksums of the columns are not compared.
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
    """Return the SHA-256 of all of the description but its own checksum."""
    rest = {key: value for key, value in description.items() if key != "checksum"}
    return _sha256(json.dumps(rest, sort_keys=True).encode())
