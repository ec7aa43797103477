"""Recordings that could not be read where training needed them: counted, and listed in a text file.

A line is `name TAB position TAB reason`, the position the first sample at 16 kHz of the crop that failed. Names are
the bytes that they are on the disk, with backslash, tab and line ends escaped as \\\\, \\t, \\n and \\r.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from redimnet_jax import files, sharding
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.recordings import read_stretch
from redimnet_jax.errors import UserError

FILE = "unreadable.txt"
_ESCAPES = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}
_UNESCAPES = {escaped: plain for plain, escaped in _ESCAPES.items()}
# Recordings that a process sends to the others at once; more wait for the next time.
_SENT_AT_ONCE = 64
# Recordings that are reported one by one.
_MAX_REPORTED = 10


class Unreadable:
    """The recordings of `corpus` that could not be read so far, which may be a fraction of `max_bad` of it.

    `path` is the list, which a run that resumes reads back: recordings that can be read again leave it, and those
    that were removed stay but no longer count. `samples` is the length of a crop. All processes call every method
    together.
    """

    def __init__(self, path: Path, corpus: Any, samples: int, max_bad: float):
        self.path, self._corpus, self._samples, self._max_bad = path, corpus, samples, max_bad
        self._lines: dict[int, tuple[int, str]] = {}  # first sample and reason; in the first process
        self._waiting: dict[int, int] = {}
        self._gone = set(np.flatnonzero(corpus.gone | (corpus.samples == 0)).tolist())
        self._first = jax.process_index() == 0
        counted: list[int] = []
        if self._first and path.exists():
            counted = self._read_back()
        self._known = set(_agreed(sorted(self._lines)))
        self._counted = set(_agreed(counted))

    def __len__(self) -> int:
        """Return how many recordings count against `max_bad`."""
        return len(self._counted)

    def note(self, found: Iterable[tuple[int, int]]) -> list[str]:
        """Count and list the recordings of crops (utterance, first sample); return a report for each that is new."""
        for utterance, start in found:
            if utterance not in self._known:
                self._waiting.setdefault(utterance, start)
        sent = list(self._waiting.items())[:_SENT_AT_ONCE]
        reports = []
        for utterance, start in _gathered(sent):
            self._waiting.pop(utterance, None)
            if utterance in self._known:
                continue
            self._known.add(utterance)
            # A recording that was removed before the run was resumed does not count again.
            if utterance in self._gone:
                continue
            self._counted.add(utterance)
            if self._first:
                self._lines[utterance] = start, self._reason(utterance, start)
                reports.append(self._report(utterance, len(self._lines)))
        if reports:
            self._write()
        return [text for text in reports if text]

    def excess(self) -> str | None:
        """Return an error message if more recordings are unreadable than may be, otherwise None."""
        if len(self._counted) <= self._max_bad * len(self._corpus):
            return None
        utterance = min(self._counted)
        start, reason = self._lines.get(utterance, (0, "see the list"))
        return printable(
            f"{len(self._counted):,} of {len(self._corpus):,} training recordings could not be read, more than "
            f"data.max_bad={self._max_bad:g} allows, such as {self._corpus.name(utterance)} at "
            f"{start / SAMPLE_RATE:.1f} s ({reason}); mend or remove those in {self.path}, or raise data.max_bad, "
            "and start the same command again to go on."
        )

    def _report(self, utterance: int, number: int) -> str | None:
        if number > _MAX_REPORTED + 1:
            return None
        if number == _MAX_REPORTED + 1:
            return f"unreadable: more than {_MAX_REPORTED} recordings; all are in {self.path}"
        start, reason = self._lines[utterance]
        where = f"{self._corpus.name(utterance)} at {start / SAMPLE_RATE:.1f} s"
        return printable(f"unreadable: {where} ({reason}); another crop takes its place")

    def _reason(self, utterance: int, start: int) -> str:
        # The length of a crop at another speed differs a little, so the whole recording is tried too.
        for begin, samples in ((start, self._samples), (0, int(self._corpus.samples[utterance]))):
            try:
                read_stretch(self._corpus, utterance, begin, samples)
            except UserError as error:
                return str(error).removesuffix(".")
        return "it could be read a moment later, so the storage may be unreliable"

    def _read_back(self) -> list[int]:
        """Fill `_lines` with those of the list that are still unreadable; return the utterances that count."""
        listed = _parse(self.path)
        number = {self._corpus.name(i): i for i in range(len(self._corpus))} if listed else {}
        old = {number[name]: line for name, line in listed.items() if name in number}
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._again, old))
        counted = []
        for utterance, (reason, counts) in zip(old, found, strict=True):
            if reason is not None:
                self._lines[utterance] = old[utterance][0], reason
                counted += [utterance] * counts
        self._write()
        return counted

    def _again(self, utterance: int) -> tuple[str | None, bool]:
        """Return (why a listed recording is still unreadable or None, whether it counts)."""
        length = int(self._corpus.samples[utterance])
        try:
            read_stretch(self._corpus, utterance, 0, length)
            return None, False
        except UserError as error:
            reason = str(error).removesuffix(".")
        if not length or self._corpus.removed(utterance):
            return "it was removed", False
        try:
            # A recording that was replaced by a shorter one does not count: crops are taken from what it has.
            return reason, not 0 < len(self._corpus.read(utterance)) < length
        except UserError:
            return reason, True

    def _write(self) -> None:
        lines = []
        for utterance, (start, reason) in self._lines.items():
            name = _escaped(self._corpus.name(utterance))
            lines.append(b"\t".join((name, str(start).encode(), _escaped(reason))) + b"\n")
        files.write(self.path, b"".join(lines))


def printable(text: str) -> str:
    """Return `text` with escapes for those bytes of names that are not text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(text: str) -> bytes:
    return re.sub(rb"[\\\t\n\r]", lambda match: _ESCAPES[match[0]], text.encode("utf-8", "surrogateescape"))


def _unescaped(text: bytes) -> str:
    plain = re.sub(rb"\\[\\tnr]", lambda match: _UNESCAPES[match[0]], text)
    return plain.decode("utf-8", "surrogateescape")


def _parse(path: Path) -> dict[str, tuple[int, str]]:
    """Return {name: (first sample, reason)} of a list; raise UserError for a line of another form."""
    listed = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        fields = line.split(b"\t")
        if len(fields) != 3 or not fields[1].isdigit() or len(fields[1]) > 12:
            raise UserError(f"{path}:{number} is not a line `name TAB position TAB reason`; remove the line.")
        listed[_unescaped(fields[0])] = int(fields[1]), _unescaped(fields[2])
    return listed


def _agreed(numbers: list[int]) -> list[int]:
    """Return the `numbers` of the first process."""
    if jax.process_count() == 1:
        return numbers
    count = int(sharding.from_first_process(np.asarray(len(numbers), np.int32)))
    padded = np.zeros(count, np.int32)
    padded[: len(numbers)] = numbers[:count]
    return sharding.from_first_process(padded).tolist() if count else []


def _gathered(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the `pairs` of all processes, in the same order on each."""
    if jax.process_count() == 1:
        return pairs
    from jax.experimental import multihost_utils

    rows = np.full((_SENT_AT_ONCE, 2), -1, np.int32)
    rows[: len(pairs)] = np.reshape(pairs, (-1, 2))
    every = multihost_utils.process_allgather(rows).reshape(-1, 2)
    return [(utterance, start) for utterance, start in every.tolist() if utterance >= 0]
