"""Write the embeddings of a corpus to a folder, to be memory-mapped; a run that was stopped goes on where it was.

    embeddings.npy   float32 (utterances, dim) or (utterances, crops, dim), every row of length one
    index.tsv        utterance, speaker, session and seconds of each row
    embeddings.json  what they are made with, and the checksums of all files

`load` reads a finished folder. Until all is done, the rows are in `embeddings.partial` (see `keyed_rows`), from where
they are copied in order in the end. Batches do not depend on the rows that are there already, so neither does the
result.
"""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from redimnet_jax import buckets, file_checksums, files, names
from redimnet_jax.checkpoints import native
from redimnet_jax.data import audio
from redimnet_jax.data.recordings import Utterances
from redimnet_jax.embedding.extract import embed_pooled, plan, pooled_batches
from redimnet_jax.embedding.keyed_rows import KeyedRows
from redimnet_jax.embedding.segments import CropPolicy, Segments
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.version import VERSION

ARRAY, INDEX, DESCRIPTION, UNREADABLE = "embeddings.npy", "index.tsv", "embeddings.json", "unreadable.txt"
PARTIAL = "embeddings.partial"
# The files of an unfinished folder of earlier versions.
EARLIER = ("embeddings.partial.npy", "embeddings.partial.crc32")
# The key of an unfinished row: the number of its segment.
KEY = np.dtype("<i8")
WRITE_ROWS = 8192
COLUMNS = ("utterance", "speaker", "session", "seconds")
FORMAT = 2
MEND = "restore it, or remove the folder and embed again"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """A finished folder: the mapped `array`, float32 (rows, [crops,] dim), and what each row is of.

    `sessions` is int64 (rows,), -1 where there are none; `seconds` is float64 (rows,).
    """

    array: np.memmap
    utterances: list[str]
    speakers: list[str]
    sessions: np.ndarray
    seconds: np.ndarray
    description: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Done:
    """What a run embedded: recordings (all or part of whose crops), seconds of audio, the seconds it took.

    `unreadable` are recordings that were left out; `total` are those in the finished folder.
    """

    recordings: int
    audio_seconds: float
    wall_seconds: float
    unreadable: int
    total: int


