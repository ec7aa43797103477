"""A corpus: which speakers say which utterances, how long these are, and how to read them.

Utterances come from a tree `speaker/session/utterance` or `speaker/utterance`, from a list of files (both in
`tree.py`), from a Kaldi folder (`kaldi.py`), or from a TFDS data set (`tfds.py`). Their index (`index.py`) is built
once, cached, and memory-mapped from then on.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from redimnet_jax import addresses, buckets, files, names
from redimnet_jax.data import audio, cn_celeb, decoding, kaldi
from redimnet_jax.data import index as corpus_index
from redimnet_jax.data.bucket_tree import BucketTree
from redimnet_jax.data.index import Bad, Entries, Index
from redimnet_jax.data.kaldi import KaldiFolders
from redimnet_jax.data.tree import FileList, Tree
from redimnet_jax.errors import UserError, shown

_log = logging.getLogger(__name__)


class Origin(Protocol):
    """Where utterances come from. It is pickled for worker processes."""

    def identity(self) -> dict[str, Any]:
        """Return JSON that changes when the index has to be built anew; it is cheap to compute."""
        ...

    def entries(self, workers: int, progress: bool) -> Entries:
        """Examine every utterance."""
        ...

    def fetch(self, name: str, record: int | None) -> Path | bytes:
        """Return what `audio.read` takes."""
        ...

    def seeks(self, name: str) -> bool:
        """Return True when an utterance is a file here that `decoding.seeks`."""
        ...


class Corpus:
    """Utterances by number; implements `recordings.Utterances`.

    A corpus is cheap to pickle and to fork, because worker processes map the same index. `speakers` are sorted.
    `digest` is the same for a tree and for the TFDS data set made of it. `summary` is one line on what the corpus
    holds and what was left out of it. `folder` holds the index, unless it is only in memory.
    """

    def __init__(
        self,
        index: Index,
        origin: Origin,
        digest: str,
        summary: str,
        folder: Path | None = None,
        left_out: Mapping[str, str] | None = None,
    ):
        self._index = index
        self._folder = folder
        self._left_out = left_out
        self.origin = origin
        self.digest = digest
        self.summary = summary
        self.speakers = index.speakers
        self.labels = index.labels
        self.sessions = index.sessions
        self.samples = index.samples

    @property
    def original_samples(self) -> np.ndarray:
        return self.samples

    @property
    def gone(self) -> np.ndarray:
        return np.zeros(len(self), bool)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name, the path in the tree or as listed, such as "id10270/x6uYqmx31kE/00001.wav"."""
        index = range(len(self))[index]
        begin, end = self._index.offsets[index : index + 2]
        return os.fsdecode(self._index.text[begin:end].tobytes())

    def source(self, index: int) -> Path | bytes:
        records = self._index.records
        return self.origin.fetch(self.name(index), None if records is None else int(records[index]))

    def seeks(self, index: int) -> bool:
        return self.origin.seeks(self.name(index))

    def removed(self, index: int) -> bool:
        try:
            source = self.source(index)
        except UserError:
            return False  # A part of a recording is cut here, and whoever reads it is told why it cannot be.
        return isinstance(source, Path) and not addresses.is_file(source)

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        source = self.source(index)
        return audio.read(source, start, samples, name=self.name(index) if isinstance(source, bytes) else None)

    def left_out(self, name: str) -> str | None:
        if self._left_out is None:
            self._left_out = {} if self._folder is None else _read_left_out(_left_out_path(self._folder))
        return self._left_out.get(name)

    def __reduce__(self):
        if self._folder is None:
            return Corpus, (self._index, self.origin, self.digest, self.summary, None, self._left_out)
        return _reopen, (self._folder, self.origin)


def _reopen(folder: Path, origin: Origin) -> Corpus:
    index, description = corpus_index.load(folder, verify=False)
    return Corpus(index, origin, description["digest"], description["summary"], folder)


