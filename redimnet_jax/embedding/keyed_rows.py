"""Rows of float32 on disk that are found by keys: a `RowStore` for work that goes on where it was stopped.

A row that lies in a damaged block is not there: whoever asks for it computes it anew and appends it again.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from redimnet_jax.errors import UserError
from redimnet_jax.row_store import Appender, RowStore

KEYS = "keys"
ROWS = "rows"

logger = logging.getLogger(__name__)


class KeyedRows:
    """The rows (float32, `width` values each) in `folder`, by keys of `key_bytes` bytes.

    `location` is what the user calls the folder, for messages. Raises UserError when the folder cannot be used.
    """

    def __init__(self, folder: Path, key_bytes: int, width: int, location: str):
        self.folder = folder
        self._width = width
        self._key_bytes = key_bytes
        row_bytes = {KEYS: key_bytes, ROWS: 4 * width}
        self._store = RowStore(folder, row_bytes, location, tolerate_short=True)
        with self._store.writing():
            folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def __len__(self) -> int:
        return len(self._numbers)

    def refresh(self) -> None:
        """Read again which rows are there."""
        self._complete = self._store.complete()
        # Of the blocks of rows: True where the checksum matches.
        self._intact: dict[int, bool] = {}
        rows = self._complete.rows
        self._numbers: dict[bytes, int] = {}
        if not rows:
            return
        last = int(self._store.blocks(KEYS, np.array([rows - 1]))[1][0])
        damaged = self._store.damaged_blocks(KEYS, self._complete, range(last + 1))
        self._warn(KEYS, damaged)
        keys = _read(self.folder / KEYS).ljust(rows * self._key_bytes, b"\0")
        first_block, last_block = self._store.blocks(KEYS, np.arange(rows))
        whole = ~(np.isin(first_block, damaged) | np.isin(last_block, damaged))
        for row in np.flatnonzero(whole).tolist():
            self._numbers[keys[row * self._key_bytes : (row + 1) * self._key_bytes]] = row

    def known(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return which of the `keys` have an undamaged row, bool (keys,)."""
        numbers = np.array([self._numbers.get(key, -1) for key in keys], np.int64)
        first, last = self._store.blocks(ROWS, numbers)
        there = numbers >= 0
        asked = set(first[there].tolist()) | set(last[there].tolist())
        unverified = sorted(asked - self._intact.keys())
        damaged = self._store.damaged_blocks(ROWS, self._complete, unverified)
        self._warn(ROWS, damaged)
        self._intact |= {block: block not in damaged for block in unverified}
        bad = [block for block in asked if not self._intact[block]]
        return there & ~np.isin(first, bad) & ~np.isin(last, bad)

    def read(self, keys: Sequence[bytes], out: np.ndarray) -> np.ndarray:
        """Fill the rows of `out` (keys, width) whose keys are known; return which they are, bool (keys,)."""
        known = self.known(keys)
        if known.any():
            rows = np.array([self._numbers[keys[place]] for place in np.flatnonzero(known).tolist()])
            mapped = np.memmap(self.folder / ROWS, "<f4", "r", shape=(int(rows.max()) + 1, self._width))
            out[known] = mapped[rows]
        return known

    @contextlib.contextmanager
    def writer(self, *, wait: bool = False) -> Iterator["KeyedWriter"]:
        """Give a `KeyedWriter`, while nobody else can have one.

        With `wait` another writer is waited for. Otherwise raises UserError when another process writes.
        """
        with self._store.appender(wait=wait) as appender:
            # A damaged end is removed before rows are appended.
            if appender.rows < self._complete.rows:
                self.refresh()
            yield KeyedWriter(self, appender)
            self._committed(appender)

    def _committed(self, appender: Appender) -> None:
        before = self._complete.rows
        self._complete = appender.commit()
        if before:
            # The last block has grown.
            self._intact.pop(int(self._store.blocks(ROWS, np.array([before - 1]))[1][0]), None)

    def _warn(self, column: str, damaged: Sequence[int]) -> None:
        if damaged:
            path = self.folder / column
            logger.warning("%s has %d damaged blocks, whose rows are computed anew", path, len(damaged))


class KeyedWriter:
    """Appends rows to `KeyedRows`; they can be read when the writer has ended."""

    def __init__(self, rows: KeyedRows, appender: Appender):
        self._rows = rows
        self._appender = appender

    def append(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Append `rows` (keys, width) under `keys`; a key that is there already then means the new row."""
        begin = self._appender.rows
        joined = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
        self._appender.append(keys=joined, rows=np.ascontiguousarray(rows, "<f4"))
        self._rows._numbers |= {key: begin + place for place, key in enumerate(keys)}

    def commit(self) -> None:
        """Return when all rows are on the disk."""
        self._appender.commit()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable.") from error