def settings(
    model: SpeakerModel, crop_policy: CropPolicy, dim: int, speech: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what embeddings depend on but the recordings, as JSON.

    speech: how recordings are cut to their speech, see `speech_only.description`, or None.
    """
    return {
        "format": FORMAT,
        "tool": f"redimnet_jax {VERSION}",
        "weights_sha256": native.checksum(native.flat(model.network)),
        "config_sha256": native.config_checksum(model.arch, model.model_config),
        "dtype": str(model.network.dtype),
        "windows": dataclasses.asdict(crop_policy),
        "speech": None if speech is None else dict(speech),
        "dim": dim,
    }


def check(folder: Path, expected: Mapping[str, Any], verify: bool = True) -> bool:
    """Return whether `folder` is finished.

    Raises UserError when it holds embeddings that differ in anything of `expected`, and when a file of a finished
    folder is damaged. `verify` False leaves out the checksum of the array, which takes a pass over all of it.
    """
    arrays = [folder / name for name in (ARRAY, PARTIAL, *EARLIER) if (folder / name).exists()]
    if not arrays and not (folder / DESCRIPTION).exists():
        return False
    if not (folder / DESCRIPTION).exists():
        raise UserError(f"{arrays[0]} has no {DESCRIPTION} that says what it is; choose another output.")
    description = _description(folder)
    # Earlier versions did not write what is None.
    other = [name for name, value in expected.items() if description.get(name) != value]
    if other:
        raise UserError(
            f"{folder} holds embeddings with other {', '.join(other)}; choose another output, or remove the folder."
        )
    # A run that was stopped at its very end left a complete description without the array.
    finished = folder / ARRAY in arrays or ("files" in description and not arrays)
    if finished:
        _verify(folder, description, verify)
    return finished


def load(folder: str | Path, verify: bool = True) -> Embeddings:
    """Return the embeddings in a finished `folder`, a path or an address, the array mapped.

    Raises UserError when it is not finished, and when a file of it is damaged. `verify` False leaves out the checksum
    of the array, which takes a pass over all of it.
    """
    folder = buckets.staged(folder)
    if not (folder / DESCRIPTION).exists() or (not (folder / ARRAY).exists() and (folder / PARTIAL).exists()):
        raise UserError(f"{folder} holds no finished embeddings; run the command that embeds to its end.")
    description = _description(folder)
    _verify(folder, description, verify)
    table = csv.reader(io.StringIO((folder / INDEX).read_text(encoding="utf-8"), newline=""), delimiter="\t")
    try:
        header, *rows = table
        utterances, speakers = ([names.unquote(row[column]) for row in rows] for column in (0, 1))
        sessions = np.array([row[2] for row in rows], np.int64)
        seconds = np.array([row[3] for row in rows], np.float64)
        shape = tuple(description["shape"])
        array = _mapped(folder / ARRAY, shape)
        if tuple(header) != COLUMNS or len(rows) != len(array):
            raise ValueError(f"{len(rows)} rows of {header} for {len(array)} embeddings")
    except (ValueError, IndexError, KeyError, TypeError, OSError, csv.Error) as error:
        raise UserError(f"{folder} is damaged ({error}); {MEND}.") from error
    return Embeddings(array, utterances, speakers, sessions, seconds, description)


def write(
    folder: Path,
    blocks: Iterable[np.ndarray],
    rows: Sequence[tuple[str, str, int, float]],
    description: Mapping[str, Any],
) -> None:
    """Write a new finished folder of embeddings that come from elsewhere.

    `blocks` are float32 (some rows, dim) of length one; `rows` has utterance, speaker, session and seconds of each.
    `description` is that of `settings`. Raises UserError when the folder exists or cannot be written.
    """
    shape = (len(rows), description["dim"])
    with files.new_folder(folder) as part:
        (part / INDEX).write_text(_table(rows), encoding="utf-8")
        with open(part / ARRAY, "wb") as file:
            file.write(_header(shape))
            for block in blocks:
                file.write(np.ascontiguousarray(block, "<f4").tobytes())
        entries = _described(description, shape, 0, {name: file_checksums.of(part / name) for name in (ARRAY, INDEX)})
        files.write(part / DESCRIPTION, json.dumps(entries, indent=2) + "\n")


def _described(
    description: Mapping[str, Any], shape: tuple[int, ...], unreadable: int, checksums: Mapping[str, Any]
) -> dict[str, Any]:
    entries = {**description, "shape": list(shape), "unreadable": unreadable, "files": checksums}
    return entries | {"sha256": _digest(entries)}


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text())
        if not isinstance(description, dict):
            raise ValueError(f"it holds a {type(description).__name__}")
        if "sha256" in description and description["sha256"] != _digest(description):
            raise ValueError("it does not match its checksum")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another output, or remove the folder.") from error
    return description


def _digest(description: Mapping[str, Any]) -> str:
    content = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, description: Mapping[str, Any], array_too: bool) -> None:
    """Raise UserError unless the files of a finished folder are those in its `description`."""
    listed = description.get("files")
    if "sha256" not in description or not isinstance(listed, dict) or not {ARRAY, INDEX} <= listed.keys():
        raise UserError(f"{folder / DESCRIPTION} has no checksums of the finished files; {MEND}.")
    for name, checksums in listed.items():
        if array_too or name != ARRAY:
            file_checksums.verify(folder / name, checksums, MEND)


def embed(
    model: SpeakerModel,
    corpus: Utterances,
    folder: Path,
    description: Mapping[str, Any],
    *,
    crop_policy: CropPolicy,
    batch_seconds: float = 240.0,
    workers: int | None = None,
    max_bad: float = 0.01,
) -> Done:
    """Embed the recordings of `corpus` that are not in `folder` yet, and finish the folder.

    `description` is what `check` was called with, and is stored. Recordings that cannot be decoded are counted and
    listed in `unreadable.txt`, and have no row. Raises UserError when they are more than the fraction `max_bad`, when
    the folder cannot be written, and when another process writes to it.
    """
    segments = Segments.of_recordings(model, corpus, crop_policy)
    dim = description["dim"]
    budget = round(batch_seconds * model.sample_rate)
    batches = plan(segments.lengths, np.arange(len(segments)), budget, jax.local_device_count())
    reader = _Reader(segments, len(corpus), max_bad)
    partial = KeyedRows(folder / PARTIAL, KEY.itemsize, dim, "output")
    start = time.perf_counter()
    with partial.writer() as writer:
        if (folder / ARRAY).exists():
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            raise UserError(f"{folder} was finished by another process; run the command again.")
        _remove_earlier(folder)
        files.write(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        # What another process appended before this one had the lock is there too.
        partial.refresh()
        batches = [batch for batch in batches if not partial.known(_keys(batch.segments)).all()]
        for numbers, pooled in pooled_batches(
            model, batches, reader.read, workers=workers, progress="embedding", check=reader.check
        ):
            writer.append(_keys(numbers), _normalized(embed_pooled(model, pooled)[:, :dim], segments, numbers))
        reader.check()
        seconds = time.perf_counter() - start
        writer.commit()
        partial.refresh()
        _finish(folder, corpus, partial, description, reader.unreadable, segments.crops)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    embedded = np.concatenate([batch.segments for batch in batches]) if batches else np.zeros(0, int)
    return Done(
        recordings=len(np.unique(embedded // segments.crops)),
        audio_seconds=sum(batch.samples for batch in batches) / model.sample_rate,
        wall_seconds=seconds,
        unreadable=len(reader.unreadable),
        total=len(corpus) - len(reader.unreadable),
    )


class _Reader:
    """Reads segments; counts the recordings that cannot be read, with the reason, in `unreadable`."""

    def __init__(self, segments: Segments, recordings: int, max_bad: float):
        self.unreadable: dict[int, str] = {}
        self._segments = segments
        self._recordings = recordings
        self._max_bad = max_bad

    def read(self, segment: int) -> np.ndarray | None:
        """Return the waveform, or None when it cannot be read."""
        try:
            return self._segments.read(segment)
        except UserError as error:
            self.unreadable[int(segment) // self._segments.crops] = str(error)
            return None

    def check(self) -> None:
        """Raise UserError when too many recordings cannot be read."""
        if len(self.unreadable) > self._max_bad * self._recordings:
            raise UserError(
                f"{len(self.unreadable):,} of {self._recordings:,} recordings cannot be read, too many for "
                f"max_bad={self._max_bad:g}, the first since {next(iter(self.unreadable.values()))}"
            )


def _keys(segments: np.ndarray) -> list[bytes]:
    return [number.tobytes() for number in segments.astype(KEY)]


def _normalized(embeddings: np.ndarray, segments: Segments, numbers: np.ndarray) -> np.ndarray:
    """Return the embeddings (rows, dim) of the segments `numbers` scaled to length one.

    Raises UserError when one is not finite.
    """
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        name = names.quote(segments.name(int(numbers[wrong[0]])))
        raise UserError(f"The embedding of {name} is not finite; leave it out or use float32.")
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def _remove_earlier(folder: Path) -> None:
    """Remove the unfinished array of an earlier version."""
    for name in EARLIER:
        if (folder / name).exists():
            logger.warning("%s is of an earlier version, so its embeddings are computed anew", folder / name)
            (folder / name).unlink()


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the first bytes of a NumPy file of float32 of that shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return the array of that shape in the file `path`, mapped; raise ValueError when it holds another one."""
    header = _header(shape)
    with open(path, "rb") as file:
        begins = file.read(len(header))
    if begins != header or path.stat().st_size != len(header) + 4 * int(np.prod(shape)):
        raise ValueError(f"it is not a whole array of float32 {shape}")
    return np.memmap(path, "<f4", "r", len(header), shape)


def _write_array(path: Path, partial: KeyedRows, segments: np.ndarray, shape: tuple[int, ...]) -> None:
    """Write the rows of the `segments` to `path` as a NumPy file of `shape`; raise UserError when one is missing."""
    with open(path, "wb") as file:
        file.write(_header(shape))
        for begin in range(0, len(segments), WRITE_ROWS):
            block = segments[begin : begin + WRITE_ROWS]
            rows = np.zeros((len(block), shape[-1]), "<f4")
            if not partial.read(_keys(block), rows).all():
                raise UserError(f"{partial.folder} changed while it was written; run the command again.")
            file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _finish(
    folder: Path,
    corpus: Utterances,
    partial: KeyedRows,
    description: Mapping[str, Any],
    unreadable: Mapping[int, str],
    crops: int,
) -> None:
    """Write the index and the description with all checksums, and last of all give the array its name."""
    keep = np.ones(len(corpus), bool)
    keep[list(unreadable)] = False
    others = [INDEX]
    if unreadable:
        lines = (
            f"{names.quote(corpus.name(i))}\t{names.one_line(reason)}\n" for i, reason in sorted(unreadable.items())
        )
        files.write(folder / UNREADABLE, "".join(lines))
        others.append(UNREADABLE)
    else:
        (folder / UNREADABLE).unlink(missing_ok=True)  # It is there when a run was stopped as it finished.
    files.write(folder / INDEX, _index(corpus, np.flatnonzero(keep)))
    dim = description["dim"]
    shape = (int(keep.sum()), dim) if crops == 1 else (int(keep.sum()), crops, dim)
    array = folder / f".{ARRAY}"
    try:
        _write_array(array, partial, np.flatnonzero(np.repeat(keep, crops)), shape)
        checksums = {ARRAY: file_checksums.of(array)} | {name: file_checksums.of(folder / name) for name in others}
        entries = _described(description, shape, len(unreadable), checksums)
        files.write(folder / DESCRIPTION, json.dumps(entries, indent=2) + "\n")
        os.replace(array, folder / ARRAY)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({files.reason(error)}); free some space.") from error


def _index(corpus: Utterances, chosen: np.ndarray) -> str:
    """Return the table of the utterances `chosen` of `corpus`."""
    return _table(
        (
            corpus.name(i),
            corpus.speakers[corpus.labels[i]],
            int(corpus.sessions[i]),
            float(corpus.samples[i]) / audio.SAMPLE_RATE,
        )
        for i in chosen.tolist()
    )


def _table(rows: Iterable[tuple[str, str, int, float]]) -> str:
    """Return the table of (utterance, speaker, session, seconds)."""
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(COLUMNS)
    for utterance, speaker, session, seconds in rows:
        table.writerow([names.quote(utterance), names.quote(speaker), session, f"{seconds:.4f}"])
    return text.getvalue()
