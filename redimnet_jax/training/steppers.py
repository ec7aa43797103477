"""Run training steps, on batches of audio (`LiveStepper`) or on cached features (`CachedStepper`).

The training loop knows only the protocol `Stepper`.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from redimnet_jax import sharding
from redimnet_jax.compilation import HALF_EFFORT, jit
from redimnet_jax.data.loader import TrainBatches, WaitMeter
from redimnet_jax.training.feature_source import FeatureSource
from redimnet_jax.training.partition import NamedArrays
from redimnet_jax.training.run_time import COMPILATION, INPUT, Clock, program_flops
from redimnet_jax.training.step import Figures, Step, TrainState

Array = jax.Array


class Stepper(Protocol):
    """Training steps from one step number to another; `flops` are those of one on a device, None if not known."""

    flops: float | None

    def run(
        self, state: TrainState, frozen: NamedArrays, begin: int, end: int
    ) -> tuple[TrainState, dict[str, Array], int]:
        """Return (state, figures, reached) after the steps `begin` to `reached` - 1; `reached` is at most `end`.

        The state is donated. Nothing is waited for.
        """
        ...

    def wait_fraction(self) -> float:
        """Return the fraction of the time since the last call (or the start) that was spent waiting for input."""
        ...

    def close(self) -> None:
        """End what reads ahead."""
        ...


class LiveStepper:
    """The compiled `step` on one of `batches` after another, one step a call."""

    def __init__(
        self, step: Step, mesh: Mesh, batches: TrainBatches, *, clock: Clock | None = None, flops: float | None = None
    ):
        self.flops = flops
        self._clock = clock or Clock()
        self._step = step
        self._mesh = mesh
        self._meter = WaitMeter(batches)

    def run(
        self, state: TrainState, frozen: NamedArrays, begin: int, end: int
    ) -> tuple[TrainState, dict[str, Array], int]:
        """See `Stepper.run`; runs one step, whose figures have no leading axis."""
        with self._clock.counting(INPUT):
            rows = next(self._meter)
        batch = sharding.shard_rows(rows, self._mesh)
        state, figures = self._step(state, frozen, batch)
        return state, figures, begin + 1

    def wait_fraction(self) -> float:
        """See `Stepper.wait_fraction`; the input is audio."""
        return self._meter.wait_fraction()

    def close(self) -> None:
        """Do nothing: the batches are the caller's."""


class CachedStepper:
    """The function `step`, which this compiles, on cached features: many steps a dispatch.

    Every device makes its part of a batch from its own rows, so only the step itself communicates between devices;
    its statistics are those of the whole batch.
    """

    def __init__(self, step: Step, mesh: Mesh, source: FeatureSource, *, clock: Clock | None = None):
        self.source = source
        self.flops: float | None = None
        self._clock = clock or Clock()
        self._step = step
        self._mesh = mesh
        self._compiled: Callable | None = None
        self._waited = 0.0
        self._since = time.perf_counter()

    def run(
        self, state: TrainState, frozen: NamedArrays, begin: int, end: int
    ) -> tuple[TrainState, dict[str, Array], int]:
        """See `Stepper.run`; the figures have a leading axis, whose first `reached` - `begin` entries count.

        Steps are numbered from the start of the first epoch on the cache, and a call stays within one epoch. The
        first call compiles.
        """
        source = self.source
        epoch, step = divmod(begin, source.sampler.steps_per_epoch)
        start = time.perf_counter()
        with self._clock.counting(INPUT):
            chunk = source.chunk(epoch, step)
        if not source.on_device:
            self._waited += time.perf_counter() - start
        steps = min(end - begin, chunk.steps, source.max_steps)
        whole = sharding.replicated(self._mesh)
        numbers = [jax.device_put(np.asarray(number, np.int32), whole) for number in (chunk.first, steps)]
        arguments = (state, frozen, chunk.features, chunk.labels, chunk.rows, *numbers)
        if self._compiled is None:
            rows_per_step = source.sampler.batch_size // source.streams
            with self._clock.counting(COMPILATION):
                loop = lower_loop(self._step, self._mesh, rows_per_step, source.max_steps, *arguments)
                self._compiled = loop.compile()
            # The compiler counts the body of the loop, which is one step, once.
            self.flops = program_flops(self._compiled)
        state, figures = self._compiled(*arguments)
        return state, figures, begin + steps

    def wait_fraction(self) -> float:
        """See `Stepper.wait_fraction`; the input is features that the host gathers."""
        now = time.perf_counter()
        fraction = self._waited / max(now - self._since, 1e-9)
        self._waited = 0.0
        self._since = now
        return fraction

    def close(self) -> None:
        """End what reads ahead."""
        self.source.close()


def lower_loop(step: Step, mesh: Mesh, rows_per_step: int, max_steps: int, *arguments: Any) -> jax.stages.Lowered:
    """Return loop(state, frozen, features, labels, rows, first, count) -> (state, figures), traced for `arguments`.

    The loop runs `count` <= `max_steps` steps of `step` (see `step.make_step`). `features` (streams, n, width),
    `labels` (streams, n) and `rows` (streams, m) are sharded by stream over the mesh; step i of the loop takes
    `rows_per_step` rows of every stream, from (first + i) * rows_per_step on. The figures have a leading axis of
    `max_steps`, with zeros from `count` on. One program runs any number of steps, so that no result depends on how
    many steps a dispatch has. The state is donated; it and `frozen` stay where they lie.
    """

    def make_batch(features: Array, labels: Array, rows: Array, number: Array) -> tuple[Array, Array]:
        chosen = jax.lax.dynamic_slice_in_dim(rows, number * rows_per_step, rows_per_step, axis=1)
        take = jax.vmap(lambda x, r: x.at[r].get(mode="promise_in_bounds"))
        pooled = take(features, chosen).astype(jnp.float32)
        return pooled.reshape(-1, pooled.shape[-1]), take(labels, chosen).reshape(-1)

    by_rows = PartitionSpec(sharding.AXIS)
    sharded_batch = jax.shard_map(
        make_batch, mesh=mesh, in_specs=(by_rows, by_rows, by_rows, PartitionSpec()), out_specs=by_rows
    )

    def loop(state: TrainState, frozen: NamedArrays, features, labels, rows, first: Array, count: Array):
        def one_step(state: TrainState, number: Array) -> tuple[TrainState, Figures]:
            pooled, label = sharded_batch(features, labels, rows, number)
            return step(state, frozen, {"pooled": pooled, "label": label})

        def body(i: Array, carry: tuple[TrainState, Figures]) -> tuple[TrainState, Figures]:
            state, figures = carry
            state, new = one_step(state, first + i)
            return state, jax.tree.map(lambda array, x: array.at[i].set(x), figures, new)

        shapes = jax.eval_shape(one_step, state, first)[1]
        figures = jax.tree.map(lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, figures))

    whole = sharding.replicated(mesh)
    rows_on_devices = sharding.by_rows(mesh)
    state, frozen = sharding.tree_shardings(arguments[:2], mesh)
    shardings = (state, frozen, rows_on_devices, rows_on_devices, rows_on_devices, whole, whole)
    jitted: Any = jit(
        loop, tpu_effort=HALF_EFFORT, in_shardings=shardings, out_shardings=(state, whole), donate_argnums=0
    )
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments)
