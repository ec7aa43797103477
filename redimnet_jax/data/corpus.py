"""A corpus: who speaks in which utterance, for how long, and how to read it.

Utterances come from a tree `speaker/session/utterance` or `speaker/utterance`, from a list of files
(`corpus_files.py`), or from a TFDS data set (`tfds_corpus.py`). The index of them (`corpus_index.py`) is built once,
cached, and from then on memory-mapped.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from redimnet_jax import files, local_paths, names
from redimnet_jax.data import audio
from redimnet_jax.data import index as corpus_index
from redimnet_jax.data.index import Bad, Entries, Index
from redimnet_jax.data.tree import FileList, Tree
from redimnet_jax.errors import UserError


class Origin(Protocol):
    """Where utterances come from. It is pickled for worker processes."""

    def identity(self) -> dict[str, Any]:
        """JSON that changes when the index has to be built anew; cheap to find out."""

    def entries(self, workers: int, progress: bool) -> Entries:
        """Looks at every utterance."""

    def fetch(self, name: str, record: int | None) -> Path | bytes:
        """What `audio.read` takes."""


class Corpus:
    """Utterances by number. Cheap to pickle and to fork: worker processes map the same index.

    speakers: sorted names; `labels`, int32 (utterances,), are indices of them.
    sessions: int32 (utterances,), unique over the corpus; -1 where the layout has none.
    samples:  int64 (utterances,), lengths at 16 kHz.
    digest:   SHA-256 of names, speakers, sessions and lengths; the same for a tree and the TFDS data set made of it.
    summary:  one line on what the corpus holds and what was left out of it.
    """

    def __init__(self, index: Index, origin: Origin, digest: str, summary: str, folder: Path | None = None):
        self._index, self._origin, self._folder = index, origin, folder
        self.digest, self.summary = digest, summary
        self.speakers, self.labels = index.speakers, index.labels
        self.sessions, self.samples = index.sessions, index.samples

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The path in the tree or as listed, such as "id10270/x6uYqmx31kE/00001.wav": what trial lists name."""
        i = range(len(self))[i]
        return os.fsdecode(self._index.text[self._index.offsets[i] : self._index.offsets[i + 1]].tobytes())

    def source(self, i: int) -> Path | bytes:
        """The encoded audio: the path of a file, or the bytes of one."""
        records = self._index.records
        return self._origin.fetch(self.name(i), None if records is None else int(records[i]))

    def removed(self, i: int) -> bool:
        """Whether the file of an utterance is not there any more."""
        source = self.source(i)
        return isinstance(source, Path) and not source.exists()

    def read(self, i: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        """Waveform at 16 kHz, float32 (n,), from sample `start` on; n < `samples` only where the signal ends."""
        source = self.source(i)
        return audio.read(source, start, samples, name=self.name(i) if isinstance(source, bytes) else None)

    def __reduce__(self):
        if self._folder is None:
            return Corpus, (self._index, self._origin, self.digest, self.summary)
        return _reopened, (self._folder, self._origin)


def _reopened(folder: Path, origin: Origin) -> Corpus:
    index, description = corpus_index.load(folder, verify=False)
    return Corpus(index, origin, description["digest"], description["summary"], folder)


def open_corpus(
    source: str | Path,
    *,
    cache_dir: str | Path | None,
    min_seconds: float = 0.5,
    max_bad: float = 0.01,
    min_speakers: int = 1,
    audio_root: str | Path | None = None,
    data_dir: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Corpus:
    """The corpus in `source`, its index from `cache_dir`, or built and kept there (None: built and not kept).

    `source` is a folder `speaker/[session/]utterance`; a text file with a line `path speaker` an utterance, paths
    relative to `audio_root` (default: the folder of the list); or "tfds:NAME[/CONFIG][:SPLIT]", a data set that
    `tfds_corpus.py` wrote to `data_dir`. Every file is decoded to its end by `workers` threads.

    Files that cannot be used (missing, unreadable, without signal, shorter than `min_seconds`) and speakers left with
    none are counted in `corpus.summary` and all listed in a text file beside the index.

    Raises UserError when the source is not there or malformed, when more than the fraction `max_bad` cannot be used,
    and when there are fewer than `min_speakers` speakers.
    """
    origin = _origin(str(source), audio_root, data_dir)
    identity = {"format": corpus_index.FORMAT, "rate": audio.SAMPLE_RATE, "min_seconds": min_seconds}
    identity |= origin.identity()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = None if cache_dir is None else Path(cache_dir).expanduser().absolute() / f"index-{key}"
    cached = folder is not None and folder.exists()
    if cached:
        index, description = corpus_index.load(folder)
    else:
        entries = origin.entries(workers or min(32, (os.cpu_count() or 1) + 4), progress)
        if not entries.names and not entries.bad:
            raise UserError(
                f"{source} holds no audio ({', '.join(sorted(audio.SUFFIXES))}); expected are files "
                "speaker/session/utterance or speaker/utterance below it."
            )
        index, bad = corpus_index.build(entries, min_seconds)
        description = _description(index, bad, entries.ignored, folder) | {"identity": identity}
    # Also of a cached index, which may have been built with a higher limit.
    if description["bad"] > max_bad * description["total"] or not len(index.labels):
        raise UserError(
            f"{source} has too much that cannot be used, {description['bad']:,} of {description['total']:,} "
            f"(max_bad={max_bad:g}): {description['left_out']}; mend or remove these, or raise max_bad."
        )
    count = len(index.speakers)
    if count < min_speakers:
        raise UserError(
            f"{source} has {count} speaker{'s' * (count > 1)} (the first is {index.speakers[0]!r}) where at least "
            f"{min_speakers} are needed; in a tree, every folder directly below the one given is a speaker."
        )
    if folder is not None and not cached:
        corpus_index.save(index, description, folder)
        index, description = corpus_index.load(folder)
    if progress:
        print(f"{source}: {description['summary']}", file=sys.stderr)
    return Corpus(index, origin, description["digest"], description["summary"], folder)


def _origin(source: str, audio_root: str | Path | None, data_dir: str | Path | None) -> Origin:
    local_paths.check(source, "The corpus")
    if source.startswith("tfds:"):
        from redimnet_jax.data import tfds as tfds_corpus

        return tfds_corpus.Records.of(source.removeprefix("tfds:"), data_dir)
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return Tree(path)
    if path.is_file():
        return FileList(path, Path(audio_root).expanduser().absolute() if audio_root else path.parent)
    raise UserError(f"There is no {path}; give a folder of speakers, a list of files, or tfds:NAME.")


def _description(index: Index, bad: list[Bad], ignored: Counter[str], folder: Path | None) -> dict[str, Any]:
    """What `index.json` says besides; lists what was left out in a file beside `folder`."""
    left_out = ", ".join(
        f"{count:,} {kind} such as {names.quote(first)}" for kind, (count, first) in corpus_index.kinds(bad).items()
    )
    if bad and folder is not None:
        listing = folder.with_name(f"{folder.name}.bad.txt")
        rows = ((names.quote(entry.name), entry.kind, names.one_line(entry.reason)) for entry in bad)
        files.write(listing, "".join("\t".join(row) + "\n" for row in rows))
        left_out += f" (all in {listing})"
    hours = index.samples.sum() / audio.SAMPLE_RATE / 3600
    sessions = int(index.sessions.max(initial=-1)) + 1
    summary = f"{len(index.labels):,} utterances of {len(index.speakers):,} speakers"
    summary += f" in {sessions:,} sessions, {hours:,.1f} h" if sessions else f", {hours:,.1f} h"
    summary += f"; left out: {left_out}" if bad else ""
    if ignored:
        summary += (
            "; ignored: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(ignored.items())) + " files"
        )
    return {
        "digest": index.digest(),
        "bad": len(bad),
        "total": len(index.labels) + len(bad),
        "left_out": left_out,
        "summary": summary,
    }
