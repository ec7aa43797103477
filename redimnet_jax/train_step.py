"""One training step: what trains, what is frozen, and the compiled update.

A part is frozen whole. Its arrays enter the step as constants: they are no argument of the gradient, have no
optimizer state and no decay, run in eval mode (no batch statistics, no dropout, no SpecAugment), and never come out.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from redimnet_jax.heads import Heads
from redimnet_jax.network import SpeakerNetwork
from redimnet_jax.objective import Objective

Array = jax.Array
Arrays = dict[str, Array]

# Every variable belongs to one part, by the start of its path.
PARTS = {
    "backbone": ("network.frontend.", "network.backbone.", "network.pool."),
    "projection": ("network.bn.", "network.linear.", "network.bn2."),
    "heads": ("heads.",),
}


class Learner(nnx.Module):
    """The network and its heads."""

    def __init__(self, network: SpeakerNetwork, heads: Heads):
        self.network, self.heads = network, heads

    def embed(self, waveform: Array, key: Array, *, backbone: bool) -> Array:
        """Training embeddings (batch, embed_dim); the backbone is in train mode when `backbone` trains."""
        keys = jax.random.split(key)
        features, frames = self.network.features(waveform, train=backbone, key=keys[0])
        pooled = self.network.pooled(features, frames, train=backbone, key=keys[1])
        return self.network.embed(pooled, train=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step changes: parameters and batch statistics of the trained parts by name, optimizer, step."""

    step: Array
    params: Arrays
    stats: Arrays
    opt: optax.OptState


class Split:
    """A learner taken apart by the parts that train; `merge` is its inverse, inside a trace too."""

    def __init__(self, learner: Learner, parts: Collection[str]):
        prefixes = tuple(prefix for part in parts for prefix in PARTS[part])
        self.graph, state = nnx.split(learner)
        self.variables = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
        kinds = {"params": nnx.Param, "stats": nnx.BatchStat}
        trained = {name: leaf for name, (_, leaf) in self.variables.items() if name.startswith(prefixes)}
        self.names = {
            key: [n for n, leaf in trained.items() if isinstance(leaf, kind)] for key, kind in kinds.items()
        }
        self.backbone_trains = "backbone" in parts

    def arrays(self, key: str) -> Arrays:
        """'params' or 'stats' of the trained parts, or all that is 'frozen', by name."""
        names = self.names.get(key)
        if names is None:
            names = set(self.variables) - set(self.names["params"]) - set(self.names["stats"])
        return {name: self.variables[name][1].get_value() for name in sorted(names)}

    def merge(self, *groups: Arrays) -> Learner:
        """The learner with the arrays of all `groups`, which together name every variable."""
        arrays = functools.reduce(lambda a, b: a | b, groups)
        flat = [(path, leaf.replace(arrays[name])) for name, (path, leaf) in self.variables.items()]
        return nnx.merge(self.graph, nnx.from_flat_state(flat), copy=True)

    def stats_of(self, learner: Learner) -> Arrays:
        """The batch statistics of the trained parts of `learner`."""
        flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(learner))}
        return {name: flat[name].get_value() for name in self.names["stats"]}


def initial_state(split: Split, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; its arrays are copies, since a step donates them."""
    params, stats = jax.tree.map(jnp.copy, (split.arrays("params"), split.arrays("stats")))
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def make_step(
    split: Split, optimizer: optax.GradientTransformation, objective: Objective, *, seed: int, accumulate: int = 1
) -> Callable[[TrainState, Arrays, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """step(state, frozen, batch) -> (state, figures), a pure function.

    `batch` holds `waveform` (batch, samples) float32 and `label` (batch,) int32. With `accumulate` the batch is
    worked off in that many pieces, whose gradients are averaged; batch statistics are then those of a piece. Random
    numbers depend on the seed and the step alone. Figures are `loss`, `grad_norm`, and for every prefix
    `losses` and `accuracies`.
    """

    def loss(params, stats, frozen, waveform, label, key, margin):
        learner = split.merge(params, stats, frozen)
        embedding = learner.embed(waveform, key, backbone=split.backbone_trains)
        value, figures = learner.heads.loss(
            embedding, label, weights=objective.weights, margin=margin, consistency=objective.consistency
        )
        return value, (split.stats_of(learner), figures)

    def step(state: TrainState, frozen: Arrays, batch: dict[str, Array]):
        margin = objective.margin(state.step)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), accumulate)

        def piece(stats, inputs):
            (value, (stats, figures)), gradients = jax.value_and_grad(loss, has_aux=True)(
                state.params, stats, frozen, *inputs, margin
            )
            return stats, (gradients, value, figures)

        if accumulate == 1:
            stats, sums = piece(state.stats, (batch["waveform"], batch["label"], keys[0]))
        else:
            # Every device keeps the rows it has: a piece takes every `accumulate`-th row.
            pieces = [
                jnp.moveaxis(batch[name].reshape(-1, accumulate, *batch[name].shape[1:]), 1, 0)
                for name in ("waveform", "label")
            ]
            stats, sums = jax.lax.scan(piece, state.stats, (*pieces, keys))
            sums = jax.tree.map(lambda x: x.mean(axis=0), sums)
        gradients, value, figures = sums
        updates, opt = optimizer.update(gradients, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        figures = {
            "loss": value,
            "losses": figures["loss"],
            "accuracies": figures["accuracy"],
            "grad_norm": optax.tree.norm(gradients),
        }
        return TrainState(state.step + 1, params, stats, opt), figures

    return step


def compile_step(step: Callable, mesh: Mesh, *arguments: Any) -> Callable:
    """`step` compiled once for `arguments` (state, frozen, batch), or their shapes.

    The batch is sharded over the mesh axis 'data', so batch statistics are those of the global batch; everything
    else is replicated. The state is donated. What is returned accepts no other shapes: it never compiles again.
    """
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    jitted = jax.jit(step, in_shardings=(whole, whole, rows), out_shardings=(whole, whole), donate_argnums=0)
    return jitted.lower(*arguments).compile()
