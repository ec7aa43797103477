"""The training step: a pure function of the training state and a batch, and its compilation.

Frozen variables enter the step as constants: they are no argument of the gradient, have no optimizer state and no
weight decay, and are never returned; a batch norm whose statistics are frozen is in eval mode. A backbone that is
frozen as a whole has no SpecAugment and no dropout. As soon as any of its variables trains it has both, where its
`model_config` asks for them: they change no variable.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.compilation import HALF_EFFORT, jit
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.losses.objective import Objective
from redimnet_jax.training.averaging import moved
from redimnet_jax.training.partition import NamedArrays, TrainablePartition

Array = jax.Array
Batch = dict[str, Array]
Figures = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step changes: the step number, trainable parameters and batch statistics, and optimizer state.

    `ema` holds the moving averages of parameters and statistics, or nothing.
    """

    step: Array
    params: NamedArrays
    stats: NamedArrays
    opt: optax.OptState
    ema: NamedArrays = dataclasses.field(default_factory=dict)


# step(state, frozen, batch) -> (state, figures)
Step = Callable[[TrainState, NamedArrays, Batch], tuple[TrainState, Figures]]


def initial_state(
    partition: TrainablePartition, optimizer: optax.GradientTransformation, *, step: int = 0, ema: bool = False
) -> TrainState:
    """Return the state before the first step of a stage, which is step `step` of the run.

    With `ema` the moving averages start at the present values. All arrays are copies, since a step donates them.
    """
    params = jax.tree.map(jnp.copy, partition.arrays("params"))
    stats = jax.tree.map(jnp.copy, partition.arrays("stats"))
    averages = jax.tree.map(jnp.copy, params | stats) if ema else {}
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, optimizer.init(params), averages)


def make_step(
    partition: TrainablePartition,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    seed: int,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Step:
    """Return step(state, frozen, batch) -> (state, figures), a pure function that can be compiled.

    `batch` holds `label` (batch,) int32 and either `waveform` (batch, samples) float32 or, for a frozen backbone,
    `pooled` (batch, pool.features) float32. With `accumulate` above 1 the batch is processed in that many
    microbatches, whose gradients are averaged; batch statistics are then those of a microbatch. Random numbers depend
    on `seed` and the step number alone. `ema` is the decay of the moving averages, where the state has them (see
    `averaging.moved`). The figures are `loss`, `grad_norm`, for every dimension `losses` and `accuracies`, and with a
    teacher `distillation`.
    """
    gradient = jax.value_and_grad(_loss_function(partition, objective), has_aux=True)

    def step(state: TrainState, frozen: NamedArrays, batch: Batch) -> tuple[TrainState, Figures]:
        seconds = batch["waveform"].shape[1] / SAMPLE_RATE if "waveform" in batch else None
        options = objective.options(state.step, seed, seconds)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), accumulate)

        def microbatch(stats: NamedArrays, inputs: tuple[Batch, Array]) -> tuple[NamedArrays, tuple]:
            (value, (stats, figures)), gradients = gradient(state.params, stats, frozen, *inputs, options)
            return stats, (gradients, value, figures)

        if accumulate == 1:
            stats, outputs = microbatch(state.stats, (batch, keys[0]))
        else:
            # Every device keeps the rows it has: a microbatch takes every `accumulate`-th row.
            batches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
            stats, outputs = jax.lax.scan(microbatch, state.stats, (batches, keys))
            outputs = jax.tree.map(lambda x: x.mean(axis=0), outputs)
        gradients, value, figures = outputs
        updates, opt = optimizer.update(gradients, state.opt, state.params)
        params = cast(NamedArrays, optax.apply_updates(state.params, updates))
        reported = {
            "loss": value,
            "losses": figures["loss"],
            "accuracies": figures["accuracy"],
            "grad_norm": optax.tree.norm(gradients),
        }
        if "distillation" in figures:
            reported["distillation"] = figures["distillation"]
        averages = moved(state.ema, params | stats, ema, state.step)
        return TrainState(state.step + 1, params, stats, opt, averages), reported

    return step


def _loss_function(partition: TrainablePartition, objective: Objective) -> Callable[..., tuple[Array, tuple]]:
    """Return loss(params, stats, frozen, batch, key, options of heads) -> (value, (batch statistics, figures))."""

    def loss(
        params: NamedArrays,
        stats: NamedArrays,
        frozen: NamedArrays,
        batch: Batch,
        key: Array,
        options: dict[str, Any],
    ) -> tuple[Array, tuple[NamedArrays, Figures]]:
        model = partition.merge(params, stats, frozen, training=True)
        embedding, taught = model.embeddings(batch, key, train_backbone=partition.backbone_trains)
        value, figures = model.heads.loss(embedding, batch["label"], **options)
        if taught is not None:
            figures["distillation"] = objective.distillation.loss(embedding, taught, model.heads.dims)
            value += figures["distillation"]
        return value, (partition.trained_stats(model), figures)

    return loss


def lower_step(step: Step, mesh: Mesh, *arguments: Any) -> jax.stages.Lowered:
    """Return `step` traced for `arguments`, which are (state, frozen, batch) or their shapes, ready to be compiled.

    The batch is sharded over the axis "data" of `mesh`, so that batch statistics are those of the global batch;
    everything else stays where `sharding.place_state` has put it, or is replicated. The state is donated.
    """
    state, frozen = sharding.tree_shardings(arguments[:2], mesh)
    jitted: Any = jit(
        step,
        tpu_effort=HALF_EFFORT,
        in_shardings=(state, frozen, sharding.by_rows(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments)


def compile_step(step: Step, mesh: Mesh, *arguments: Any) -> Step:
    """Return `step` compiled for `arguments` (see `lower_step`), the only shapes that it accepts."""
    program: Any = lower_step(step, mesh, *arguments).compile()
    return program
