"""Embeddings of many recordings: each decoded once, in a few static shapes, on all devices of all processes.

In two steps, since the first is nearly all the work and the same for every projection on one backbone: pooled
features of the recordings, and embeddings of the pooled features.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from redimnet_jax import buckets, embedding_cache
from redimnet_jax.embedding_cache import PooledCache
from redimnet_jax.errors import UserError
from redimnet_jax.model import SpeakerModel


class Recordings(Protocol):
    """What can be embedded: a `Corpus` is one."""

    samples: np.ndarray

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Windows:
    """What of a recording is embedded.

    All of it, up to `max_seconds` from its start; or, where `crop_seconds` is given, `crops` windows of that length
    at even distances (one: the middle). A recording shorter than the window is used whole.
    """

    crop_seconds: float | None = None
    crops: int = 1
    max_seconds: float = 60.0

    def of(self, samples: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """(starts, lengths), each (recordings, crops) in samples."""
        seconds = self.max_seconds if self.crop_seconds is None else self.crop_seconds
        crops = 1 if self.crop_seconds is None else self.crops
        lengths = np.minimum(samples, round(seconds * sample_rate))[:, None].repeat(crops, axis=1)
        room = samples[:, None] - lengths
        if self.crop_seconds is None:
            return np.zeros_like(room), lengths
        share = np.array([0.5]) if crops == 1 else np.linspace(0.0, 1.0, crops)
        return np.floor(room * share).astype(np.int64), lengths


def pool_recordings(
    model: SpeakerModel,
    recordings: Recordings,
    *,
    windows: Windows = Windows(),
    batch_seconds: float = 240.0,
    progress: str | None = None,
    check: Callable[[], None] = lambda: None,
    cache: PooledCache | None = None,
) -> np.ndarray:
    """Pooled features (recordings, crops, pool.features), float32, the same on every process.

    `batch_seconds` bounds the audio in a batch on each device. Every process embeds its share on its own devices.
    `progress` names a progress bar; `check` is called before every batch and may raise to stop. What is in `cache` is
    not computed again, and what is computed is kept there batch by batch.
    Raises UserError naming the recording that is too short or not finite.
    """
    starts, lengths = (x.reshape(-1) for x in windows.of(np.asarray(recordings.samples), model.sample_rate))
    crops = len(starts) // max(len(recordings), 1)
    short = np.flatnonzero(lengths < model.min_samples)
    if len(short):
        raise UserError(
            f"{recordings.name(short[0] // crops)} has {lengths[short[0]]} samples, too short for an embedding "
            f"(at least {model.min_samples}); leave it out of the list."
        )
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    mine = np.arange(len(starts))[jax.process_index() :: jax.process_count()]
    pooled = np.zeros((len(mine), model.network.pool.features), np.float32)
    missing = np.arange(len(mine))
    if cache is not None:
        identity = functools.cache(functools.partial(embedding_cache.identity, recordings))
        keys = [embedding_cache.key(identity(item // crops), starts[item], lengths[item]) for item in mine]
        missing = np.flatnonzero(~cache.read(keys, pooled))
    batches = [
        (size, rows, missing[places])
        for size, rows, places in _batches(
            lengths[mine[missing]], round(batch_seconds * model.sample_rate), len(mesh.devices)
        )
    ]

    def read(item: int) -> np.ndarray:
        signal = recordings.read(item // crops, int(starts[item]), int(lengths[item]))
        if not np.isfinite(signal).all():
            raise UserError(f"{recordings.name(item // crops)} has NaN or Inf; repair it or leave it out.")
        return signal

    graph, state = nnx.split(model.network)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    rows_sharding = NamedSharding(mesh, PartitionSpec("data"))
    pending: collections.deque = collections.deque()
    with _bar(progress, len(missing)) as bar, ThreadPoolExecutor() as pool:

        def collect():
            places, rows = pending.popleft()
            pooled[places] = np.asarray(rows)[: len(places)]
            if cache is not None:
                cache.append([keys[place] for place in places], pooled[places])
            bar.update(len(places))

        loads = _ahead(pool, read, [mine[places] for _, _, places in batches])
        for (size, rows, places), signals in zip(batches, loads, strict=True):
            check()
            padded = np.zeros((rows, size), np.float32)
            for row, signal in enumerate(signals):
                padded[row, : len(signal)] = signal
            # Rows that nobody asked for repeat the first: silence would only make NaN.
            padded[len(signals) :] = padded[0]
            sizes = np.full(rows, len(signals[0]), np.int32)
            sizes[: len(signals)] = [len(signal) for signal in signals]
            inputs = jax.device_put((padded, sizes), rows_sharding)
            pending.append((places, _pooled(graph, state, *inputs)))
            if len(pending) > 1:
                collect()
        while pending:
            collect()
    return _gathered(pooled, len(starts)).reshape(len(recordings), crops, -1)


@functools.partial(jax.jit, static_argnums=0)
def _pooled(graph, state, waveform, lengths):
    network = nnx.merge(graph, state)
    return network.pooled(*network.features(waveform, lengths))


def embed_pooled(model: SpeakerModel, pooled: np.ndarray, *, block_size: int = 8192) -> np.ndarray:
    """Raw embeddings (..., embed_dim), float32, of pooled features (..., pool.features)."""
    graph, state = nnx.split(model.network)
    rows = pooled.reshape(-1, pooled.shape[-1])
    blocks = [_embedded(graph, state, rows[start : start + block_size]) for start in range(0, len(rows), block_size)]
    return np.concatenate([np.asarray(block) for block in blocks]).reshape(*pooled.shape[:-1], -1)


@functools.partial(jax.jit, static_argnums=0)
def _embedded(graph, state, pooled):
    return nnx.merge(graph, state).embed(pooled)


def _batches(lengths: np.ndarray, budget: int, devices: int) -> Iterator[tuple[int, int, list[int]]]:
    """(padded length, rows, places): one number of rows for a padded length, so one program for each length."""
    largest = max((buckets.samples(int(length)) for length in lengths), default=1)
    for size in sorted({buckets.samples(int(length)) for length in lengths}):
        places = [i for i, length in enumerate(lengths) if buckets.samples(int(length)) == size]
        rows = max(1, max(budget, largest) // size)
        rows = buckets.round_up(min(rows, -(-len(places) // devices))) * devices
        for start in range(0, len(places), rows):
            yield size, rows, places[start : start + rows]


def _ahead(pool: ThreadPoolExecutor, read: Callable, groups: Sequence[Sequence[int]]) -> Iterator[list[np.ndarray]]:
    """The recordings of each group, with one group more being decoded meanwhile."""
    waiting: collections.deque = collections.deque()
    for group in groups:
        waiting.append([pool.submit(read, item) for item in group])
        if len(waiting) > 1:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def _gathered(mine: np.ndarray, count: int) -> np.ndarray:
    """All rows, of which every process has each `process_count`-th."""
    processes = jax.process_count()
    if processes == 1:
        return mine
    from jax.experimental import multihost_utils

    equal = np.zeros((-(-count // processes), mine.shape[1]), np.float32)
    equal[: len(mine)] = mine
    every = multihost_utils.process_allgather(equal)
    return every.transpose(1, 0, 2).reshape(-1, mine.shape[1])[:count]


def _bar(description: str | None, total: int):
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="utt", disable=description is None, leave=False)
