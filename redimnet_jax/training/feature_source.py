"""Give the training loop the cached features of its batches, from the devices' memory or from the host.

Features that fit into the devices' memory are placed there once (`DeviceFeatures`). Others are gathered by the host
from the memory-mapped file, a chunk of steps ahead (`HostFeatures`). Both give the same batches.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.data.crop_order import CropOrder
from redimnet_jax.training.sampler import EpochSampler

Array = jax.Array

# Bytes of gathered features on one device; two chunks exist at a time.
CHUNK_BYTES = 2**28
MAX_STEPS = 100


@dataclasses.dataclass(frozen=True)
class CachedCrops:
    """The rows of a feature cache: `features` (rows, width), may be mapped, and `labels` int32 (rows,).

    They are in the order of `data.crop_order`, whose `passes` are given.
    """

    features: np.ndarray
    labels: np.ndarray
    passes: tuple[int, ...] = ()

    def order(self, utterances: int) -> CropOrder:
        """Return the order of the rows, of so many utterances."""
        return CropOrder(utterances, self.passes)


@dataclasses.dataclass(frozen=True)
class FeatureChunk:
    """Features of some steps on the devices, all sharded by stream over the mesh.

    Step `first` + i takes the next rows of every stream from `rows` (streams, m) int32, which index `features`
    (streams, n, width) and `labels` (streams, n). The chunk is good for `steps` steps.
    """

    features: Array
    labels: Array
    rows: Array
    first: int
    steps: int


class FeatureSource(Protocol):
    """What `CachedStepper` needs of features; `max_steps` is the largest number of steps of one dispatch."""

    sampler: EpochSampler
    streams: int
    on_device: bool
    max_steps: int

    def chunk(self, epoch: int, step: int) -> FeatureChunk:
        """Return the features for the steps of `epoch` from `step` on, which counts from the start of the epoch."""
        ...

    def close(self) -> None:
        """End what reads ahead."""
        ...


def open_features(
    sampler: EpochSampler,
    mesh: Mesh,
    crops: CachedCrops,
    *,
    memory_share: float = 0.6,
    max_steps: int = MAX_STEPS,
) -> FeatureSource:
    """Return `DeviceFeatures` where they take at most `memory_share` of every device's memory, else `HostFeatures`.

    Raises UserError when the devices do not divide the batch.
    """
    row_bytes = crops.features.itemsize * crops.features.shape[1]
    rows = sampler.streams(mesh.size) // mesh.size * sampler.crops * sampler.width
    if rows * row_bytes <= memory_share * device_memory(mesh):
        return DeviceFeatures(sampler, mesh, crops, max_steps)
    step_bytes = sampler.batch_size // mesh.size * row_bytes
    return HostFeatures(sampler, mesh, crops, max(1, min(max_steps, CHUNK_BYTES // step_bytes)))


class DeviceFeatures:
    """Features in the devices' memory."""

    on_device = True

    def __init__(self, sampler: EpochSampler, mesh: Mesh, crops: CachedCrops, max_steps: int = MAX_STEPS):
        self.sampler = sampler
        self.streams = sampler.streams(mesh.size)
        self.max_steps = max_steps
        stored = crops.order(sampler.utterances)
        self._features = place_by_stream(sampler, stored, crops.features, mesh)
        self._labels = place_by_stream(sampler, stored, crops.labels, mesh)
        order = functools.partial(sampler.order, streams=self.streams)
        self._order = functools.lru_cache(1)(jax.jit(order, out_shardings=sharding.by_rows(mesh)))

    def chunk(self, epoch: int, step: int) -> FeatureChunk:
        """See `FeatureSource.chunk`; the chunk reaches to the end of the epoch."""
        steps = self.sampler.steps_per_epoch - step
        return FeatureChunk(self._features, self._labels, self._order(epoch), step, steps)

    def close(self) -> None:
        """Do nothing: nothing reads ahead."""


