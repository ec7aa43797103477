"""One training step: what trains, what is frozen, and the compiled update.

What is frozen is frozen whole. Its arrays enter the step as constants: they are no argument of the gradient, have no
optimizer state and no decay, and never come out; a batch norm whose statistics are frozen is in eval mode. With a
backbone that is frozen whole there is no SpecAugment and no dropout; as soon as anything in it trains there is both,
where the `model_config` asks for it: they change no variable.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.compilation import jit
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.nn.normalization import BatchNorm
from redimnet_jax.training.averaging import moved
from redimnet_jax.training.parts import PARTS, selected

Array = jax.Array
Arrays = dict[str, Array]


class Learner(nnx.Module):
    """The network and its heads, and a teacher that it learns from, or None; of a teacher nothing ever trains."""

    def __init__(self, network: SpeakerNetwork, heads: Heads, teacher: SpeakerNetwork | None = None):
        self.network, self.heads, self.teacher = network, heads, teacher

    def embed(self, waveform: Array, key: Array, *, backbone: bool) -> Array:
        """Training embeddings (batch, embed_dim); the backbone is in train mode when `backbone` trains."""
        keys = jax.random.split(key)
        features, frames = self.network.features(waveform, train=backbone, key=keys[0])
        pooled = self.network.pooled(features, frames, train=backbone, key=keys[1])
        return self.network.embed(pooled, train=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step changes: parameters and batch statistics of what trains by name, optimizer, step.

    `ema` are the moving averages of both, or nothing.
    """

    step: Array
    params: Arrays
    stats: Arrays
    opt: optax.OptState
    ema: Arrays = dataclasses.field(default_factory=dict)


class Split:
    """A learner taken apart by what trains; `merge` is its inverse, inside a trace too.

    What trains is what `filters` match, see `parts.selected`, which names `key` in its errors. With `batch_stats`
    'frozen' no batch statistics train, whatever the filters match.
    """

    def __init__(
        self, learner: Learner, filters: Collection[str], *, batch_stats: str = "trained", key: str = "parts"
    ):
        self.graph, state = nnx.split(learner)
        self.variables = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
        kinds = {"params": nnx.Param, "stats": nnx.BatchStat}
        names = {
            kind: {name for name, (_, leaf) in self.variables.items() if isinstance(leaf, of) and _can_train(name)}
            for kind, of in kinds.items()
        }
        found = selected(names["params"] | names["stats"], filters, key)
        self.names = {kind: sorted(found & those) for kind, those in names.items()}
        if batch_stats == "frozen":
            self.names["stats"] = []
        self.backbone_trains = any(
            name.startswith(PARTS["backbone"]) for trained in self.names.values() for name in trained
        )
        self._training_graph = self._marked(state)

    def _marked(self, state: nnx.State) -> nnx.GraphDef:
        """The graph in which every batch norm whose statistics do not train is frozen."""
        learner, trained = nnx.merge(self.graph, state, copy=True), set(self.names["stats"])
        for path, node in nnx.iter_graph(learner):
            if isinstance(node, BatchNorm):
                node.frozen = not {".".join(map(str, (*path, name))) for name in ("mean", "var")} <= trained
        return nnx.graphdef(learner)

    def arrays(self, key: str) -> Arrays:
        """'params' or 'stats' that train, or all that is 'frozen', by name."""
        names = self.names.get(key)
        if names is None:
            names = set(self.variables) - set(self.names["params"]) - set(self.names["stats"])
        return {name: self.variables[name][1].get_value() for name in sorted(names)}

    def merge(self, *groups: Arrays, training: bool = False) -> Learner:
        """The learner with the arrays of all `groups`, which together name every variable.

        With `training` its frozen batch norms stay in eval mode when the rest is in train mode.
        """
        arrays = self.exact(functools.reduce(lambda a, b: a | b, groups))
        flat = [(path, leaf.replace(arrays[name])) for name, (path, leaf) in self.variables.items()]
        return nnx.merge(self._training_graph if training else self.graph, nnx.from_flat_state(flat), copy=True)

    def exact(self, tree: Any) -> Any:
        """`tree`, of arrays by the names of variables at any depth, without the rows that pad them on a mesh."""

        def cut(path: tuple, x):
            _, leaf = self.variables.get(getattr(path[-1], "key", None), (None, None))
            return x if leaf is None or x.shape == leaf.shape else x[: leaf.shape[0]]

        return jax.tree_util.tree_map_with_path(cut, tree)

    def stats_of(self, learner: Learner) -> Arrays:
        """The batch statistics of `learner` that train."""
        flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(learner))}
        return {name: flat[name].get_value() for name in self.names["stats"]}


