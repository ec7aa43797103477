"""Utterances kept as files: a tree with a folder a speaker, or a list of paths and speakers."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from redimnet_jax import addresses, names
from redimnet_jax.data import audio, decoding
from redimnet_jax.data.index import Bad, Entries
from redimnet_jax.errors import UserError, shown

T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 64  # files a task


@dataclasses.dataclass(frozen=True)
class Tree:
    """A folder with a folder for each speaker. Links are followed; names that begin with a dot are ignored.

    With `speakers`, other folders are ignored too.
    """

    root: Path
    speakers: frozenset[str] | None = None

    def identity(self) -> dict[str, Any]:
        # A look at every session's folder would take minutes on a network; the speakers' folders take seconds.
        folders = sorted((entry.name, entry.stat().st_mtime_ns) for entry in _scan(self.root) if entry.is_dir())
        identity = {"tree": str(self.root), "folders": hashlib.sha256(json.dumps(folders).encode()).hexdigest()}
        return identity if self.speakers is None else identity | {"speakers": sorted(self.speakers)}

    def entries(self, workers: int, progress: bool) -> Entries:
        found_names: list[str] = []
        speakers: list[str] = []
        empty: list[str] = []
        bad: list[Bad] = []
        ignored: collections.Counter[str] = collections.Counter()
        folders = []
        for entry in _scan(self.root):
            if entry.is_dir() and not entry.name.startswith("."):
                if self.speakers is None or entry.name in self.speakers:
                    folders.append(entry.name)
            elif is_audio(entry.name):
                bad.append(Bad(entry.name, "in no speaker's folder", "expected is speaker/utterance"))
            else:
                ignored[ignored_kind(entry.name)] += 1
        folders.sort()
        empty += sorted((self.speakers or frozenset()).difference(folders))
        files_of_speakers = parallel(self._files, folders, workers, progress, "speakers")
        for speaker, (files, others) in zip(folders, files_of_speakers, strict=True):
            found_names += files
            speakers += [speaker] * len(files)
            empty += [] if files else [speaker]
            ignored += others
        samples, unusable = examine(found_names, self.fetch, workers, progress)
        return Entries(found_names, speakers, samples, bad + unusable, empty_speakers=empty, ignored=ignored)

    def _files(self, speaker: str) -> tuple[list[str], collections.Counter[str]]:
        files, ignored, folders = [], collections.Counter(), [speaker]
        while folders:
            folder = folders.pop()
            for entry in _scan(self.root / folder):
                name = f"{folder}/{entry.name}"
                if entry.is_dir() and not entry.name.startswith("."):
                    if entry.is_symlink() and Path(entry.path).parent.resolve().is_relative_to(
                        os.path.realpath(entry)
                    ):
                        raise UserError(f"{entry.path} is a link to a folder that holds it; remove the link.")
                    folders.append(name)
                elif is_audio(entry.name):
                    files.append(name)
                else:
                    ignored[ignored_kind(entry.name)] += 1
        return files, ignored

    def fetch(self, name: str, record: int | None) -> Path:
        return self.root / name

    def seeks(self, name: str) -> bool:
        return decoding.seeks(self.root / name)


@dataclasses.dataclass(frozen=True)
class FileList:
    """A text file with a line `path speaker` an utterance, paths absolute or relative to `root`."""

    path: Path
    root: Path

    def identity(self) -> dict[str, Any]:
        content = hashlib.sha256(_read_bytes(self.path)).hexdigest()
        return {"list": str(self.path), "content": content, "root": str(self.root)}

    def entries(self, workers: int, progress: bool) -> Entries:
        speaker_of: dict[str, str] = {}
        for number, line in enumerate(names.read_lines(self.path, "The list"), 1):
            # As bytes, for blanks that are not ASCII belong to names.
            line = line.strip()
            fields = [names.decode(field.strip()) for field in line.rsplit(b"\t" if b"\t" in line else None, 1)]
            if not line:
                continue
            path, speaker = [names.unquote(field) for field in fields] if len(fields) == 2 else (fields[0], "")
            if not speaker or not is_audio(path):
                raise UserError(
                    f"{self.path}:{number} reads {shown(names.decode(line))} where `path speaker` is expected, the "
                    f"path ending in {', '.join(sorted(decoding.SUFFIXES))}; correct the line."
                )
            name = posixpath.normpath(path)
            if name.startswith("/") and Path(name).is_relative_to(self.root):
                name = str(Path(name).relative_to(self.root))
            if name in speaker_of:
                raise UserError(f"{self.path}:{number} lists {shown(path)} a second time; remove the line.")
            speaker_of[name] = speaker
        samples, bad = examine(list(speaker_of), self.fetch, workers, progress)
        return Entries(list(speaker_of), list(speaker_of.values()), samples, bad)

    def fetch(self, name: str, record: int | None) -> Path:
        # An absolute name stays what it is.
        return Path(name) if addresses.of(name) else self.root / name

    def seeks(self, name: str) -> bool:
        return decoding.seeks(self.fetch(name, None))


def examine(
    utterances: Sequence[str], fetch: Callable[[str, None], Path | bytes], workers: int, progress: bool
) -> tuple[np.ndarray, list[Bad]]:
    """Return the lengths of utterances, int64 (utterances,), and those that cannot be used, whose length is -1."""

    def chunk(part: range) -> tuple[list[int], list[Bad]]:
        lengths, bad = [], []
        for name in utterances[part.start : part.stop]:
            source = None
            try:
                source = fetch(name, None)
                inspection = audio.inspect(source, name=name if isinstance(source, bytes) else None)
                length = inspection.samples
                if length and not inspection.has_signal:
                    length = -1
                    bad.append(Bad(name, "without signal", f"holds no signal (its level is {inspection.level:.1e})"))
            except UserError as error:
                length = -1
                missing = isinstance(source, Path) and not addresses.is_file(source)
                bad.append(Bad(name, "missing" if missing else "unreadable", str(error)))
            lengths.append(length)
        return lengths, bad

    samples, bad = np.zeros(len(utterances), np.int64), []
    parts = [range(i, min(i + _CHUNK, len(utterances))) for i in range(0, len(utterances), _CHUNK)]
    for part, (lengths, unusable) in zip(
        parts, parallel(chunk, parts, workers, progress, "utterances", len), strict=True
    ):
        samples[part.start : part.stop] = lengths
        bad += unusable
    return samples, bad


def parallel(
    function: Callable[[T], R], items: Sequence[T], workers: int, progress: bool, label: str, size=lambda item: 1
) -> Iterator[R]:
    """Return `function` of every item, in order, by threads; a progress bar counts `size(item)` for each."""
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    total = sum(map(size, items))
    try:
        with tqdm(total=total, desc=label, disable=not progress, unit_scale=total > 10_000) as bar:
            for item, result in zip(items, pool.map(function, items), strict=True):
                bar.update(size(item))
                yield result
    finally:  # An interrupt does not wait for the rest.
        pool.shutdown(cancel_futures=True)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); check its permissions.") from error


def is_audio(name: str) -> bool:
    """Return whether a file of this name is taken for a recording."""
    base = posixpath.basename(name)
    return not base.startswith(".") and posixpath.splitext(base)[1].lower() in decoding.SUFFIXES


def ignored_kind(name: str) -> str:
    """Return what a file that is not taken for a recording is counted as."""
    return "hidden" if name.startswith(".") else posixpath.splitext(name)[1].lower() or "without suffix"


def _read_bytes(path: Path) -> bytes:
    try:
        return addresses.read(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
