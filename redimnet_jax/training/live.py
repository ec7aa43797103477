"""Training steps on batches of audio, one a call; with the interface of `cached_steps.CachedSteps`."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.data.loader import TrainBatches, WaitMeter
from redimnet_jax.training.step import Arrays, TrainState


class LiveSteps:
    """`step`, compiled, on one of `batches` after another."""

    def __init__(self, step: Callable, mesh: Mesh, batches: TrainBatches):
        self._step, self._mesh, self._meter = step, mesh, WaitMeter(batches)

    def run(
        self, state: TrainState, frozen: Arrays, begin: int, end: int
    ) -> tuple[TrainState, dict[str, jax.Array], int]:
        """(state, figures, `begin` + 1) after one step, whose figures have no leading axis; the state is donated."""
        return *self._step(state, frozen, sharding.shard_rows(next(self._meter), self._mesh)), begin + 1

    def wait_fraction(self) -> float:
        """The part of the time since the last call (or the start) that was spent waiting for audio."""
        return self._meter.wait_fraction()

    def close(self) -> None:
        """Does nothing: the batches are the caller's."""
