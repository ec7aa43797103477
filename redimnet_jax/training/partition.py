"""Divide a model into the variables that train and those that are frozen.

Filters name the variables that train: parts of the model (`PARTS`) or patterns of variable paths. They are given
once, to `TrainablePartition`, and decide over gradients, optimizer state and checkpoint alike.
"""

import difflib
import fnmatch
import functools
import re
from collections.abc import Collection, Iterable
from typing import Any, cast

import jax
from flax import nnx

from redimnet_jax import sharding
from redimnet_jax.errors import UserError
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.nn.normalization import BatchNorm

Array = jax.Array
# Arrays by the dotted path of their variable, such as "network.linear.kernel".
NamedArrays = dict[str, Array]

# Every variable of network and heads belongs to one part, by the start of its path.
PARTS = {
    "backbone": ("network.frontend.", "network.backbone.", "network.pool."),
    "projection": ("network.bn.", "network.linear.", "network.bn2."),
    "heads": ("heads.",),
}

_STAGE = re.compile(r"network\.backbone\.stages\.(\d+)\.")


class TrainableModel(nnx.Module):
    """A network with its classification heads and, for distillation, a teacher, of which nothing ever trains."""

    def __init__(self, network: SpeakerNetwork, heads: Heads, teacher: SpeakerNetwork | None = None):
        self.network = network
        self.heads = heads
        self.teacher = teacher

    def embed(self, waveform: Array, key: Array, *, train_backbone: bool) -> Array:
        """Return training embeddings (batch, embed_dim) float32 of `waveform` (batch, samples) float32.

        The projection is always in train mode, the backbone only with `train_backbone`; `key` is for its SpecAugment
        and dropout.
        """
        spec_key, dropout_key = jax.random.split(key)
        features, frames = self.network.features(waveform, train=train_backbone, key=spec_key)
        pooled = self.network.pooled(features, frames, train=train_backbone, key=dropout_key)
        return self.network.embed(pooled, train=True)

    def embeddings(self, batch: dict[str, Array], key: Array, *, train_backbone: bool) -> tuple[Array, Array | None]:
        """Return training embeddings of the `waveform` or `pooled` of `batch`, and the teacher's if there is one.

        Of several devices each computes those of its rows. The batch statistics, which this updates, are of all rows.
        """
        # Without heads, whose prototypes may be sharded by class.
        graph, variables = nnx.split(TrainableModel(self.network, cast(Any, None), self.teacher))
        inputs = {name: array for name, array in batch.items() if name != "label"}

        def of_rows(inputs: dict[str, Array], whole: tuple[Any, Array]) -> tuple[tuple[Array, Array | None], Any]:
            variables, key = whole
            model = nnx.merge(graph, variables, copy=True)
            if "pooled" in inputs:
                embedding = model.network.embed(inputs["pooled"], train=True)
            else:
                embedding = model.embed(inputs["waveform"], key, train_backbone=train_backbone)
            taught = None if model.teacher is None else model.teacher(inputs["waveform"])
            return (embedding, taught), nnx.state(model.network, nnx.BatchStat)

        embeddings, statistics = sharding.map_rows(of_rows, inputs, (variables, key))
        nnx.update(self.network, statistics)
        return embeddings


