"""The embeddings of a corpus in a folder, to be memory-mapped; a run that was stopped goes on where it was.

    embeddings.npy   float32 (utterances, dim) or (utterances, crops, dim), every row of length one
    index.tsv        utterance, speaker, session and seconds of each row
    embeddings.json  what they are made with, and the checksums of all files

`load` reads a finished folder. Until all is done, the array has another name, and a journal beside it has the
checksum of every row that is there. A row that does not match its checksum is computed anew, so it does not matter
when a run was stopped. Batches do not depend on what is there already, so neither does the result.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from redimnet_jax import file_checksums, files, names
from redimnet_jax.checkpoints import native
from redimnet_jax.data import audio
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.embedding.extract import Pieces, Windows, embed_pooled, plan, pooled_batches
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel

ARRAY, INDEX, DESCRIPTION, UNREADABLE = "embeddings.npy", "index.tsv", "embeddings.json", "unreadable.txt"
PARTIAL, JOURNAL = "embeddings.partial.npy", "embeddings.partial.crc32"
COLUMNS = ("utterance", "speaker", "session", "seconds")
FORMAT = 2
MEND = "restore it, or remove the folder and embed again"


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


def settings(model: SpeakerModel, windows: Windows, dim: int) -> dict[str, Any]:
    """What embeddings depend on but the recordings, as JSON."""
    return {
        "format": FORMAT,
        "tool": f"redimnet_jax {version('redimnet_jax')}",
        "weights_sha256": native.checksum(native.flat(model.network)),
        "config_sha256": native.config_checksum(model.arch, model.model_config),
        "dtype": str(model.network.dtype),
        "windows": dataclasses.asdict(windows),
        "dim": dim,
    }


def check(folder: Path, wanted: Mapping[str, Any], verify: bool = True) -> bool:
    """Returns whether `folder` is finished.

    Raises UserError when it holds embeddings that differ in anything of `wanted`, and when a file of a finished
    folder is damaged. `verify` False leaves out the checksum of the array, which takes a pass over all of it.
    """
    arrays = [folder / name for name in (ARRAY, PARTIAL) if (folder / name).exists()]
    if not arrays and not (folder / DESCRIPTION).exists():
        return False
    if not (folder / DESCRIPTION).exists():
        raise UserError(f"{arrays[0]} has no {DESCRIPTION} that says what it is; choose another output.")
    found = _description(folder)
    other = [name for name, value in wanted.items() if name not in found or found[name] != value]
    if other:
        raise UserError(
            f"{folder} holds embeddings with other {', '.join(other)}; choose another output, or remove the folder."
        )
    # Of a run that was stopped at its very end, the description is complete and the array still has its other name.
    finished = folder / ARRAY in arrays or ("files" in found and not arrays)
    if finished:
        _verify(folder, found, verify)
    return finished


def load(folder: str | Path, verify: bool = True) -> Embeddings:
    """Returns the embeddings in a finished `folder`, the array mapped.

    Raises UserError when it is not finished, and when a file of it is damaged. `verify` False leaves out the checksum
    of the array, which takes a pass over all of it.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists() or (not (folder / ARRAY).exists() and (folder / PARTIAL).exists()):
        raise UserError(f"{folder} holds no finished embeddings; run the command that embeds to its end.")
    found = _description(folder)
    _verify(folder, found, verify)
    table = csv.reader(io.StringIO((folder / INDEX).read_text(encoding="utf-8"), newline=""), delimiter="\t")
    try:
        header, *rows = table
        utterances, speakers = ([names.unquote(row[column]) for row in rows] for column in (0, 1))
        sessions = np.array([row[2] for row in rows], np.int64)
        seconds = np.array([row[3] for row in rows], np.float64)
        shape = tuple(found["shape"])
        array = _mapped(folder / ARRAY, shape, "r")
        if tuple(header) != COLUMNS or len(rows) != len(array):
            raise ValueError(f"{len(rows)} rows of {header} for {len(array)} embeddings")
    except (ValueError, IndexError, KeyError, TypeError, OSError, csv.Error) as error:
        raise UserError(f"{folder} is damaged ({error}); {MEND}.") from error
    return Embeddings(array, utterances, speakers, sessions, seconds, found)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
        if "sha256" in found and found["sha256"] != _digest(found):
            raise ValueError("it does not match its checksum")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another output, or remove the folder.") from error
    return found


