"""The embeddings of a corpus in a folder, to be memory-mapped; a run that was stopped goes on where it was.

    embeddings.npy   float32 (utterances, dim) or (utterances, crops, dim), every row of length one
    index.tsv        utterance, speaker, session and seconds of each row
    embeddings.json  what they are made with

Until all is done, the array has another name, and NaN in it means "not yet". A row is used only where all of it is
there, so it does not matter when a run was stopped. Batches do not depend on what is there already, so neither does
the result.
"""

import contextlib
import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from redimnet_jax import audio, checkpoint, files
from redimnet_jax.corpus import Corpus
from redimnet_jax.embedding import Pieces, Windows, embed_pooled, plan, pooled_batches
from redimnet_jax.errors import UserError
from redimnet_jax.model import SpeakerModel

ARRAY, INDEX, DESCRIPTION, UNREADABLE = "embeddings.npy", "index.tsv", "embeddings.json", "unreadable.txt"
PARTIAL = "embeddings.partial.npy"
COLUMNS = ("utterance", "speaker", "session", "seconds")
FORMAT = 1


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
        "weights_sha256": checkpoint.checksum(checkpoint.flat(model.network)),
        "config_sha256": checkpoint.config_checksum(model.arch, model.model_config),
        "dtype": str(model.network.dtype),
        "windows": dataclasses.asdict(windows),
        "dim": dim,
    }


def check(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether `folder` is finished. Raises UserError when it holds embeddings that differ in anything of `wanted`."""
    path = folder / DESCRIPTION
    arrays = [folder / name for name in (ARRAY, PARTIAL) if (folder / name).exists()]
    try:
        found = json.loads(path.read_text())
        other = [name for name, value in wanted.items() if found[name] != value]
    except FileNotFoundError:
        if arrays:
            raise UserError(
                f"{arrays[0]} has no {DESCRIPTION} that says what it is; choose another output."
            ) from None
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another output, or remove the folder.") from error
    if other:
        raise UserError(
            f"{folder} holds embeddings with other {', '.join(other)}; choose another output, or remove the folder."
        )
    return folder / ARRAY in arrays


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
    files.write(folder / DESCRIPTION, json.dumps(wanted, indent=2) + "\n")
    shape = (len(corpus), wanted["dim"]) if pieces.crops == 1 else (len(corpus), pieces.crops, wanted["dim"])
    with _partial(folder / PARTIAL, shape) as array:
        rows = array.reshape(len(pieces), -1)
        missing = np.isnan(rows).any(axis=1)
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
            embeddings = embed_pooled(model, pooled)[:, : wanted["dim"]]
            wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
            if len(wrong):
                raise UserError(
                    f"The embedding of {pieces.name(found[wrong[0]])} is not finite; leave it out or use float32."
                )
            rows[found] = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        check_unreadable()
        took = time.perf_counter() - start
        _finish(folder, corpus, array, wanted, unreadable)
    embedded = np.concatenate([batch.pieces for batch in batches]) if batches else np.zeros(0, int)
    return Done(
        recordings=len(np.unique(embedded // pieces.crops)),
        audio_seconds=sum(batch.samples for batch in batches) / model.sample_rate,
        wall_seconds=took,
        unreadable=len(unreadable),
        total=len(corpus) - len(unreadable),
    )


@contextlib.contextmanager
def _partial(path: Path, shape: tuple[int, ...]) -> Iterator[np.memmap]:
    """The unfinished array at `path`, all NaN when it is new, for one process alone."""
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            if not path.exists():
                _create(path, shape)
            held = stack.enter_context(open(path, "rb"))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            array = np.lib.format.open_memmap(path, "r+")
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"it is {array.dtype} {array.shape}, not float32 {shape}")
        except BlockingIOError as error:
            raise UserError(f"Another process is writing {path}; wait for it or choose another output.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be used ({reason}); choose another output, or remove it.") from error
        yield array


def _create(path: Path, shape: tuple[int, ...]) -> None:
    # Written, not mapped: of a full disk a write is told, a mapping is killed by it.
    part = path.with_name(f".{path.name}")
    block = np.full((min(shape[0], 8192), *shape[1:]), np.nan, "<f4")
    with open(part, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, shape[0], len(block)):
            file.write(block[: shape[0] - start].tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _finish(
    folder: Path, corpus: Corpus, array: np.memmap, wanted: Mapping[str, Any], unreadable: Mapping[int, str]
) -> None:
    """Writes the index and the description, and last of all gives the array its name."""
    keep = np.ones(len(corpus), bool)
    keep[list(unreadable)] = False
    if unreadable:
        lines = (f"{corpus.name(i)}\t{reason}\n" for i, reason in sorted(unreadable.items()))
        files.write(folder / UNREADABLE, "".join(lines).encode(errors="surrogateescape"))
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(COLUMNS)
    for i in np.flatnonzero(keep).tolist():
        seconds = f"{corpus.samples[i] / audio.SAMPLE_RATE:.4f}"
        table.writerow([corpus.name(i), corpus.speakers[corpus.labels[i]], int(corpus.sessions[i]), seconds])
    files.write(folder / INDEX, text.getvalue().encode(errors="surrogateescape"))
    array.flush()
    facts = {"shape": [int(keep.sum()), *array.shape[1:]], "unreadable": len(unreadable)}
    files.write(folder / DESCRIPTION, json.dumps({**wanted, **facts}, indent=2) + "\n")
    if not unreadable:
        os.replace(folder / PARTIAL, folder / ARRAY)
        return
    whole = folder / f".{ARRAY}"
    with open(whole, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(facts["shape"])}
        np.lib.format.write_array_header_1_0(file, header)
        for block in np.array_split(np.flatnonzero(keep), max(1, len(corpus) // 8192)):
            file.write(array[block].tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(whole, folder / ARRAY)
    os.unlink(folder / PARTIAL)