class TrainablePartition:
    """A `TrainableModel` divided into trainable parameters, trainable batch statistics and frozen variables.

    The variables that train are those that `filters` match (see `select_variables`, whose errors name the setting
    `key`). With `batch_stats` "frozen" no batch statistics train, whatever the filters match. `merge` is the inverse
    and can be traced.
    """

    def __init__(
        self, model: TrainableModel, filters: Collection[str], *, batch_stats: str = "trained", key: str = "parts"
    ):
        self.graph, state = nnx.split(model)
        self.variables = {_dotted(path): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
        kinds = {"params": nnx.Param, "stats": nnx.BatchStat}
        candidates = {
            kind: {name for name, (_, leaf) in self.variables.items() if isinstance(leaf, type_) and _can_train(name)}
            for kind, type_ in kinds.items()
        }
        selected = select_variables(candidates["params"] | candidates["stats"], filters, key)
        self.names = {kind: sorted(selected & names) for kind, names in candidates.items()}
        if batch_stats == "frozen":
            self.names["stats"] = []
        self.backbone_trains = any(
            name.startswith(PARTS["backbone"]) for names in self.names.values() for name in names
        )
        self._training_graph = self._graph_with_frozen_norms(state)

    def _graph_with_frozen_norms(self, state: nnx.State) -> nnx.GraphDef:
        """Return the graph in which every batch norm whose statistics do not train is frozen."""
        model = nnx.merge(self.graph, state, copy=True)
        trained = set(self.names["stats"])
        for path, node in nnx.iter_graph(model):
            if isinstance(node, BatchNorm):
                node.frozen = not {_dotted((*path, name)) for name in ("mean", "var")} <= trained
        return nnx.graphdef(model)

    def arrays(self, kind: str) -> NamedArrays:
        """Return the arrays of one `kind` of variables: trainable "params", trainable "stats", or "frozen"."""
        names = self.names.get(kind)
        if names is None:
            names = set(self.variables) - set(self.names["params"]) - set(self.names["stats"])
        return {name: self.variables[name][1].get_value() for name in sorted(names)}

    def merge(self, *groups: NamedArrays, training: bool = False) -> TrainableModel:
        """Return the model with the arrays of all `groups`, which together name every variable.

        With `training` the frozen batch norms stay in eval mode when the rest of the model is in train mode.
        """
        arrays = self.without_padding(functools.reduce(lambda a, b: a | b, groups))
        flat = [(path, leaf.replace(arrays[name])) for name, (path, leaf) in self.variables.items()]
        return nnx.merge(self._training_graph if training else self.graph, nnx.from_flat_state(flat), copy=True)

    def without_padding(self, tree: Any) -> Any:
        """Return `tree` without the rows that pad its arrays to a multiple of the number of devices.

        The arrays lie at any depth under the names of their variables, as in the state of an optimizer.
        """

        def cut(path: tuple, array: Array) -> Array:
            _, leaf = self.variables.get(getattr(path[-1], "key", ""), (None, None))
            return array if leaf is None or array.shape == leaf.shape else array[: leaf.shape[0]]

        return jax.tree_util.tree_map_with_path(cut, tree)

    def trained_stats(self, model: TrainableModel) -> NamedArrays:
        """Return the trainable batch statistics of `model`."""
        flat = {_dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
        return {name: flat[name].get_value() for name in self.names["stats"]}


def select_variables(names: Collection[str], filters: Iterable[str], key: str) -> set[str]:
    """Return those of the variables `names` that any of the `filters` matches.

    A filter is a part (see `PARTS`), or a pattern of a path as `checkpoints.native.flat` has it, in which `*` stands
    for anything; a pattern matches everything below the path as well. Examples: "backbone.stages.5",
    "backbone.stages.[45]", "pool", "*.bias", "heads.prototypes.0".
    Raises UserError naming the setting `key` when a pattern matches nothing.
    """
    selected: set[str] = set()
    for pattern in filters:
        if pattern in PARTS:
            # A part may be empty: the heads of a loss without prototypes.
            selected |= {name for name in names if name.startswith(PARTS[pattern])}
            continue
        matched = {name for name in names if _matches(name.removeprefix("network."), pattern)}
        if not matched:
            raise UserError(
                f"config.{key} has {pattern!r}, which matches nothing that can train; near it are "
                f"{_near(pattern, names)}."
            )
        selected |= matched
    return selected


def part_of(name: str) -> str:
    """Return the part of the variable `name`; raise ValueError when it belongs to none."""
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    raise ValueError(f"the variable {name} is in none of the parts {', '.join(PARTS)}")


def depth(name: str, names: Iterable[str]) -> int:
    """Return the number of backbone stages between the variable `name` and the end of the backbone.

    `names` are all variables of the backbone. The depth is 0 for the last stage and what follows the stages, one more
    for every stage before it, and one more again for stem and front end.
    """
    stages = 1 + max((int(match[1]) for match in map(_STAGE.match, names) if match), default=-1)
    if name.startswith(("network.frontend.", "network.backbone.stem")):
        return stages
    match = _STAGE.match(name)
    return stages - 1 - int(match[1]) if match else 0


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def _can_train(name: str) -> bool:
    return not name.startswith("teacher.")


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}.*")


def _near(pattern: str, names: Collection[str]) -> str:
    """Return a list of paths that resemble `pattern`, for an error message."""
    steps = [name.removeprefix("network.").split(".") for name in names]
    paths = {".".join(path[:end]) for path in steps for end in range(1, len(path) + 1)} | PARTS.keys()
    near = difflib.get_close_matches(pattern.replace("*", ""), sorted(paths), n=3, cutoff=0.5)
    return ", ".join(near or sorted({path[0] for path in steps} | PARTS.keys()))
