"""Files of rows that only grow, with a checksum of every block, a count of complete rows, and one writer at a time.

A folder holds one file per column, nothing but its rows side by side, and `complete.json`: how many rows are
complete, the CRC-32 of every block of `BLOCK_BYTES` bytes of each file (the last block ends with the last complete
row), and the SHA-256 of these entries. It is replaced atomically after the rows are on the disk, so rows that were
cut short by an interruption are not counted, and a reader sees a count that fits the checksums.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files
from redimnet_jax.errors import UserError

COMPLETE = "complete.json"
BLOCK_BYTES = 2**24
# An interruption costs the rows of this time at most.
COMMIT_SECONDS = 20.0
# Checksums and reads release the interpreter, and a disk is read faster by several threads.
READERS = 8


@dataclasses.dataclass(frozen=True)
class Complete:
    """What of a store is complete: `rows` rows, with the `checksums` of the blocks of every column."""

    rows: int
    checksums: Mapping[str, tuple[int, ...]]


class RowStore:
    """The rows in `folder`, whose file `name` has `row_bytes[name]` bytes a row.

    `setting` is the setting that names where the folder is, for messages.
    """

    def __init__(self, folder: Path, row_bytes: Mapping[str, int], setting: str):
        self.folder, self.row_bytes, self.setting = folder, dict(row_bytes), setting

    def complete(self) -> Complete:
        """What is complete; nothing where the store is new or of an earlier version, which kept no checksums.

        Raises UserError when `complete.json` or the length of a file shows damage.
        """
        path = self.folder / COMPLETE
        try:
            entries = json.loads(path.read_bytes())
            if entries.keys() == {"rows"}:
                return self._nothing()
            rows, checksums = entries["rows"], {name: tuple(entries["crc32"][name]) for name in self.row_bytes}
            if entries["sha256"] != _sha256(rows, checksums):
                raise self._damaged(path, "it does not match its checksum")
        except FileNotFoundError:
            return self._nothing()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(path, "it is no description of rows") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); make it readable.") from error
        for name, size in self.row_bytes.items():
            file = self.folder / name
            if not file.exists() or file.stat().st_size < rows * size:
                raise self._damaged(file, f"it is shorter than {rows:,} rows")
        return Complete(rows, checksums)

    def is_of_earlier_version(self) -> bool:
        """True where rows were kept without checksums, which `complete` does not count."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / COMPLETE).read_bytes()).keys() == {"rows"}
        return False

    def check(self, name: str, rows: int) -> None:
        """Raises UserError unless the first `rows` rows of a column are complete and every block has its checksum."""
        found = self.complete()
        if found.rows < rows:
            raise self._damaged(self.folder / COMPLETE, f"it counts {found.rows:,} rows where {rows:,} were written")
        path, size = self.folder / name, self.row_bytes[name]
        starts = range(0, rows * size, BLOCK_BYTES)
        ends = [min(start + BLOCK_BYTES, found.rows * size) for start in starts]
        with open(path, "rb") as file, concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            checksums = pool.map(_crc, [file.fileno()] * len(starts), starts, ends)
            for start, end, ours, theirs in zip(starts, ends, checksums, found.checksums[name], strict=False):
                if ours != theirs:
                    raise self._damaged(path, f"bytes {start:,} to {end:,} do not match their checksum")

    @contextlib.contextmanager
    def appender(self) -> Iterator["Appender"]:
        """Appends rows, alone; commits what there is on the way out, whatever the reason.

        Raises UserError when another process appends.
        """
        import fcntl

        with contextlib.ExitStack() as stack:
            with self.writable():
                self.folder.mkdir(parents=True, exist_ok=True)
                opened = {
                    name: stack.enter_context(open(self.folder / name, "ab", buffering=0)) for name in self.row_bytes
                }
            try:
                fcntl.flock(next(iter(opened.values())), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"The rows in {self.folder} are being written by another run; wait for it, or choose another "
                    f"{self.setting}."
                ) from error
            files.remove_leftovers(self.folder)
            # Only now, since another process may have appended until the lock was taken.
            complete = self.complete()
            with self.writable():
                for name, file in opened.items():
                    file.truncate(complete.rows * self.row_bytes[name])
            writer = Appender(self, opened, complete)
            try:
                yield writer
            finally:
                writer.commit()

    def _nothing(self) -> Complete:
        return Complete(0, dict.fromkeys(self.row_bytes, ()))

    def _damaged(self, path: Path, reason: str) -> UserError:
        return UserError(f"{path} is damaged ({reason}); remove the folder {self.folder} to make its rows anew.")

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """Makes UserErrors of what the disk raises."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Rows cannot be written to {self.folder} ({files.reason(error)}); free some space, or choose "
                f"another {self.setting}."
            ) from error


class Appender:
    """The end of a store; `rows` are written, of which some may not be committed."""

    def __init__(self, store: RowStore, opened: Mapping[str, Any], complete: Complete):
        self._store, self._files, self.rows = store, opened, complete.rows
        self._checksums = dict(complete.checksums)
        self._committed, self._since = self.rows, time.monotonic()

    def append(self, **columns: np.ndarray) -> None:
        """Writes as many rows of every column, and commits now and then."""
        counts = {len(array) for array in columns.values()}
        if columns.keys() != self._store.row_bytes.keys() or len(counts) != 1:
            raise ValueError(f"Rows of {sorted(columns)} with lengths {sorted(counts)} are no rows of the store.")
        checksums = {}
        for name, array in columns.items():
            data, size = np.ascontiguousarray(array).tobytes(), self._store.row_bytes[name]
            if len(data) != len(array) * size:
                raise ValueError(f"A row of {name} has {len(data) // max(len(array), 1)} bytes, not {size}.")
            with self._store.writable():
                _write(self._files[name], data)
            checksums[name] = _extended(self._checksums[name], self.rows * size, data)
        # Only now, so that a column which could not be written leaves the count and the checksums as they were.
        self._checksums = checksums
        self.rows += counts.pop()
        if time.monotonic() - self._since > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Returns when all rows are on the disk, and counted."""
        if self.rows > self._committed:
            with self._store.writable():
                for file in self._files.values():
                    os.fsync(file.fileno())
            digest = _sha256(self.rows, self._checksums)
            entries = {"rows": self.rows, "crc32": self._checksums, "sha256": digest}
            files.write(self._store.folder / COMPLETE, json.dumps(entries) + "\n")
        self._committed, self._since = self.rows, time.monotonic()


def _write(file: Any, data: bytes) -> None:
    """Writes all of `data` to an unbuffered file, which may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _extended(checksums: tuple[int, ...], size: int, data: bytes) -> tuple[int, ...]:
    """The checksums of a file of `size` bytes that has `checksums`, with `data` behind."""
    found, view = list(checksums), memoryview(data)
    while view:
        inside = size % BLOCK_BYTES
        part, view = view[: BLOCK_BYTES - inside], view[BLOCK_BYTES - inside :]
        if inside:
            found[-1] = zlib.crc32(part, found[-1])
        else:
            found.append(zlib.crc32(part))
        size += len(part)
    return tuple(found)


def _crc(descriptor: int, begin: int, end: int) -> int:
    """CRC-32 of the bytes `begin` to `end` of a file."""
    return zlib.crc32(os.pread(descriptor, end - begin, begin))


def _sha256(rows: int, checksums: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([rows, checksums], sort_keys=True).encode()).hexdigest()
