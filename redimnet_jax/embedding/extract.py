"""Embed many recordings: decode each once, in a few static shapes, on all devices of all processes.

There are two steps: pooled features of the recordings, and embeddings of the pooled features. The first is nearly all
the work, and is the same for every projection on one backbone. While the devices compute a batch, threads decode the
ones after it.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from redimnet_jax import sharding
from redimnet_jax.compilation import LEAST_EFFORT, jit
from redimnet_jax.embedding import cache as embedding_cache
from redimnet_jax.embedding.cache import PooledCache
from redimnet_jax.embedding.segments import WHOLE_RECORDINGS, CropPolicy, Recordings, Segments
from redimnet_jax.models import buckets
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import SpeakerModel


@dataclasses.dataclass(frozen=True)
class Batch:
    """Segments of similar length, which run as `rows` rows of `size` samples; they have `samples` in all."""

    segments: np.ndarray
    rows: int
    size: int
    samples: int


# A TPU's compiler takes a third of a minute for a program, so there are fewer of them: of two lengths an octave. With
# fewer rows than a register has, it takes longer.
TPU_LENGTHS = 2
TPU_ROWS = 8


def plan(
    lengths: np.ndarray, segments: np.ndarray, budget: int, devices: int, *, on_tpu: bool | None = None
) -> list[Batch]:
    """Return batches of `segments`, indices of `lengths`, the longest first, so that lack of memory shows at once.

    `budget` bounds the samples in a batch on each device, unless that is fewer segments than one, or on a TPU eight.
    All batches of a size have the same number of rows, so that there is one program for each size. `on_tpu` is about
    the default backend where it is not given.
    """
    on_tpu = jax.default_backend() == "tpu" if on_tpu is None else on_tpu
    sizes, least = (TPU_LENGTHS, TPU_ROWS) if on_tpu else (buckets.SIZES_AN_OCTAVE, 1)
    padded = np.array([buckets.samples(int(length), sizes=sizes) for length in lengths[segments]], np.int64)
    budget = max(budget, least * int(padded.max(initial=1)))
    batches = []
    for size in np.unique(padded)[::-1].tolist():
        members = segments[padded == size]
        # As many batches as the budget asks for, evenly filled: the last one is not mostly repetition.
        count = -(-len(members) // (budget // size * devices))
        rows = max(least, buckets.round_up(-(-len(members) // (count * devices)))) * devices
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
    """Yield (segments, pooled features (segments, pool.features) float32) batch by batch, from the local devices.

    `read` gives the signal of a segment, or None where there is to be none; `workers` threads call it ahead of time.
    `progress` names a progress bar, in seconds of audio; `check` is called before every batch and may raise to stop.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    by_rows = sharding.by_rows(mesh)
    pooled_features = PooledFeatures(model.network, mesh)
    pending: collections.deque = collections.deque()
    workers = workers or min(32, (os.cpu_count() or 1) + 4)
    pool = ThreadPoolExecutor(workers)
    try:
        with _bar(progress, sum(batch.samples for batch in batches) / model.sample_rate) as bar:

            def collect():
                batch, segments, rows = pending.popleft()
                rows = np.asarray(rows)[: len(segments)]
                bar.update(batch.samples / model.sample_rate)
                return segments, rows

            loads = _ahead(pool, read, [batch.segments for batch in batches], 2 * workers)
            for batch, signals in zip(batches, loads, strict=True):
                check()
                there = [signal is not None for signal in signals]
                if any(there):
                    padded, sizes = _padded([signal for signal in signals if signal is not None], batch)
                    features, _ = pooled_features(jax.device_put({"waveform": padded, "lengths": sizes}, by_rows))
                    pending.append((batch, batch.segments[there], features))
                if len(pending) > 1:
                    yield collect()
            while pending:
                yield collect()
    finally:  # An interrupt does not wait for the rest.
        pool.shutdown(cancel_futures=True)


