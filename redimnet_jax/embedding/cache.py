"""Pooled features kept on disk: every window of every recording once for a backbone, however often work is stopped.

A folder for each backbone holds two files that only grow: `rows`, the features, and `keys`, for every row what it is
of and its checksum. A row is on the disk before its key is, so a row that was cut short has no key; one that does not
match its checksum is computed anew.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax.checkpoints import native
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel

KEY_BYTES = 16
ENTRY = np.dtype([("key", "u1", KEY_BYTES), ("checksum", "<u4")])
# What of a configuration and of the variables comes after pooling.
EMBEDDING_SETTINGS = ("embed_dim", "emb_bn", "mrl_dims", "num_classes", "class_dropout", "head_activation")
POOLED_PARTS = ("frontend", "backbone", "pool")


def backbone_digest(model: SpeakerModel) -> str:
    """SHA-256 of all that pooled features depend on but the recording; projections on one backbone share it."""
    config = dataclasses.asdict(model.network.config)
    settings = {name: value for name, value in config.items() if name not in EMBEDDING_SETTINGS}
    arrays = native.flat(model.network)
    parts = {name: array for name, array in arrays.items() if name.split(".")[0] in POOLED_PARTS}
    entries = [version("redimnet_jax"), str(model.network.dtype), settings, native.checksum(parts)]
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()


def identity(recordings: Any, index: int) -> bytes:
    """What changes when recording `index` becomes another: path, size and time of change of a file, or its bytes."""
    source = recordings.source(index)
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    try:
        facts = os.stat(source)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); restore it or leave it out.") from error
    return f"{os.path.abspath(source)}\0{facts.st_size}\0{facts.st_mtime_ns}".encode(errors="surrogateescape")


def key(identity: bytes, start: int, length: int) -> bytes:
    """The key of the window of `length` samples from `start` on."""
    return hashlib.blake2b(f"{start} {length} ".encode() + identity, digest_size=KEY_BYTES).digest()


class PooledCache:
    """The rows of one backbone below `folder`. Several processes may write at once; none waits for long.

    Raises UserError when the folder cannot be used.
    """

    def __init__(self, folder: str | Path, model: SpeakerModel):
        self.folder = Path(folder) / f"pooled-{backbone_digest(model)[:16]}"
        self.features = model.network.pool.features
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._rows, self._keys = self.folder / "rows", self.folder / "keys"
            for path in (self._rows, self._keys):
                path.touch()
            count = self._whole()
            entries = np.fromfile(self._keys, ENTRY, count)
        names = entries["key"].tobytes()
        self._checksums = entries["checksum"].tolist()
        self._numbers = {names[KEY_BYTES * i : KEY_BYTES * (i + 1)]: i for i in range(count)}

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, keys: Sequence[bytes], out: np.ndarray) -> np.ndarray:
        """Fills the rows of `out` (keys, features) that are kept; returns which they are, bool (keys,)."""
        known, damaged = np.zeros(len(keys), bool), 0
        if not self._numbers:
            return known
        with self._usable():
            rows = np.memmap(self._rows, "<f4", "r", shape=(len(self._checksums), self.features))
        for place, number in enumerate(map(self._numbers.get, keys)):
            if number is None:
                continue
            out[place] = rows[number]
            known[place] = zlib.crc32(out[place]) == self._checksums[number]
            damaged += not known[place]
        if damaged:
            print(f"{damaged:,} damaged rows in {self.folder} are computed anew", file=sys.stderr)
        return known

    def append(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keeps `rows` (keys, features), float32, under `keys`; when this returns they are on the disk."""
        rows = np.ascontiguousarray(rows, "<f4")
        entries = np.zeros(len(keys), ENTRY)
        entries["key"] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        entries["checksum"] = [zlib.crc32(row) for row in rows]
        with self._usable(), self._locked():
            count = self._whole()
            _append(self._rows, count * rows.itemsize * self.features, rows)
            _append(self._keys, count * ENTRY.itemsize, entries)
        # Others may have written in between: their rows have places but no keys here.
        self._checksums += [0] * (count - len(self._checksums)) + entries["checksum"].tolist()
        self._numbers |= {key: count + i for i, key in enumerate(keys)}

    def _whole(self) -> int:
        """How many rows are there with their keys; what lies beyond was cut short."""
        return min(self._rows.stat().st_size // (4 * self.features), self._keys.stat().st_size // ENTRY.itemsize)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        with open(self._keys, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # A file that is too short for its rows is a ValueError.
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"The cache {self.folder} cannot be used ({reason}); choose another folder.") from error


def _append(path: Path, end: int, data: np.ndarray) -> None:
    """Writes `data` to `path` from byte `end` on, in place of what was there."""
    with open(path, "r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(data.tobytes())
        file.flush()
        os.fsync(file.fileno())
