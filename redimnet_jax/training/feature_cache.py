"""Pooled features of training crops kept on disk: with a frozen backbone they are computed once for all epochs.

Crop r is crop r // utterances of utterance r % utterances, and its waveform follows from the seed and r alone (see
`loader.crops_in_order`). The crops of an utterance that are made together share one decoding, and their rows lie side
by side (see `data.crop_order`), so that more crops only make the files longer. A folder holds

    features        (rows, pool.features), bfloat16 or float32, little-endian and nothing else
    labels          (rows,) int32: of the corpus, or with speed perturbation of its new speakers
    passes.json     how many crops of an utterance each pass makes, and their checksum
    complete.json   how many rows are whole and the checksums of their blocks, see `row_store`
    made_of.json    what the rows follow from, whose digest is in the name of the folder

Every block is compared with its checksum before anything is trained on its rows. Rows of an earlier version, which
have no checksums, are made anew.

One process writes and all read, so with several processes they see the folder under one path, or each has a copy of
one in a bucket.
"""

import collections
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from redimnet_jax import files, sharding
from redimnet_jax.data import loader
from redimnet_jax.data.crop_order import CropOrder
from redimnet_jax.data.crops import Crops
from redimnet_jax.embedding.cache import backbone_digest
from redimnet_jax.embedding.extract import PooledFeatures
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.row_store import Appender, RowStore
from redimnet_jax.training.log import TrainingLog

Array = jax.Array
# Features (batch, pool.features) float32 and labels (batch,).
Rows = tuple[Array, Array]

FEATURES, LABELS, MADE_OF, PASSES = "features", "labels", "made_of.json", "passes.json"
# Batches on their way to the devices before the first one's features are waited for.
IN_FLIGHT = 2


def folder_name(model: SpeakerModel, crops: Crops, dtype: jnp.dtype) -> str:
    """Return the name of the folder of the features of `crops`, which follows from all that they depend on."""
    return _folder_name(_made_of(model, crops, dtype))


def _folder_name(made_of: str) -> str:
    return f"features-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def _made_of(model: SpeakerModel, crops: Crops, dtype: jnp.dtype) -> str:
    made_of = {"backbone": backbone_digest(model), **crops.made_of(), "dtype": np.dtype(dtype).name}
    return json.dumps(made_of, indent=2, sort_keys=True)


