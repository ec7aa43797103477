"""Training steps on cached pooled features: many steps a dispatch, and every batch is made on the device.

Utterances are dealt to `strata`, utterance u to stratum u % strata, and a batch has as many of each: a stratified
sample, for which every device needs its own rows alone. Nothing travels between devices but what the step itself
passes; its statistics are of the whole batch. In an epoch every stratum is permuted by (seed, epoch),
and an utterance goes through its crops from a random one on, so that it repeats none before it has had all.
A batch is a function of the seed, the strata, the epoch and its place in it, and of nothing else.

The features lie in the devices' memory, or, where they do not fit, are gathered by the host from the memory-mapped
file, a chunk of steps ahead.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from redimnet_jax import sharding
from redimnet_jax.errors import UserError
from redimnet_jax.training.step import Arrays, TrainState

Array = jax.Array

# Of the host's gathered features on one device, of which two chunks exist at a time.
CHUNK_BYTES = 2**28
STRATA = 64
# Folded into the seed beside the epochs, whose numbers are smaller.
CROP_ORDER = 2**31


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the crops of a corpus lie: row `crop * width + u // strata` of stratum `u % strata` is of utterance u.

    `per_epoch` crops of every utterance make an epoch.
    """

    utterances: int
    crops: int
    strata: int
    per_epoch: int = 1

    @property
    def width(self) -> int:
        """Utterances of the largest stratum; in a smaller one the last row of every crop is empty."""
        return -(-self.utterances // self.strata)

    def epoch_steps(self, batch_size: int) -> int:
        """Whole batches of an epoch; UserError when there is none."""
        if self.utterances < self.strata:
            raise UserError(
                f"The {self.utterances} utterances are fewer than the {self.strata} parts that the cached features "
                "are dealt to, so lower the batch size or set cache.crops to 0."
            )
        if batch_size % self.strata:
            raise UserError(
                f"The batch size {batch_size} is no multiple of the {self.strata} parts that the cached features are "
                "dealt to, so make it one."
            )
        steps = self.utterances * self.per_epoch // batch_size
        if not steps:
            raise UserError(
                f"The batch size {batch_size} exceeds the {self.utterances * self.per_epoch} crops of an epoch, so "
                "lower it or raise data.crops_per_utterance."
            )
        return steps

    def order(self, seed: int | Array, epoch: int | Array) -> Array:
        """The rows of an epoch in their order, int32 (strata, per_epoch * width).

        In a smaller stratum another utterance stands in for the one that it lacks, and comes last.
        """
        key, index = jax.random.key(seed), jnp.arange(self.per_epoch * self.width, dtype=jnp.int32)
        utterance, turn = index % self.width, index // self.width

        def of(stratum: Array) -> Array:
            shuffle, crops = (
                jax.random.fold_in(jax.random.fold_in(key, number), stratum) for number in (epoch, CROP_ORDER)
            )
            first = jax.random.randint(crops, (self.width,), 0, self.crops)[utterance]
            crop = (first + epoch * self.per_epoch + turn) % self.crops
            # The order of random numbers; equal ones are so few that keeping their order makes no difference.
            places = jax.random.bits(shuffle, index.shape) >> 1
            own = utterance * self.strata + stratum < self.utterances
            rows = crop * self.width + jnp.where(own, utterance, 0)
            return rows[jnp.argsort(jnp.where(own, places, jnp.uint32(2**32 - 1)))]

        return jax.vmap(of)(jnp.arange(self.strata, dtype=jnp.int32)).astype(jnp.int32)

    def file_rows(self, stratum: int, rows: np.ndarray) -> np.ndarray:
        """The rows of a `FeatureCache` that `rows` of a stratum are."""
        crop, place = np.divmod(rows.astype(np.int64), self.width)
        return crop * self.utterances + place * self.strata + stratum

    def dealt(self, array: np.ndarray, mesh: Mesh) -> Array:
        """`array` (crops * utterances, ...), of a cache, on the devices by strata: (strata, crops * width, ...)."""
        shape = (self.strata, self.crops * self.width, *array.shape[1:])
        by_crop = array.reshape(self.crops, self.utterances, *array.shape[1:])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if self.strata == 1:
                return array[None]
            strata = range(self.strata)[index[0]]
            out = np.zeros((len(strata), self.crops, self.width, *array.shape[1:]), array.dtype)
            for place, stratum in enumerate(strata):
                mine = by_crop[:, stratum :: self.strata]
                out[place, :, : mine.shape[1]] = mine
            return out.reshape(len(strata), *shape[1:])

        by_rows = sharding.by_rows(mesh)
        parts = []
        for device, index in by_rows.addressable_devices_indices_map(shape).items():
            # One after the other, so that the host holds the part of one device at most.
            parts.append(jax.block_until_ready(jax.device_put(part(index), device)))
        return jax.make_array_from_single_device_arrays(shape, by_rows, parts)


def choose_strata(batch_size: int, devices: int) -> int:
    """How many strata a run has: as many on any number of devices that divides them, which then change no batch."""
    strata = math.gcd(batch_size, STRATA)
    return devices if strata % devices else strata


def compile_loop(step: Callable, mesh: Mesh, per_stratum: int, most: int, *arguments: Any) -> Callable:
    """loop(state, frozen, features, labels, rows, begin, count) -> (state, figures) of `count` <= `most` steps.

    `step` is that of `train_step.make_step`. `features` (strata, n, width), `labels` (strata, n) and `rows`
    (strata, m) are sharded by strata over the mesh; step `begin` + i takes the next `per_stratum` rows of every
    stratum from `(begin + i) * per_stratum` on. `figures` are those of the steps, each with a leading axis of
    `most`, and zeros beyond `count`. One program runs any number of steps, so no result depends on how many a
    dispatch has. It is compiled for `arguments`, where the state and what is frozen stay where they lie.
    """

    def batch(features: Array, labels: Array, rows: Array, number: Array) -> tuple[Array, Array]:
        chosen = jax.lax.dynamic_slice_in_dim(rows, number * per_stratum, per_stratum, axis=1)
        take = jax.vmap(lambda x, r: x.at[r].get(mode="promise_in_bounds"))
        pooled = take(features, chosen).astype(jnp.float32)
        return pooled.reshape(-1, pooled.shape[-1]), take(labels, chosen).reshape(-1)

    rows_of = PartitionSpec(sharding.AXIS)
    sharded_batch = jax.shard_map(
        batch, mesh=mesh, in_specs=(rows_of, rows_of, rows_of, PartitionSpec()), out_specs=rows_of
    )

    def loop(state: TrainState, frozen: Arrays, features, labels, rows, begin: Array, count: Array):
        def one(state: TrainState, number: Array):
            pooled, label = sharded_batch(features, labels, rows, number)
            return step(state, frozen, {"pooled": pooled, "label": label})

        def body(i: Array, carry):
            state, figures = carry
            state, found = one(state, begin + i)
            return state, jax.tree.map(lambda all, x: all.at[i].set(x), figures, found)

        shapes = jax.eval_shape(one, state, begin)[1]
        figures = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, figures))

    whole, rows_on = sharding.replicated(mesh), sharding.by_rows(mesh)
    state, frozen = sharding.tree_shardings(arguments[:2], mesh)
    shardings = (state, frozen, rows_on, rows_on, rows_on, whole, whole)
    jitted = jax.jit(loop, in_shardings=shardings, out_shardings=(state, whole), donate_argnums=0)
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments).compile()