def _digest(description: Mapping[str, Any]) -> str:
    content = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, found: Mapping[str, Any], array_too: bool) -> None:
    """Raises UserError unless the files of a finished folder are those in its description `found`."""
    listed = found.get("files")
    if "sha256" not in found or not isinstance(listed, dict) or not {ARRAY, INDEX} <= listed.keys():
        raise UserError(f"{folder / DESCRIPTION} has no checksums of the finished files; {MEND}.")
    for name, wanted in listed.items():
        if array_too or name != ARRAY:
            file_checksums.verify(folder / name, wanted, MEND)


def embed(
    model: SpeakerModel,
    corpus: Corpus,
    folder: Path,
    wanted: Mapping[str, Any],
    *,
    windows: Windows,
    batch_seconds: float = 240.0,
    workers: int | None = None,
    max_bad: float = 0.01,
) -> Done:
    """Embeds what of `corpus` is not in `folder` yet, and finishes the folder.

    `wanted` is what `check` was asked, and is kept as the description. Recordings that cannot be decoded are counted
    and listed in `unreadable.txt`, and have no row.
    Raises UserError when they are more than the fraction `max_bad`, and when the folder cannot be written.
    """
    pieces = Pieces.of(model, corpus, windows)
    shape = (len(corpus), wanted["dim"]) if pieces.crops == 1 else (len(corpus), pieces.crops, wanted["dim"])
    with _partial(folder, shape, len(pieces)) as (array, journal):
        files.write(folder / DESCRIPTION, json.dumps(wanted, indent=2) + "\n")
        rows = array.reshape(len(pieces), -1)
        missing = _missing(rows, journal)
        budget = round(batch_seconds * model.sample_rate)
        batches = plan(pieces.lengths, np.arange(len(pieces)), budget, jax.local_device_count())
        batches = [batch for batch in batches if missing[batch.pieces].any()]
        unreadable: dict[int, str] = {}

        def read(piece: int) -> np.ndarray | None:
            try:
                return pieces.read(piece)
            except UserError as error:
                unreadable[int(piece) // pieces.crops] = str(error)
                return None

        def check_unreadable() -> None:
            if len(unreadable) > max_bad * len(corpus):
                raise UserError(
                    f"{len(unreadable):,} of {len(corpus):,} recordings cannot be read, too many for "
                    f"max_bad={max_bad:g}, the first since {next(iter(unreadable.values()))}"
                )

        start = time.perf_counter()
        for found, pooled in pooled_batches(
            model, batches, read, workers=workers, progress="embedding", check=check_unreadable
        ):
            rows[found] = _units(embed_pooled(model, pooled)[:, : wanted["dim"]], pieces, found)
            journal[found] = [_checksum(rows, piece) for piece in found]
        check_unreadable()
        took = time.perf_counter() - start
        readable = np.ones(len(corpus), bool)
        readable[list(unreadable)] = False
        if _missing(rows, journal)[np.repeat(readable, pieces.crops)].any():
            raise UserError(f"{folder / PARTIAL} changed while it was written; run the command again.")
        _finish(folder, corpus, array, wanted, unreadable)
    embedded = np.concatenate([batch.pieces for batch in batches]) if batches else np.zeros(0, int)
    return Done(
        recordings=len(np.unique(embedded // pieces.crops)),
        audio_seconds=sum(batch.samples for batch in batches) / model.sample_rate,
        wall_seconds=took,
        unreadable=len(unreadable),
        total=len(corpus) - len(unreadable),
    )


def _units(embeddings: np.ndarray, pieces: Pieces, of: np.ndarray) -> np.ndarray:
    """The rows of `embeddings`, of the pieces `of`, scaled to length one; UserError when one is not finite."""
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        name = names.quote(pieces.name(of[wrong[0]]))
        raise UserError(f"The embedding of {name} is not finite; leave it out or use float32.")
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


@contextlib.contextmanager
def _partial(folder: Path, shape: tuple[int, ...], rows: int) -> Iterator[tuple[np.memmap, np.memmap]]:
    """The unfinished array in `folder`, all NaN when it is new, and the journal of its `rows`, for one process alone.

    The journal is uint32 (rows,), see `_checksum`, and 0 where a row is not there.
    """
    import fcntl

    path, journal = folder / PARTIAL, folder / JOURNAL
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists() and not (folder / ARRAY).exists():
                _create(path, shape)
            held = stack.enter_context(open(path, "rb"))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            array = _mapped(path, shape, "r+")
            if not journal.exists() or journal.stat().st_size != 4 * rows:
                files.write(journal, bytes(4 * rows))
            checksums = np.memmap(journal, "<u4", "r+", shape=(rows,))
        except FileNotFoundError as error:
            raise UserError(f"{folder} was finished by another process; run the command again.") from error
        except BlockingIOError as error:
            raise UserError(f"Another process is writing {path}; wait for it or choose another output.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be used ({reason}); choose another output, or remove it.") from error
        yield array, checksums


def _checksum(rows: np.ndarray, row: int) -> int:
    """The journal's entry of a row, which a row in another's place does not match."""
    return zlib.crc32(rows[row], int(row))


def _missing(rows: np.ndarray, journal: np.ndarray) -> np.ndarray:
    """Which `rows` (rows, features) are not there or damaged, bool (rows,); says how many are damaged."""
    whole = np.fromiter(
        (_checksum(rows, row) == entry for row, entry in enumerate(journal.tolist())), bool, len(rows)
    )
    there = np.isfinite(rows).all(axis=1)
    damaged = np.count_nonzero((there | (journal != 0)) & ~(whole & there))
    if damaged:
        print(f"{damaged:,} damaged rows in {PARTIAL} are computed anew", file=sys.stderr)
    return ~(whole & there)


def _header(shape: tuple[int, ...]) -> bytes:
    """How a NumPy file of float32 of that shape begins."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _mapped(path: Path, shape: tuple[int, ...], mode: str) -> np.memmap:
    """The array of that shape in the file `path`; ValueError when it holds another one."""
    header = _header(shape)
    with open(path, "rb") as file:
        begins = file.read(len(header))
    if begins != header or path.stat().st_size != len(header) + 4 * int(np.prod(shape)):
        raise ValueError(f"it is not a whole array of float32 {shape}")
    return np.memmap(path, "<f4", mode, len(header), shape)


def _create(path: Path, shape: tuple[int, ...]) -> None:
    # Written, not mapped: of a full disk a write is told, a mapping is killed by it.
    part = path.with_name(f".{path.name}")
    block = np.full((min(shape[0], 8192), *shape[1:]), np.nan, "<f4")
    _write(part, shape, (block[: shape[0] - start] for start in range(0, shape[0], len(block))))
    os.replace(part, path)


def _write(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    with open(path, "wb") as file:
        file.write(_header(shape))
        for block in blocks:
            file.write(block.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _finish(
    folder: Path, corpus: Corpus, array: np.memmap, wanted: Mapping[str, Any], unreadable: Mapping[int, str]
) -> None:
    """Writes the index and the description with all checksums, and last of all gives the array its name."""
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
        (folder / UNREADABLE).unlink(missing_ok=True)  # of a run that was stopped as it finished
    files.write(folder / INDEX, _index(corpus, np.flatnonzero(keep)))
    shape = (int(keep.sum()), *array.shape[1:])
    try:
        array.flush()
        whole = folder / PARTIAL
        if unreadable:
            whole = folder / f".{ARRAY}"
            blocks = np.array_split(np.flatnonzero(keep), max(1, len(corpus) // 8192))
            _write(whole, shape, (array[block] for block in blocks))
        checksums = {ARRAY: file_checksums.of(whole)} | {name: file_checksums.of(folder / name) for name in others}
        description = {**wanted, "shape": list(shape), "unreadable": len(unreadable), "files": checksums}
        description["sha256"] = _digest(description)
        files.write(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        os.replace(whole, folder / ARRAY)
        for name in (PARTIAL, JOURNAL):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); free some space.") from error


def _index(corpus: Corpus, chosen: np.ndarray) -> str:
    """The table of the utterances `chosen` of `corpus`."""
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(COLUMNS)
    for i in chosen.tolist():
        speaker, seconds = corpus.speakers[corpus.labels[i]], f"{corpus.samples[i] / audio.SAMPLE_RATE:.4f}"
        table.writerow([names.quote(corpus.name(i)), names.quote(speaker), int(corpus.sessions[i]), seconds])
    return text.getvalue()
