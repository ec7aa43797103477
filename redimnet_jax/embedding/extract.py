"""Embeddings of many recordings: each decoded once, in a few static shapes, on all devices of all processes.

In two steps, since the first is nearly all the work and the same for every projection on one backbone: pooled
features of the recordings, and embeddings of the pooled features. While the devices compute a batch, threads decode
the ones after it.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from redimnet_jax import sharding
from redimnet_jax.compilation import jit
from redimnet_jax.data import audio
from redimnet_jax.data.recordings import Recordings
from redimnet_jax.embedding import cache as embedding_cache
from redimnet_jax.embedding.cache import PooledCache
from redimnet_jax.errors import UserError
from redimnet_jax.models import buckets
from redimnet_jax.models.speaker_model import SpeakerModel


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


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What is embedded of `recordings`: `crops` pieces of each, one recording after another.

    `starts` and `lengths` (pieces,) are in samples.
    """

    recordings: Recordings
    crops: int
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, model: SpeakerModel, recordings: Recordings, windows: Windows) -> "Pieces":
        """Raises UserError when `model` is of another sample rate, and when a recording is too short for it."""
        if model.sample_rate != audio.SAMPLE_RATE:
            raise UserError(
                f"The model was trained at {model.sample_rate} Hz but recordings are read at {audio.SAMPLE_RATE} Hz; "
                "embed signals of its rate with model.embed."
            )
        starts, lengths = windows.of(np.asarray(recordings.samples), model.sample_rate)
        pieces = cls(recordings, starts.shape[1], starts.reshape(-1), lengths.reshape(-1))
        short = np.flatnonzero(pieces.lengths < model.min_samples)
        if len(short):
            raise UserError(
                f"{pieces.name(short[0])} has {pieces.lengths[short[0]]} samples, too short for an embedding "
                f"(at least {model.min_samples}); leave it out of the list."
            )
        return pieces

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, piece: int) -> str:
        """The name of its recording."""
        return self.recordings.name(int(piece) // self.crops)

    def read(self, piece: int) -> np.ndarray:
        """The waveform, float32; UserError when it cannot be read or is not finite."""
        start, length = int(self.starts[piece]), int(self.lengths[piece])
        signal = self.recordings.read(int(piece) // self.crops, start, length)
        if not np.isfinite(signal).all():
            raise UserError(f"{self.name(piece)} has NaN or Inf; repair it or leave it out.")
        return signal


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pieces of nearly one length, that run as `rows` rows of `size` samples; `samples` in them all."""

    pieces: np.ndarray
    rows: int
    size: int
    samples: int


def plan(lengths: np.ndarray, pieces: np.ndarray, budget: int, devices: int) -> list[Batch]:
    """Batches of `pieces`, indices of `lengths`, the longest first: what needs most memory fails at once.

    `budget` bounds the samples in a batch on each device, unless a single piece has more. All batches of a size have
    the same number of rows: one program for each size.
    """
    padded = np.array([buckets.samples(int(length)) for length in lengths[pieces]], np.int64)
    budget = max(budget, padded.max(initial=1))
    batches = []
    for size in np.unique(padded)[::-1].tolist():
        members = pieces[padded == size]
        # As many batches as the budget asks for, evenly filled: the last one is not mostly repetition.
        count = -(-len(members) // (budget // size * devices))
        rows = buckets.round_up(-(-len(members) // (count * devices))) * devices
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            batches.append(Batch(chosen, rows, size, int(lengths[chosen].sum())))
    return batches


def pooled_batches(
    model: SpeakerModel,
    batches: Sequence[Batch],
    read: Callable[[int], np.ndarray | None],
    *,
    workers: int | None = None,
    progress: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pieces, their pooled features (pieces, pool.features), float32) batch by batch, on the local devices.

    `read` gives the signal of a piece, or None where there is to be none; `workers` threads call it ahead of time.
    `progress` names a progress bar, in seconds of audio; `check` is called before every batch and may raise to stop.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    rows_sharding = NamedSharding(mesh, PartitionSpec("data"))
    graph, state = nnx.split(model.network)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    pending: collections.deque = collections.deque()
    workers = workers or min(32, (os.cpu_count() or 1) + 4)
    pool = ThreadPoolExecutor(workers)
    try:
        with _bar(progress, sum(batch.samples for batch in batches) / model.sample_rate) as bar:

            def collect():
                batch, pieces, rows = pending.popleft()
                rows = np.asarray(rows)[: len(pieces)]
                bar.update(batch.samples / model.sample_rate)
                return pieces, rows

            loads = _ahead(pool, read, [batch.pieces for batch in batches], 2 * workers)
            for batch, signals in zip(batches, loads, strict=True):
                check()
                there = [signal is not None for signal in signals]
                if any(there):
                    padded, sizes = _padded([signal for signal in signals if signal is not None], batch)
                    inputs = jax.device_put((padded, sizes), rows_sharding)
                    pending.append((batch, batch.pieces[there], _pooled(graph, state, *inputs)))
                if len(pending) > 1:
                    yield collect()
            while pending:
                yield collect()
    finally:  # An interrupt does not wait for the rest.
        pool.shutdown(cancel_futures=True)


def _padded(signals: Sequence[np.ndarray], batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(zero-padded signals (rows, size), their lengths (rows,))."""
    padded = np.zeros((batch.rows, batch.size), np.float32)
    for row, signal in enumerate(signals):
        padded[row, : len(signal)] = signal
    # Rows that nobody asked for repeat the first: silence would only make NaN.
    padded[len(signals) :] = padded[0]
    sizes = np.full(batch.rows, len(signals[0]), np.int32)
    sizes[: len(signals)] = [len(signal) for signal in signals]
    return padded, sizes


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
    Raises UserError naming the recording that is too short, cannot be read, or is not finite.
    """
    pieces = Pieces.of(model, recordings, windows)
    share = jax.process_count()
    mine = np.arange(len(pieces))[jax.process_index() :: share]
    pooled = np.zeros((len(mine), model.network.pool.features), np.float32)
    missing = mine
    if cache is not None:
        identity = functools.cache(functools.partial(embedding_cache.identity, recordings))
        keys = [
            embedding_cache.key(identity(piece // pieces.crops), pieces.starts[piece], pieces.lengths[piece])
            for piece in mine
        ]
        missing = mine[~cache.read(keys, pooled)]
    batches = plan(pieces.lengths, missing, round(batch_seconds * model.sample_rate), jax.local_device_count())
    with sharding.raise_on_all_processes():
        for found, rows in pooled_batches(model, batches, pieces.read, progress=progress, check=check):
            places = found // share
            pooled[places] = rows
            if cache is not None:
                cache.append([keys[place] for place in places], rows)
    return _gathered(pooled, len(pieces)).reshape(len(recordings), pieces.crops, -1)


@functools.partial(jit, static_argnums=0)
def _pooled(graph, state, waveform, lengths):
    network = nnx.merge(graph, state)
    return network.pooled(*network.features(waveform, lengths))


def embed_pooled(model: SpeakerModel, pooled: np.ndarray, *, block_size: int = 8192) -> np.ndarray:
    """Raw embeddings (..., embed_dim), float32, of pooled features (..., pool.features)."""
    graph, state = nnx.split(model.network)
    rows = pooled.reshape(-1, pooled.shape[-1])
    # Filled up to one of a few numbers of rows: a bounded number of programs.
    filled = np.concatenate([rows, np.repeat(rows[:1], buckets.round_up(len(rows)) - len(rows), axis=0)])
    blocks = [
        _embedded(graph, state, filled[start : start + block_size]) for start in range(0, len(rows), block_size)
    ]
    whole = np.concatenate([np.asarray(block) for block in blocks])[: len(rows)]
    return whole.reshape(*pooled.shape[:-1], -1)


@functools.partial(jit, static_argnums=0)
def _embedded(graph, state, pooled):
    return nnx.merge(graph, state).embed(pooled)


def _ahead(
    pool: ThreadPoolExecutor, read: Callable, groups: Sequence[Sequence[int]], least: int
) -> Iterator[list[np.ndarray | None]]:
    """What `read` gives for each group, while one group more, and `least` items or more, are on their way."""
    waiting: collections.deque = collections.deque()
    for group in groups:
        waiting.append([pool.submit(read, item) for item in group])
        if sum(map(len, waiting)) - len(waiting[0]) >= least and len(waiting) > 1:
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


def _bar(description: str | None, seconds: float):
    from tqdm import tqdm

    # Of audio: recordings come by length, so their number says little about the time that is left.
    form = "{l_bar}{bar}| {n:,.0f} of {total:,.0f} s of audio [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    return tqdm(total=seconds, desc=description, unit="s", bar_format=form, disable=description is None, leave=False)