class CachedSteps:
    """The steps of a run on cached features.

    `step` is that of `train_step.make_step`; `features` (crops * utterances, width) and `labels` are those of a
    `FeatureCache`. They are put into the devices' memory where they take no more than `memory_share` of it, and are
    else read from where they are, as they are needed. At most `most` steps are one dispatch.
    """

    def __init__(
        self,
        step: Callable,
        mesh: Mesh,
        layout: Layout,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        most: int = 100,
        memory_share: float = 0.6,
    ):
        if layout.strata % mesh.size:
            raise UserError(
                f"The cached features are dealt to {layout.strata} parts, which {mesh.size} devices cannot share "
                "alike, so go on with as many devices as the run was started on."
            )
        self.epoch_steps = layout.epoch_steps(batch_size)
        per_stratum = batch_size // layout.strata
        size = layout.crops * layout.width * layout.strata // mesh.size * features.itemsize * features.shape[1]
        self.on_device = size <= memory_share * device_memory(mesh)
        if self.on_device:
            self._source: Resident | Streamed = Resident(layout, mesh, features, labels, seed)
            self.most = most
        else:
            step_bytes = batch_size // mesh.size * features.itemsize * features.shape[1]
            self.most = max(1, min(most, CHUNK_BYTES // step_bytes))
            self._source = Streamed(
                layout, mesh, features, labels, seed, self.most * per_stratum, self.epoch_steps * per_stratum
            )
        self._mesh, self._per_stratum = mesh, per_stratum
        self._step = step
        self._compiled: Callable | None = None
        self._waited, self._since = 0.0, time.perf_counter()

    def run(
        self, state: TrainState, frozen: Arrays, begin: int, end: int
    ) -> tuple[TrainState, dict[str, Array], int]:
        """(state, figures, reached) after the steps `begin` to `reached` - 1; `reached` is `end` or before it.

        Steps count from the start of the first epoch on the cache, and a call keeps to one epoch. The state is
        donated; `figures` have a leading axis of which the first `reached` - `begin` entries are of the steps.
        Nothing is waited for; the first call compiles.
        """
        epoch, place = divmod(begin, self.epoch_steps)
        steps = min(end - begin, self.epoch_steps - place, self.most)
        if not self.on_device:
            # Chunks begin at multiples of their length, wherever a call does.
            steps = min(steps, self.most - place % self.most)
        start = time.perf_counter()
        arrays, first = self._source.at(epoch, place * self._per_stratum)
        # What is in the devices' memory is not waited for.
        self._waited += 0.0 if self.on_device else time.perf_counter() - start
        numbers = np.asarray(first // self._per_stratum, np.int32), np.asarray(steps, np.int32)
        arguments = (
            state,
            frozen,
            *arrays,
            *(jax.device_put(number, sharding.replicated(self._mesh)) for number in numbers),
        )
        if self._compiled is None:
            self._compiled = compile_loop(self._step, self._mesh, self._per_stratum, self.most, *arguments)
        return *self._compiled(*arguments), begin + steps

    def wait_fraction(self) -> float:
        """The part of the time since the last call (or the start) that was spent waiting for features."""
        now = time.perf_counter()
        fraction = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return fraction

    def close(self) -> None:
        """Ends what reads ahead."""
        self._source.close()


class Resident:
    """Features in the devices' memory."""

    def __init__(self, layout: Layout, mesh: Mesh, features: np.ndarray, labels: np.ndarray, seed: int):
        self._features, self._labels = layout.dealt(features, mesh), layout.dealt(labels, mesh)
        self._order = functools.lru_cache(1)(
            functools.partial(jax.jit(layout.order, out_shardings=sharding.by_rows(mesh)), seed)
        )

    def at(self, epoch: int, place: int) -> tuple[tuple[Array, Array, Array], int]:
        """((features, labels, rows), the place in `rows`) for place `place` of every stratum in `epoch`."""
        return (self._features, self._labels, self._order(epoch)), place

    def close(self) -> None:
        pass


class Streamed:
    """Features that the host reads in chunks of `length` rows of every stratum, the next one while one is used.

    An epoch takes `epoch_rows` of them.
    """

    def __init__(
        self,
        layout: Layout,
        mesh: Mesh,
        features: np.ndarray,
        labels: np.ndarray,
        seed: int,
        length: int,
        epoch_rows: int,
    ):
        self._layout, self._features, self._labels = layout, features, labels
        self._length, self._epoch_rows = length, epoch_rows
        self._sharding = sharding.by_rows(mesh)
        self._rows = self._placed(lambda strata: np.tile(np.arange(length, dtype=np.int32), (len(strata), 1)), ())
        # The whole order, on one device of this process.
        self._order = functools.lru_cache(2)(lambda epoch: np.asarray(jax.jit(layout.order)(seed, epoch)))
        self._reader = concurrent.futures.ThreadPoolExecutor(1)
        self._chunks: dict[tuple[int, int], concurrent.futures.Future] = {}

    def at(self, epoch: int, place: int) -> tuple[tuple[Array, Array, Array], int]:
        """As of `Resident`."""
        wanted = epoch, place // self._length
        following = epoch, wanted[1] + 1
        if following[1] * self._length >= self._epoch_rows:
            following = epoch + 1, 0
        self._chunks = {key: self._chunks.get(key) or self._ask(*key) for key in (wanted, following)}
        return (*self._chunks[wanted].result(), self._rows), place % self._length

    def _ask(self, epoch: int, chunk: int) -> concurrent.futures.Future:
        begin = chunk * self._length
        end = min(begin + self._length, self._epoch_rows)
        return self._reader.submit(self._gather, self._order(epoch)[:, begin:end])

    def _gather(self, order: np.ndarray) -> tuple[Array, Array]:
        # A chunk at the end of an epoch may be shorter; what stands in for the rest is not used.
        order = np.pad(order, ((0, 0), (0, self._length - order.shape[1])))

        def of(array: np.ndarray) -> Callable[[range], np.ndarray]:
            return lambda strata: np.stack([array[self._layout.file_rows(s, order[s])] for s in strata])

        return self._placed(of(self._features), self._features.shape[1:]), self._placed(of(self._labels), ())

    def _placed(self, of: Callable[[range], np.ndarray], shape: tuple[int, ...]) -> Array:
        """The array (strata, length, *shape) whose strata `of` gives."""
        strata = range(self._layout.strata)
        return jax.make_array_from_callback(
            (len(strata), self._length, *shape), self._sharding, lambda index: of(strata[index[0]])
        )

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)


def device_memory(mesh: Mesh) -> int:
    """Bytes of memory that every device has for arrays; on a CPU its share of the machine's."""
    sizes = []
    for device in mesh.local_devices:
        statistics = device.memory_stats()
        if statistics and "bytes_limit" in statistics:
            sizes.append(statistics["bytes_limit"])
        else:
            sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices))
    return int(sharding.from_first_process(np.asarray(min(sizes) >> 20, np.int32))) << 20
