"""The training of one stage: what trains, its optimizer and schedule, and the arrays that its steps change."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.losses.objective import Objective
from redimnet_jax.training import optimizer
from redimnet_jax.training.partition import NamedArrays, TrainableModel, TrainablePartition
from redimnet_jax.training.run_checkpoints import TrainingCheckpoints
from redimnet_jax.training.stages import Stage, stage_optimizer
from redimnet_jax.training.step import TrainState, compile_step, initial_state, make_step


class StageSpan(NamedTuple):
    """The steps of a stage: the run's step before its first one, their number, and the number in an epoch."""

    start: int
    steps: int
    epoch_steps: int


class StageTrainer:
    """The state of one stage between two steps.

    The stage starts from the weights of `model`, or continues from the newest one of `checkpoints` if they are given.
    `ema` is the decay of the moving averages of weights; 0 means that there are none.
    """

    def __init__(
        self,
        stage: Stage,
        span: StageSpan,
        model: TrainableModel,
        mesh: Mesh,
        *,
        ema: float,
        checkpoints: TrainingCheckpoints | None = None,
    ):
        self.stage = stage
        self._mesh = mesh
        self._ema = ema
        self._start = span.start
        self.partition = TrainablePartition(model, stage.filters, batch_stats=stage.batch_stats, key=stage.key)
        chosen = stage.optimizer
        warmup_steps = round(chosen.warmup_epochs * span.epoch_steps)
        self._schedule = optimizer.schedule(
            chosen.learning_rate, span.steps, warmup_steps, chosen.final_learning_rate, chosen.schedule
        )
        self._optimizer = stage_optimizer(
            stage, self._schedule, self.partition.names["params"], self.partition.variables
        )
        state = initial_state(self.partition, self._optimizer, step=span.start, ema=bool(ema))
        frozen: NamedArrays = self.partition.arrays("frozen")
        if checkpoints is not None:
            state, frozen = checkpoints.restore(state, frozen)
        self.state: TrainState
        self.frozen: NamedArrays
        self.state, self.frozen = sharding.place_state((state, frozen), mesh)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step of the run."""
        return float(np.asarray(self._schedule(step - 1 - self._start)))

    def make_step(self, objective: Objective, seed: int) -> Callable:
        """Return the training step, see `step.make_step`."""
        return make_step(
            self.partition,
            self._optimizer,
            objective,
            seed=seed,
            accumulate=self.stage.optimizer.accumulate,
            ema=self._ema,
        )

    def compile_step(self, step: Callable, batch_size: int, samples: int) -> tuple[Callable, float]:
        """Return the compiled `step` on batches of waveforms of that shape, and the seconds that it took."""
        batch = {
            "waveform": jax.ShapeDtypeStruct((batch_size, samples), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }
        start = time.perf_counter()
        compiled = compile_step(step, self._mesh, self.state, self.frozen, batch)
        return compiled, time.perf_counter() - start

    def model(self) -> TrainableModel:
        """Return the network and heads as they are validated, with arrays of this process.

        They have the moving averages where there are any.
        """
        trained = self.state.ema or self.state.params | self.state.stats
        return self.partition.merge(*sharding.to_local((trained, self.frozen)))

    def arrays(self) -> tuple[TrainState, NamedArrays]:
        """Return (state, frozen arrays) as a checkpoint has them."""
        return self.partition.without_padding(sharding.gather((self.state, self.frozen)))

    @property
    def backbone_trains(self) -> bool:
        """Whether anything in the backbone trains."""
        return self.partition.backbone_trains

    def description(self) -> str:
        """Return which parts train, with the number of their parameters."""
        return f"{', '.join(self.stage.filters)}: {self.size('params'):,} parameters"

    def size(self, group: str) -> int:
        """Return the number of values that are 'params', 'stats' or 'frozen'."""
        return sum(array.size for array in self.partition.arrays(group).values())
