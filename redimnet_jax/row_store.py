"""Files of rows that only grow, with a checksum for every block, a count of complete rows, and one writer at a time.

A folder holds one file per column, with nothing but its rows side by side, and `complete.json`: the number of
complete rows, the CRC-32 of every block of `BLOCK_BYTES` bytes of each column (the last block ends with the last
complete row), and the SHA-256 of these entries. `complete.json` is replaced atomically after the rows are on the
disk, so that rows that an interruption cut short are not counted, and a reader sees a count that fits the checksums.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from redimnet_jax import files, locks
from redimnet_jax.errors import UserError

COMPLETE = "complete.json"
BLOCK_BYTES = 2**24
# An interruption loses the rows of at most this time.
COMMIT_SECONDS = 20.0
# Checksums and reads release the interpreter, and a disk is read faster by several threads.
READERS = 8

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Complete:
    """The complete part of a store: `rows` rows, with the `checksums` of the blocks of every column."""

    rows: int
    checksums: Mapping[str, tuple[int, ...]]


class RowStore:
    """The rows in `folder`, whose column `name` has `row_bytes[name]` bytes a row.

    `location` is what the user calls the folder, such as "cache.folder", for messages. With `tolerate_short` a column
    that lost bytes is no error: the lost rows then count as damaged.
    """

    def __init__(self, folder: Path, row_bytes: Mapping[str, int], location: str, *, tolerate_short: bool = False):
        self.folder = folder
        self.row_bytes = dict(row_bytes)
        self.location = location
        self._tolerate_short = tolerate_short

    def complete(self) -> Complete:
        """Return the complete part, which is empty in a new store and in one of a version without checksums.

        Raises UserError when `complete.json` or the length of a column shows damage.
        """
        path = self.folder / COMPLETE
        nothing = Complete(0, dict.fromkeys(self.row_bytes, ()))
        try:
            entries = json.loads(path.read_bytes())
            if entries.keys() == {"rows"}:
                return nothing
            rows = entries["rows"]
            checksums = {name: tuple(entries["crc32"][name]) for name in self.row_bytes}
            if entries["sha256"] != _sha256(rows, checksums):
                raise self._damaged(path, "it does not match its checksum")
        except FileNotFoundError:
            return nothing
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(path, "it does not describe rows") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); make it readable.") from error
        for name, size in self.row_bytes.items():
            column = self.folder / name
            if not self._tolerate_short and (not column.exists() or column.stat().st_size < rows * size):
                raise self._damaged(column, f"it is shorter than {rows:,} rows")
        return Complete(rows, checksums)

    def check(self, name: str, rows: int) -> None:
        """Raise UserError unless the first `rows` rows of a column are complete and their blocks are undamaged."""
        complete = self.complete()
        if complete.rows < rows:
            reason = f"it counts {complete.rows:,} rows where {rows:,} were written"
            raise self._damaged(self.folder / COMPLETE, reason)
        blocks = range(-(-rows * self.row_bytes[name] // BLOCK_BYTES))
        for block in self.damaged_blocks(name, complete, blocks)[:1]:
            begin, end = self._bounds(name, complete, block)
            raise self._damaged(self.folder / name, f"bytes {begin:,} to {end:,} do not match their checksum")

    def damaged_blocks(self, name: str, complete: Complete, blocks: Sequence[int]) -> list[int]:
        """Return those of the `blocks` of a column that do not match their checksums in `complete`.

        Raises UserError when the column cannot be read.
        """
        bounds = [self._bounds(name, complete, block) for block in blocks]
        try:
            with open(self.folder / name, "rb") as file, concurrent.futures.ThreadPoolExecutor(READERS) as pool:
                checksums = list(pool.map(lambda span: _crc(file.fileno(), *span), bounds))
        except FileNotFoundError:
            return list(blocks)
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be read ({error.strerror}); make it readable.") from error
        recorded = complete.checksums[name]
        return [block for block, checksum in zip(blocks, checksums, strict=True) if checksum != recorded[block]]

    def blocks(self, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last block that each of the `rows` of a column touches, int64 (rows,) each."""
        begin = rows.astype(np.int64) * self.row_bytes[name]
        return begin // BLOCK_BYTES, (begin + self.row_bytes[name] - 1) // BLOCK_BYTES

    @contextlib.contextmanager
    def appender(self, *, wait: bool = False) -> Iterator["Appender"]:
        """Give an `Appender`, while no other process can have one; commit its rows at the end, whatever happens.

        With `wait` another writer is waited for. Otherwise raises UserError when another process appends.
        """
        with contextlib.ExitStack() as stack:
            with self.writing():
                self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.locked(self.folder, wait=wait))
            files.remove_leftovers(self.folder)
            # Only now, since another process may have appended until the lock was taken.
            counted = self.complete()
            complete = self._without_damaged_end(counted) if self._tolerate_short else counted
            if complete.rows < counted.rows:
                dropped = counted.rows - complete.rows
                logger.warning("%s has damaged blocks at its end; its last %d rows are dropped", self.folder, dropped)
            columns: dict[str, BinaryIO] = {}
            with self.writing():
                for name, size in self.row_bytes.items():
                    columns[name] = stack.enter_context(open(self.folder / name, "ab", buffering=0))
                    if not counted.rows and os.fstat(columns[name].fileno()).st_size:
                        logger.warning("%s has no checksums, so its rows are computed anew", self.folder / name)
                    columns[name].truncate(complete.rows * size)
            appender = Appender(self, columns, complete, counted.rows)
            try:
                appender.commit()
                yield appender
            finally:
                appender.commit()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Raise a UserError in place of an OSError of the block, which writes to the store."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Rows cannot be written to {self.folder} ({files.reason(error)}); free some space, or choose "
                f"another {self.location}."
            ) from error

    def _without_damaged_end(self, complete: Complete) -> Complete:
        """Return `complete` without the rows of a damaged last block, whose checksum appended rows would share."""
        while complete.rows:
            keep = complete.rows
            for name, size in self.row_bytes.items():
                last = len(complete.checksums[name]) - 1
                if self.damaged_blocks(name, complete, [last]):
                    keep = min(keep, last * BLOCK_BYTES // size)
            if keep == complete.rows:
                break
            checksums = {name: self._first_checksums(name, complete, keep) for name in self.row_bytes}
            complete = Complete(keep, checksums)
        return complete

    def _first_checksums(self, name: str, complete: Complete, rows: int) -> tuple[int, ...]:
        """Return the checksums of the first `rows` rows of a column; -1, which matches nothing, for damage."""
        whole, rest = divmod(rows * self.row_bytes[name], BLOCK_BYTES)
        checksums = complete.checksums[name][:whole]
        if not rest:
            return checksums
        if self.damaged_blocks(name, complete, [whole]):
            return (*checksums, -1)
        with open(self.folder / name, "rb") as file:
            return (*checksums, _crc(file.fileno(), whole * BLOCK_BYTES, whole * BLOCK_BYTES + rest))

    def _bounds(self, name: str, complete: Complete, block: int) -> tuple[int, int]:
        begin = block * BLOCK_BYTES
        return begin, min(begin + BLOCK_BYTES, complete.rows * self.row_bytes[name])

    def _damaged(self, path: Path, reason: str) -> UserError:
        return UserError(f"{path} is damaged ({reason}); remove the folder {self.folder} to make its rows anew.")


class Appender:
    """The end of a store: `rows` rows are written, of which the last may not be committed."""

    def __init__(self, store: RowStore, columns: Mapping[str, BinaryIO], complete: Complete, committed: int):
        self.rows = complete.rows
        self._store = store
        self._columns = columns
        self._checksums = dict(complete.checksums)
        self._committed = committed
        self._since = time.monotonic()

    def append(self, **columns: np.ndarray) -> None:
        """Write the same number of rows of every column; commit from time to time."""
        counts = {len(array) for array in columns.values()}
        if columns.keys() != self._store.row_bytes.keys() or len(counts) != 1:
            raise ValueError(f"{sorted(columns)} with lengths {sorted(counts)} are no rows of the store")
        checksums = {}
        for name, array in columns.items():
            data = np.ascontiguousarray(array).tobytes()
            size = self._store.row_bytes[name]
            if len(data) != len(array) * size:
                raise ValueError(f"a row of {name} has {len(data) // max(len(array), 1)} bytes, not {size}")
            with self._store.writing():
                _write(self._columns[name], data)
            checksums[name] = _extended(self._checksums[name], self.rows * size, data)
        # Only now, so that a column that could not be written leaves the count and the checksums as they were.
        self._checksums = checksums
        self.rows += counts.pop()
        if time.monotonic() - self._since > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> Complete:
        """Return the complete part of the store, once all rows are on the disk and counted."""
        complete = Complete(self.rows, dict(self._checksums))
        if self.rows != self._committed:
            with self._store.writing():
                for file in self._columns.values():
                    os.fsync(file.fileno())
            digest = _sha256(complete.rows, complete.checksums)
            entries = {"rows": complete.rows, "crc32": complete.checksums, "sha256": digest}
            files.write(self._store.folder / COMPLETE, json.dumps(entries) + "\n")
        self._committed = self.rows
        self._since = time.monotonic()
        return complete


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, which may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _extended(checksums: tuple[int, ...], size: int, data: bytes) -> tuple[int, ...]:
    """Return the checksums of a column after `data` is appended to its `size` bytes, which have `checksums`."""
    extended = list(checksums)
    view = memoryview(data)
    while view:
        inside = size % BLOCK_BYTES
        part = view[: BLOCK_BYTES - inside]
        view = view[BLOCK_BYTES - inside :]
        if inside:
            extended[-1] = zlib.crc32(part, extended[-1])
        else:
            extended.append(zlib.crc32(part))
        size += len(part)
    return tuple(extended)


def _crc(descriptor: int, begin: int, end: int) -> int:
    """Return the CRC-32 of the bytes `begin` to `end` of a file."""
    return zlib.crc32(os.pread(descriptor, end - begin, begin))


def _sha256(rows: int, checksums: Mapping[str, Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([rows, checksums], sort_keys=True).encode()).hexdigest()
