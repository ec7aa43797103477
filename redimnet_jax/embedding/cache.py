"""A cache of pooled features on disk: every segment of every recording is computed once for a backbone.

Each backbone has a folder of `KeyedRows`. The key of a row says which recording and which segment of it the features
belong to, so that work that is stopped goes on where it was.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import addresses
from redimnet_jax.checkpoints import native
from redimnet_jax.data.speech_only import SpeechOnly
from redimnet_jax.embedding.keyed_rows import KeyedRows
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.version import VERSION

KEY_BYTES = 16
# The settings of a configuration that concern what follows pooling, and the modules that precede it.
EMBEDDING_SETTINGS = ("embed_dim", "emb_bn", "mrl_dims", "num_classes", "class_dropout", "head_activation")
POOLED_PARTS = ("frontend", "backbone", "pool")


def backbone_digest(model: SpeakerModel) -> str:
    """Return the SHA-256, in hex, of all that pooled features depend on except the recording.

    Models that share a backbone and differ in the projection have the same digest.
    """
    config = dataclasses.asdict(model.network.config)
    settings = {name: value for name, value in config.items() if name not in EMBEDDING_SETTINGS}
    arrays = native.flat(model.network)
    parts = {name: array for name, array in arrays.items() if name.split(".")[0] in POOLED_PARTS}
    entries = [VERSION, str(model.network.dtype), settings, native.checksum(parts)]
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()


def identity(recordings: Any, index: int) -> bytes:
    """Return bytes that change when recording `index` changes: path, size and time of change of a file, or its hash.

    Raises UserError when the file cannot be found.
    """
    if isinstance(recordings, SpeechOnly):
        # The same file, of which other samples are read.
        return _identity(recordings.whole_source(index)) + recordings.speech.of(index).astype("<i8").tobytes()
    return _identity(recordings.source(index))


def _identity(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    if (address := addresses.of(source)) is not None:
        try:
            entry = addresses.stat(address)
        except FileNotFoundError as error:
            raise UserError(f"There is no {address}; restore it or leave it out.") from error
        return f"{address}\0{entry.size}\0{entry.version}".encode(errors="surrogateescape")
    try:
        facts = os.stat(source)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); restore it or leave it out.") from error
    return f"{os.path.abspath(source)}\0{facts.st_size}\0{facts.st_mtime_ns}".encode(errors="surrogateescape")


def key(identity: bytes, start: int, length: int) -> bytes:
    """Return the key of the segment of `length` samples from `start` on."""
    return hashlib.blake2b(f"{start} {length} ".encode() + identity, digest_size=KEY_BYTES).digest()


class PooledCache:
    """The pooled features of one backbone in a folder below `folder`. Several processes may write to it in turn.

    Raises UserError when the folder cannot be used.
    """

    def __init__(self, folder: str | Path, model: SpeakerModel):
        self.folder = Path(folder) / f"pooled-{backbone_digest(model)[:16]}"
        self._rows = KeyedRows(self.folder, KEY_BYTES, model.network.pool.features, "cache folder")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, keys: Sequence[bytes], out: np.ndarray) -> np.ndarray:
        """Fill the rows of `out` (keys, features) that are in the cache; return which they are, bool (keys,)."""
        return self._rows.read(keys, out)

    def append(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Store `rows` (keys, features), float32, under `keys`; when this returns they are on the disk."""
        with self._rows.writer(wait=True) as writer:
            writer.append(keys, rows)
