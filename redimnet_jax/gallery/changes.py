"""Change a gallery: enrol and remove models. A change happens as a whole or not at all.

Every change writes new segments, then the description that names them, and then removes the segments that it
replaces. A new segment takes in all segments that are no larger, up to `MOST_UTTERANCES`, so a gallery has few
segments, and an utterance is copied some 16 times in its life at most. To remove a model, or to add to it, its
segment is written anew: nothing of a removed model is left in a file.
"""

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from redimnet_jax import addresses, buckets, files, locks
from redimnet_jax.errors import UserError, some_of
from redimnet_jax.gallery import segment as segments
from redimnet_jax.gallery.manifest import MANIFEST, Manifest, SegmentEntry, Weights
from redimnet_jax.gallery.utterances import Utterances, groups, joined
from redimnet_jax.names import one_line

PREFIX = "segment-"
LAYOUT = buckets.Layout(whole=(f"{PREFIX}*",))
# 175 MB for 256 dimensions and a model for each, which take some seconds to read and write.
MOST_UTTERANCES = 1 << 16


class Writer:
    """Changes the gallery in `folder`, a local one, while nobody else does.

    A method returns when its change is on the disk. Raise UserError, in all methods, when a file is damaged or cannot
    be written; the gallery is then as it was.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self._folder = folder
        self._manifest = manifest
        self._remove_others()

    @property
    def size(self) -> dict[str, int]:
        """The numbers of models and of utterances."""
        entries = self._manifest.segments
        return {
            "models": sum(entry.models for entry in entries),
            "utterances": sum(entry.utterances for entry in entries),
        }

    def enrol(self, utterances: Utterances, *, add: bool = False) -> None:
        """Enrol models by their `utterances`; with `add` those that are enrolled already get more utterances.

        Embeddings that are wider than the gallery are cut. Raises UserError when a model is enrolled already and
        `add` is not given, and when an embedding is narrower than the gallery or not finite.
        """
        if not len(utterances):
            raise UserError("There are no utterances to enrol; give at least one.")
        dim, shape = self._manifest.weights.dim, utterances.vectors.shape
        if len(shape) != 2 or shape[1] < dim:
            raise UserError(
                f"Embeddings have shape {shape} but the gallery's have {dim} dimensions; embed them with its model."
            )
        utterances = dataclasses.replace(utterances, vectors=utterances.vectors[:, :dim])
        models = frozenset(utterances.models)
        if "" in models:
            raise UserError("A model has an empty name; give every model a name.")
        present = _present(self._folder, self._manifest, models)
        if not add:
            _check_absent(present)
        self._replace(present, utterances)

    def remove(self, models: Iterable[str]) -> int:
        """Remove models with all their utterances; return how many utterances these were.

        Raises UserError when one is not enrolled; nothing is removed then.
        """
        models = frozenset(models)
        present = _present(self._folder, self._manifest, models)
        absent = models.difference(*present.values())
        if absent:
            raise UserError(
                f"{some_of(map(one_line, sorted(absent)))} is not enrolled; `redimnet-jax gallery list` shows who is."
            )
        before = self.size["utterances"]
        self._replace(present, None)
        return before - self.size["utterances"]

    def _utterances(self, entry: SegmentEntry) -> Utterances:
        folder = self._folder / entry.name
        return segments.read(folder, entry.files, self._manifest.weights.dim).utterances

    def _replace(self, taken: dict[SegmentEntry, frozenset[str]], added: Utterances | None) -> None:
        """Take the models `taken` out of their segments; append `added` to them, or drop them without `added`."""
        kept, old = [], []
        for entry, models in taken.items():
            utterances = self._utterances(entry)
            kept.append(utterances.of(frozenset(utterances.models) - models))
            old.append(utterances.of(models))
        renewed = kept if added is None else [*kept, *old, added]
        total = sum(map(len, renewed))
        others = []
        for entry in sorted(self._manifest.segments, key=lambda entry: entry.utterances):
            if entry in taken:
                continue
            if entry.utterances <= total <= MOST_UTTERANCES - entry.utterances:
                renewed.insert(0, self._utterances(entry))
                total += entry.utterances
            else:
                others.append(entry)
        try:
            parts = joined(renewed).parts(MOST_UTTERANCES) if total else ()
            new = [self._write(part) for part in parts]
            manifest = Manifest(self._manifest.weights, (*others, *new))
            manifest.write(self._folder)
            self._manifest = manifest
        finally:
            self._remove_others()

    def _write(self, utterances: Utterances) -> SegmentEntry:
        finite = np.isfinite(utterances.vectors).all(axis=1)
        if not finite.all():
            name = one_line(utterances.names[int(np.argmin(finite))])
            raise UserError(f"The embedding of {name} is not finite; leave it out or use float32.")
        name = f"{PREFIX}{secrets.token_hex(4)}"
        checksums = segments.write(self._folder / name, utterances)
        return SegmentEntry(name, len(groups(utterances.models)[0]), len(utterances), checksums)

    def _remove_others(self) -> None:
        """Remove the segments that the description does not name: replaced ones, and what a killed process left."""
        named = {entry.name for entry in self._manifest.segments}
        files.remove_leftovers(self._folder)
        for path in self._folder.glob(f"{PREFIX}*"):
            if path.name not in named:
                files.remove_folder(path)


@contextlib.contextmanager
def writing(path: str | Path, weights: Weights | None = None) -> Iterator[Writer]:
    """Give the `Writer` of the gallery at `path`, a folder or an address, while no other process can have one.

    With `weights` there is a new gallery where there is none. Raises UserError when the gallery is of other weights,
    is damaged, does not exist, or is being written by another process.
    """
    with buckets.writing(path, LAYOUT) as mirror, locks.locked(mirror.local):
        manifest = Manifest.read(mirror.local)
        if manifest is None:
            if weights is None:
                raise UserError(f"There is no gallery {path}; check the path, or enrol a speaker first.")
            _check_empty(mirror.local, path)
        elif weights is not None and manifest.segments:
            manifest.weights.check(path, weights)
        if manifest is None or (weights is not None and not manifest.segments):
            assert weights is not None
            manifest = Manifest(weights)
            # Before any segment, so that a folder with segments always has a description.
            manifest.write(mirror.local)
        yield Writer(mirror.local, manifest)


def check_new(path: str | Path, weights: Weights, models: Iterable[str]) -> None:
    """Raise UserError where the gallery at `path` exists, and is of other weights or has one of the `models`."""
    if addresses.is_file(f"{path}/{MANIFEST}"):
        folder = buckets.staged(path)
        manifest = Manifest.read(folder)
        if manifest is not None and manifest.segments:
            manifest.weights.check(path, weights)
            _check_absent(_present(folder, manifest, frozenset(models)))


def _present(folder: Path, manifest: Manifest, models: frozenset[str]) -> dict[SegmentEntry, frozenset[str]]:
    """Return which of the `models` are in which segment, of those that have some."""
    found = {entry: models & segments.read_models(folder / entry.name, entry.files) for entry in manifest.segments}
    return {entry: there for entry, there in found.items() if there}


def _check_absent(present: Mapping[SegmentEntry, frozenset[str]]) -> None:
    names = sorted(frozenset().union(*present.values()))
    if names:
        verb = "is" if len(names) == 1 else "are"
        raise UserError(
            f"{some_of(map(one_line, names))} {verb} enrolled already; add utterances to a model with --add, or "
            "remove it first."
        )


def _check_empty(folder: Path, path: str | Path) -> None:
    others = [name for name in os.listdir(folder) if not name.startswith(".") and name != locks.LOCK]
    if others:
        raise UserError(
            f"{path} has no {MANIFEST} but holds {some_of(sorted(others), 3)}; choose a new folder, or restore the "
            "description of the gallery."
        )