class FeatureCache:
    """The rows of one backbone and one kind of crops below `folder`.

    `dtype` is that of the rows: bfloat16 halves them and rounds features to 8 bits. Raises UserError when the folder
    cannot be used or is damaged.
    """

    def __init__(self, folder: str | Path, model: SpeakerModel, crops: Crops, dtype: jnp.dtype):
        self.model = model
        self.crops = crops
        self.utterances = len(crops.corpus)
        self.features = model.network.pool.features
        self.dtype = np.dtype(dtype)
        made_of = _made_of(model, crops, dtype)
        self.folder = Path(folder) / _folder_name(made_of)
        self.classes = loader.classes(crops.corpus, crops.speed)
        row_bytes = {FEATURES: self.features * self.dtype.itemsize, LABELS: 4}
        self.store = RowStore(self.folder, row_bytes, "cache.folder")
        if jax.process_index() == 0 and not (self.folder / MADE_OF).exists():
            files.write(self.folder / MADE_OF, made_of + "\n")
        self.order = CropOrder(self.utterances, self._read_passes())

    @property
    def rows(self) -> int:
        """How many rows are whole."""
        return self.store.complete().rows

    def plan(self, crops: int) -> int:
        """Plan that what lacks of the first `crops` crops of every utterance is made in one pass.

        Return the number of rows that these crops then need. All processes must call this together. Raises UserError
        when another run appends.
        """
        passes = self.order.passes
        with sharding.raise_on_all_processes():
            if jax.process_index() == 0 and sum(passes) < crops:
                passes = self._extended_passes(crops)
        count = int(sharding.from_first_process(np.asarray(len(passes), np.int32)))
        held = np.resize(np.array([*passes, 0], np.int32), count)
        self.order = CropOrder(self.utterances, tuple(np.asarray(sharding.from_first_process(held)).tolist()))
        return self.order.rows(crops)

    def _extended_passes(self, crops: int) -> tuple[int, ...]:
        """Write and return the passes with one more, where they make fewer than `crops` crops of an utterance."""
        with self.store.appender() as appender:
            # Rows without passes are of an earlier version, which made one crop at a time.
            passes = self._read_passes() or (1,) * -(-appender.rows // self.utterances)
            if sum(passes) < crops:
                passes = (*passes, crops - sum(passes))
                entries = {"passes": passes, "sha256": _sha256(passes)}
                files.write(self.folder / PASSES, json.dumps(entries) + "\n")
        return passes

    def _read_passes(self) -> tuple[int, ...]:
        path = self.folder / PASSES
        try:
            entries = json.loads(path.read_bytes())
            passes = tuple(entries["passes"])
            if entries["sha256"] == _sha256(passes):
                return passes
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        raise UserError(f"{path} is damaged; remove the folder {self.folder} to make its rows anew.")

    def read_features(self, rows: int) -> np.ndarray:
        """Map the first `rows` rows (rows, features); raise UserError when they do not match their checksums."""
        self.store.check(FEATURES, rows)
        return np.memmap(self.folder / FEATURES, self.dtype, "r", shape=(rows, self.features))

    def read_labels(self, rows: int) -> np.ndarray:
        """Return the labels (rows,) int32 of the first `rows` rows; raise UserError when they are damaged."""
        self.store.check(LABELS, rows)
        labels = np.fromfile(self.folder / LABELS, "<i4", rows)
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise UserError(
                f"{self.folder / LABELS} has labels from {labels.min()} to {labels.max()} for {self.classes} "
                f"classes; remove the folder {self.folder} to make its rows anew."
            )
        return labels

    def writer(self) -> contextlib.AbstractContextManager[Appender | None]:
        """Return what appends rows, in the first process; raise UserError when another run appends."""
        return self.store.appender() if jax.process_index() == 0 else contextlib.nullcontext()

    def sample(self, rows: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(features float32, labels) of `count` random crops of the first `rows`, or of all when they are fewer."""
        chosen = np.sort(self.order.row(np.random.default_rng(seed).permutation(rows)[:count]))
        needed = int(chosen.max(initial=-1)) + 1
        return self.read_features(needed)[chosen].astype(np.float32), self.read_labels(needed)[chosen]


def _sha256(passes: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(passes)).encode()).hexdigest()


def extract(
    cache: FeatureCache,
    rows: int,
    *,
    batch_size: int,
    mesh: Mesh,
    log: TrainingLog,
    workers: int = 0,
    check: Callable[[], None] = lambda: None,
    unreadable: Callable[[list[tuple[int, int]]], None] = lambda found: None,
) -> None:
    """Make `cache` at least `rows` long, in batches of `batch_size` crops over all devices of all processes.

    An interrupted extraction goes on where it stopped, with any batch size and on any devices. All processes call
    `check` together before each batch; it may raise on all of them, which loses nothing. So may `unreadable`, which
    is told for each batch what could not be read and has another crop in its place (see `data.crops`), whose label is
    that of the row.
    Raises UserError for features that are not finite, with the name of the utterance.
    """
    if int(sharding.from_first_process(np.asarray(cache.rows, np.int32))) >= rows:
        return

    def name(row: int) -> str:
        return cache.crops.corpus.name(cache.order.number(row) % cache.utterances)

    with cache.writer() as writer:
        # Counted by the process that alone may append, since another run may have appended meanwhile.
        begin = int(sharding.from_first_process(np.asarray(writer.rows if writer else 0, np.int32)))
        readers = loader.Readers(workers, process_index=jax.process_index(), process_count=jax.process_count())
        batches = loader.crops_in_order(cache.crops, batch_size, begin=begin, order=cache.order, readers=readers)
        pooled_features = PooledFeatures(cache.model.network, mesh, replicated=True)
        meter, start = loader.WaitMeter(batches), time.perf_counter()

        def made() -> Iterator[Rows]:
            while True:
                check()
                batch = next(meter)
                unreadable(batches.take_unreadable())
                features, rest = pooled_features(sharding.shard_rows(batch, mesh))
                yield features, rest["label"]

        with contextlib.ExitStack() as stack:
            stack.callback(batches.close)
            bar = stack.enter_context(log.bar("features", rows, begin, "crop"))
            keep(cache, writer, made(), begin, rows, batch_size=batch_size, name=name, done=bar.update)
            speed = (rows - begin) / max(time.perf_counter() - start, 1e-9)
        waited = meter.wait_fraction()
        log.say(
            f"features of {rows - begin:,} crops, {speed:,.0f} a second; the devices waited for audio {waited:.0%}"
        )
    # The first process has committed before any other reads.
    sharding.from_first_process(np.zeros((), np.int32))


def keep(
    cache: FeatureCache,
    writer: Appender | None,
    made: Iterator[Rows],
    begin: int,
    rows: int,
    *,
    batch_size: int,
    name: Callable[[int], str],
    done: Callable[[int], Any],
) -> None:
    """Write what `made` gives, batches of rows on the devices, as rows `begin` to `rows` of a cache.

    Only the first process has a `writer`. `name` is that of the utterance of a row, `done` is told how many rows are
    written. Raises UserError for features that are not finite.
    """
    waiting: collections.deque[Rows] = collections.deque()
    given = written = begin
    while written < rows:
        if given < rows:
            waiting.append(next(made))
            given += batch_size
        if len(waiting) > IN_FLIGHT or given >= rows:
            made_rows = jax.tree.map(np.asarray, waiting.popleft())
            features, labels = (array[: rows - written] for array in made_rows)
            features = features.astype(cache.dtype)
            finite = np.isfinite(features).all(axis=1)
            if not finite.all():
                which = name(written + int(np.argmin(finite)))
                raise UserError(f"The features of {which} are NaN or Inf; repair the recording or leave it out.")
            if writer is not None:
                writer.append(features=features, labels=labels.astype("<i4"))
            written += len(labels)
            done(len(labels))