class HostFeatures:
    """Features that the host gathers in chunks of `max_steps` steps, the next one while one is used."""

    on_device = False

    def __init__(self, sampler: EpochSampler, mesh: Mesh, crops: CachedCrops, max_steps: int = MAX_STEPS):
        self.sampler = sampler
        self.streams = sampler.streams(mesh.size)
        self.max_steps = max_steps
        self._crops = crops
        self._sharding = sharding.by_rows(mesh)
        # The rows of one stream in a chunk.
        self._length = max_steps * sampler.batch_size // self.streams
        self._rows = self._placed(
            lambda streams: np.tile(np.arange(self._length, dtype=np.int32), (len(streams), 1)), ()
        )
        # The order of a whole epoch, on one device of this process.
        order = jax.jit(functools.partial(sampler.order, streams=self.streams))
        self._order = functools.lru_cache(2)(lambda epoch: np.asarray(order(epoch)))
        self._reader = concurrent.futures.ThreadPoolExecutor(1)
        self._chunks: dict[tuple[int, int], concurrent.futures.Future] = {}

    def chunk(self, epoch: int, step: int) -> FeatureChunk:
        """See `FeatureSource.chunk`; chunks begin at multiples of `max_steps`, wherever a call begins."""
        number, first = divmod(step, self.max_steps)
        current = (epoch, number)
        following = (epoch, number + 1)
        if following[1] * self.max_steps >= self.sampler.steps_per_epoch:
            following = (epoch + 1, 0)
        self._chunks = {key: self._chunks.get(key) or self._submit(*key) for key in (current, following)}
        features, labels = self._chunks[current].result()
        steps = min(self.max_steps - first, self.sampler.steps_per_epoch - step)
        return FeatureChunk(features, labels, self._rows, first, steps)

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._reader.shutdown(cancel_futures=True)

    def _submit(self, epoch: int, number: int) -> concurrent.futures.Future:
        begin = number * self._length
        return self._reader.submit(self._gather, self._order(epoch)[:, begin : begin + self._length])

    def _gather(self, order: np.ndarray) -> tuple[Array, Array]:
        # The last chunk of an epoch may be shorter; the rows that fill it up are not used.
        order = np.pad(order, ((0, 0), (0, self._length - order.shape[1])))
        parts = self.streams // self.sampler.strata
        stored = self._crops.order(self.sampler.utterances)

        def gathered(array: np.ndarray) -> Callable[[range], np.ndarray]:
            def of_stream(t: int) -> np.ndarray:
                return array[stored.row(self.sampler.crop_numbers(t // parts, order[t]))]

            return lambda streams: np.stack([of_stream(t) for t in streams])

        crops = self._crops
        return (
            self._placed(gathered(crops.features), crops.features.shape[1:]),
            self._placed(gathered(crops.labels), ()),
        )

    def _placed(self, make: Callable[[range], np.ndarray], shape: tuple[int, ...]) -> Array:
        """Return the array (streams, length, *shape) on the devices, whose streams `make` gives."""

        def place(index: Any) -> np.ndarray:
            return make(range(self.streams)[index[0]])

        return jax.make_array_from_callback((self.streams, self._length, *shape), self._sharding, place)


def place_by_stream(sampler: EpochSampler, stored: CropOrder, array: np.ndarray, mesh: Mesh) -> Array:
    """Return `array` (rows, ...), in the order `stored`, on the devices by stream: (streams, crops * width, ...).

    Streams of one stratum have the same rows.
    """
    streams = sampler.streams(mesh.size)
    parts = streams // sampler.strata
    inner = array.shape[1:]
    shape = (streams, sampler.crops * sampler.width, *inner)
    # As integers: NumPy copies strided bfloat16 one element at a time.
    integers = array.view(f"u{array.itemsize}")

    def part(index: Any) -> np.ndarray:
        strata = [t // parts for t in range(streams)[index[0]]]
        out = np.zeros((len(strata), sampler.crops, sampler.width, *inner), integers.dtype)
        for place, stratum in enumerate(strata):
            for crop in range(sampler.crops):
                rows = stored.of_crop(integers, crop)[stratum :: sampler.strata]
                out[place, crop, : len(rows)] = rows
        return out.view(array.dtype).reshape(len(strata), *shape[1:])

    by_stream = sharding.by_rows(mesh)
    shards = []
    for device, index in by_stream.addressable_devices_indices_map(shape).items():
        # One after the other, so that the host holds the part of one device at most.
        shards.append(jax.block_until_ready(jax.device_put(part(index), device)))
    return jax.make_array_from_single_device_arrays(shape, by_stream, shards)


def device_memory(mesh: Mesh) -> int:
    """Return the bytes of memory that every device has for arrays; a CPU device has its share of the machine's."""
    sizes = []
    for device in mesh.local_devices:
        statistics = device.memory_stats()
        if statistics and "bytes_limit" in statistics:
            sizes.append(statistics["bytes_limit"])
        else:
            sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices))
    return int(sharding.from_first_process(np.asarray(min(sizes) >> 20, np.int32))) << 20