def _padded(signals: Sequence[np.ndarray], batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return (zero-padded signals (rows, size) float32, their lengths (rows,) int32)."""
    padded = np.zeros((batch.rows, batch.size), np.float32)
    for row, signal in enumerate(signals):
        padded[row, : len(signal)] = signal
    # Surplus rows repeat the first, since silence would make NaN.
    padded[len(signals) :] = padded[0]
    sizes = np.full(batch.rows, len(signals[0]), np.int32)
    sizes[: len(signals)] = [len(signal) for signal in signals]
    return padded, sizes


def pool_recordings(
    model: SpeakerModel,
    recordings: Recordings,
    *,
    crop_policy: CropPolicy = WHOLE_RECORDINGS,
    batch_seconds: float = 240.0,
    progress: str | None = None,
    check: Callable[[], None] = lambda: None,
    cache: PooledCache | None = None,
) -> np.ndarray:
    """Return pooled features (recordings, crops, pool.features), float32, the same on every process.

    `batch_seconds` bounds the audio in a batch on each device. Every process embeds its share on its own devices.
    `progress` names a progress bar; `check` is called before every batch and may raise to stop. What is in `cache` is
    not computed again, and what is computed is stored there batch by batch.
    Raises UserError naming the recording that is too short, cannot be read, or is not finite.
    """
    segments = Segments.of_recordings(model, recordings, crop_policy)
    share = jax.process_count()
    mine = np.arange(len(segments))[jax.process_index() :: share]
    pooled = np.zeros((len(mine), model.network.pool.features), np.float32)
    missing = mine
    keys: list[bytes] = []
    if cache is not None:
        identity = functools.cache(functools.partial(embedding_cache.identity, recordings))
        keys = [
            embedding_cache.key(
                identity(each // segments.crops), int(segments.starts[each]), int(segments.lengths[each])
            )
            for each in mine.tolist()
        ]
        missing = mine[~cache.read(keys, pooled)]
    batches = plan(segments.lengths, missing, round(batch_seconds * model.sample_rate), jax.local_device_count())
    with sharding.raise_on_all_processes():
        for found, rows in pooled_batches(model, batches, segments.read, progress=progress, check=check):
            places = found // share
            pooled[places] = rows
            if cache is not None:
                cache.append([keys[place] for place in places], rows)
    return _gathered(pooled, len(segments)).reshape(len(recordings), segments.crops, -1)


class PooledFeatures:
    """The program for the pooled features of batches of waveforms on the devices of `mesh`, compiled once a shape.

    With `replicated` every device gets the whole result; all processes must then make the object, and call it,
    together.
    """

    def __init__(self, network: SpeakerNetwork, mesh: Mesh, *, replicated: bool = False):
        graph, state = nnx.split(network)
        leaves, structure = jax.tree.flatten(state)
        whole = sharding.replicated(mesh)
        self._leaves = sharding.replicate(leaves, mesh) if replicated else jax.device_put(leaves, whole)
        output = whole if replicated else None
        self._of_one_length = pooling_program(graph, structure, mesh, output, tpu_effort=0.0)
        self._of_many_lengths = pooling_program(graph, structure, mesh, output, tpu_effort=LEAST_EFFORT)

    def __call__(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return (pooled features (batch, pool.features) float32, the other arrays of `batch`).

        `batch` holds `waveform` (batch, samples) float32, and `lengths` (batch,) int32 where rows are padded.
        """
        program = self._of_many_lengths if "lengths" in batch else self._of_one_length
        return program(self._leaves, batch)


@functools.cache
def pooling_program(
    graph: nnx.GraphDef, structure: Any, mesh: Mesh, output: NamedSharding | None = None, *, tpu_effort: float
) -> Callable:
    """Return the compiled function of (leaves of the state, batch), one for all networks of the graph.

    The graph is no argument of it: hashing the graph in every call takes milliseconds, in which a GPU waits. The
    result is sharded by rows, or as `output` says.
    """

    def pool(leaves: list, audio: dict[str, jax.Array]) -> jax.Array:
        network = nnx.merge(graph, jax.tree.unflatten(structure, leaves), copy=True)
        return network.pooled(*network.features(audio["waveform"], audio.get("lengths")))

    def call(leaves: list, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        audio = {name: batch[name] for name in ("waveform", "lengths") if name in batch}
        rest = {name: array for name, array in batch.items() if name not in audio}
        return sharding.of_own_rows(pool, mesh)(leaves, audio), rest

    options = {} if output is None else {"out_shardings": output}
    return jit(call, tpu_effort=tpu_effort, **options)


def embed_pooled(model: SpeakerModel, pooled: np.ndarray, *, block_size: int = 8192) -> np.ndarray:
    """Return raw embeddings (..., embed_dim), float32, of pooled features (..., pool.features)."""
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
    pool: ThreadPoolExecutor, read: Callable, groups: Sequence[np.ndarray], min_items: int
) -> Iterator[list[np.ndarray | None]]:
    """Yield what `read` returns for each group, while threads read the next group and at least `min_items` items."""
    waiting: collections.deque = collections.deque()
    for group in groups:
        waiting.append([pool.submit(read, item) for item in group])
        if sum(map(len, waiting)) - len(waiting[0]) >= min_items and len(waiting) > 1:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def _gathered(mine: np.ndarray, count: int) -> np.ndarray:
    """Return all `count` rows, of which each process has every `process_count`-th."""
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