def _can_train(name: str) -> bool:
    return not name.startswith("teacher.")


def initial_state(
    split: Split, optimizer: optax.GradientTransformation, *, step: int = 0, ema: bool = False
) -> TrainState:
    """The state before the first step of a stage, which is step `step` of the run, and where `ema` averages start.

    Its arrays are copies, since a step donates them.
    """
    params, stats = jax.tree.map(jnp.copy, (split.arrays("params"), split.arrays("stats")))
    averages = jax.tree.map(jnp.copy, params | stats) if ema else {}
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, optimizer.init(params), averages)


def make_step(
    split: Split,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    seed: int,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Callable[[TrainState, Arrays, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """step(state, frozen, batch) -> (state, figures), a pure function.

    `batch` holds `waveform` (batch, samples) float32, or in its place what a frozen backbone makes of it, `pooled`
    (batch, pool.features) float32, and `label` (batch,) int32. With `accumulate` the batch is worked off in that many
    pieces, whose gradients are averaged; batch statistics are then those of a piece. Random numbers depend on the
    seed and the step alone. Where the state has averages, `ema` is their decay, see `weight_average.moved`. Figures
    are `loss`, `grad_norm`, for every prefix `losses` and `accuracies`, and with a teacher `distillation`.
    """

    def loss(params, stats, frozen, batch, key, margin):
        learner = split.merge(params, stats, frozen, training=True)
        if "pooled" in batch:
            embedding = learner.network.embed(batch["pooled"], train=True)
        else:
            embedding = learner.embed(batch["waveform"], key, backbone=split.backbone_trains)
        value, figures = learner.heads.loss(
            embedding, batch["label"], weights=objective.weights, margin=margin, consistency=objective.consistency
        )
        if learner.teacher is not None:
            figures["distillation"] = objective.distillation.loss(
                embedding, learner.teacher(batch["waveform"]), learner.heads.dims
            )
            value += figures["distillation"]
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
            stats, sums = piece(state.stats, (batch, keys[0]))
        else:
            # Every device keeps the rows it has: a piece takes every `accumulate`-th row.
            pieces = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
            stats, sums = jax.lax.scan(piece, state.stats, (pieces, keys))
            sums = jax.tree.map(lambda x: x.mean(axis=0), sums)
        gradients, value, figures = sums
        updates, opt = optimizer.update(gradients, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        figures = {
            "loss": value,
            "losses": figures["loss"],
            "accuracies": figures["accuracy"],
            "grad_norm": optax.tree.norm(gradients),
        } | {name: figures[name] for name in ("distillation",) if name in figures}
        averages = moved(state.ema, params | stats, ema, state.step)
        return TrainState(state.step + 1, params, stats, opt, averages), figures

    return step


def compile_step(step: Callable, mesh: Mesh, *arguments: Any) -> Callable:
    """`step` compiled once for `arguments` (state, frozen, batch), or their shapes.

    The batch is sharded over the mesh axis 'data', so batch statistics are those of the global batch; everything
    else stays where `sharding.place_state` has put it, or is replicated. The state is donated. What is returned
    accepts no other shapes: it never compiles again.
    """
    state, frozen = sharding.tree_shardings(arguments[:2], mesh)
    jitted = jit(
        step,
        in_shardings=(state, frozen, sharding.by_rows(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        return jitted.lower(*arguments).compile()