def open_corpus(
    source: str | Path,
    *,
    cache_dir: str | Path | None,
    min_seconds: float = 0.5,
    max_bad: float = 0.01,
    audio_root: str | Path | None = None,
    data_dir: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Open the corpus in `source`, with the index in `cache_dir`; build the index there if needed.

    `source` is a folder `speaker/[session/]utterance`; a Kaldi folder; the folder of CN-Celeb, for its training
    speakers; a text file with a line `path speaker` for each utterance, paths relative to `audio_root` (default: the
    folder of the list); or "tfds:NAME[/CONFIG][:SPLIT]", a data set in
    `data_dir` that `tfds.build` wrote. To build the index, `workers` threads decode every file to its end. With
    `cache_dir` None the index is built and not kept.

    Files that cannot be used (missing, unreadable, without signal, shorter than `min_seconds`) and speakers left with
    none are counted in `corpus.summary` and listed in a text file beside the index. With `progress` a progress bar is
    shown and the summary is logged.

    Raises UserError when the source does not exist or is malformed, and when more than the fraction `max_bad` cannot
    be used.
    """
    if cache_dir is not None and addresses.of(cache_dir):
        given = {"audio_root": audio_root, "data_dir": data_dir, "workers": workers}
        given |= {"min_seconds": min_seconds, "max_bad": max_bad, "progress": progress}
        with buckets.writing(cache_dir, buckets.Layout(whole=("index-*",))) as mirror:
            return open_corpus(source, cache_dir=mirror.local, **given)
    origin = _open_origin(str(source), audio_root, data_dir)
    identity = {"format": corpus_index.FORMAT, "rate": audio.SAMPLE_RATE, "min_seconds": min_seconds}
    identity |= origin.identity()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = None if cache_dir is None else Path(cache_dir).expanduser().absolute() / f"index-{key}"
    left_out = None
    cached = folder is not None and folder.exists()
    if folder is not None and cached:
        index, description = corpus_index.load(folder)
    else:
        entries = origin.entries(workers or min(32, (os.cpu_count() or 1) + 4), progress)
        if not entries.names and not entries.bad:
            raise UserError(
                f"{source} holds no audio ({', '.join(sorted(decoding.SUFFIXES))}); expected are files "
                "speaker/session/utterance or speaker/utterance below it."
            )
        index, bad = corpus_index.build(entries, min_seconds)
        left_out = {entry.name: entry.kind for entry in bad}
        description: dict[str, Any] = {**_describe(index, bad, entries.ignored, folder), "identity": identity}
    # A cached index is checked too, since it may have been built with a higher limit.
    _check_usable(source, index, description, max_bad)
    if folder is not None and not cached:
        corpus_index.save(index, description, folder)
        index, description = corpus_index.load(folder)
    if progress:
        _log.info("%s: %s", source, description["summary"])
    return Corpus(index, origin, description["digest"], description["summary"], folder, left_out)


def open_utterances(folders: Sequence[Path], utterances: Iterable[str]) -> Corpus:
    """Return those of the `utterances` that are in Kaldi `folders`; look at no others, and keep no index."""
    origin = KaldiFolders(tuple(map(addresses.absolute, folders)), only=frozenset(utterances))
    entries = origin.entries(min(32, (os.cpu_count() or 1) + 4), progress=False)
    index, bad = corpus_index.build(entries, min_seconds=0)
    return Corpus(index, origin, index.digest(), "", left_out={entry.name: entry.kind for entry in bad})


def require_speakers(corpus: Corpus, source: str | Path, count: int) -> None:
    """Raise UserError unless the corpus from `source` has at least `count` speakers."""
    speakers = corpus.speakers
    if len(speakers) < count:
        raise UserError(
            f"{source} has {len(speakers)} speaker{'s' * (len(speakers) > 1)} (the first is {shown(speakers[0])}) "
            f"where at least {count} are needed; in a tree, every folder directly below the one given is a speaker."
        )


def _check_usable(source: str | Path, index: Index, description: Mapping[str, Any], max_bad: float) -> None:
    if description["bad"] > max_bad * description["total"] or not len(index.labels):
        raise UserError(
            f"{source} has too much that cannot be used, {description['bad']:,} of {description['total']:,} "
            f"(max_bad={max_bad:g}): {description['left_out']}; mend or remove these, or raise max_bad."
        )


def _open_origin(source: str, audio_root: str | Path | None, data_dir: str | Path | None) -> Origin:
    if source.startswith("tfds:"):
        from redimnet_jax.data import tfds

        return tfds.open_records(source.removeprefix("tfds:"), data_dir)
    path = addresses.absolute(source)
    if addresses.is_folder(path):
        if kaldi.is_kaldi(path):
            return KaldiFolders((path,), addresses.absolute(audio_root) if audio_root else None)
        if (speakers := cn_celeb.training_speakers(path)) is not None:
            return Tree(path / cn_celeb.DATA, speakers)
        return BucketTree(path) if addresses.of(path) else Tree(path)
    if addresses.is_file(path):
        return FileList(path, addresses.absolute(audio_root) if audio_root else path.parent)
    raise UserError(
        f"There is no {addresses.of(path) or path}; give a folder of speakers, a list of files, or tfds:NAME."
    )


def _left_out_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.bad.txt")


def _read_left_out(path: Path) -> dict[str, str]:
    """Return the kind of everything in the list that `_describe` wrote, by name; nothing when there is no list."""
    if not path.exists():
        return {}
    rows = (names.decode(line).split("\t") for line in names.read_lines(path, "The list") if line)
    return {names.unquote(row[0]): row[1] for row in rows if len(row) > 1}


def _describe(index: Index, bad: list[Bad], ignored: Counter[str], folder: Path | None) -> dict[str, Any]:
    """Return the content of `index.json`; list what was left out in a file beside `folder`."""
    left_out = ", ".join(
        f"{count:,} {kind} such as {names.quote(first)}"
        for kind, (count, first) in corpus_index.count_kinds(bad).items()
    )
    if bad and folder is not None:
        listing = _left_out_path(folder)
        rows = ((names.quote(entry.name), entry.kind, names.one_line(entry.reason)) for entry in bad)
        files.write(listing, "".join("\t".join(row) + "\n" for row in rows))
        left_out += f" (all in {listing})"
    hours = index.samples.sum() / audio.SAMPLE_RATE / 3600
    sessions = int(index.sessions.max(initial=-1)) + 1
    summary = f"{len(index.labels):,} utterances of {len(index.speakers):,} speakers"
    summary += f" in {sessions:,} sessions, {hours:,.1f} h" if sessions else f", {hours:,.1f} h"
    summary += f"; left out: {left_out}" if bad else ""
    if ignored:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(ignored.items()))
        summary += f"; ignored: {counts} files"
    return {
        "digest": index.digest(),
        "bad": len(bad),
        "total": len(index.labels) + len(bad),
        "left_out": left_out,
        "summary": summary,
    }
