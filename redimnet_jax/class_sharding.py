"""Prototypes dealt to the devices by class, with all that the optimizer keeps of them.

Every device then has the cosines of the whole batch with its own classes; embeddings, sums over classes and maxima
travel between devices, prototypes and cosines do not. It needs no word from a loss but that its parameter
`prototypes` has a row for every class.

The number of classes need not be a multiple of the number of devices: at rest the arrays are padded with rows of
zeros, which `train_step.Split.exact` cuts off before anything is computed from them. Their gradient is zero, and zero
they stay, without a part in decay or in the norm of the gradient. Checkpoints hold the arrays without them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from redimnet_jax import sharding

Array = jax.Array

# With fewer classes it takes less time to update all prototypes on every device (docs/training.md).
FEWEST = 1024


def shards(classes: int, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Over how many devices of `mesh`, or of the mesh that is traced for, so many classes are dealt: all or one."""
    mesh = mesh or jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or classes < FEWEST else mesh.size


def place(tree: Any, mesh: Mesh) -> Any:
    """`tree`, of a training state, which every process has, on the devices: prototypes by class, the rest whole.

    The arrays of an optimizer or an average are told by the name of the parameter that they belong to.
    """

    def put(path: tuple, x) -> Array:
        x = np.asarray(x)
        name = str(getattr(path[-1], "key", ""))
        if not name.endswith(".prototypes") or shards(len(x), mesh) == 1:
            return jax.make_array_from_callback(x.shape, sharding.whole(mesh), lambda index: x[index])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            mine = x[index]
            return np.pad(mine, [(0, each - len(mine)), *[(0, 0)] * (x.ndim - 1)])

        each = -(-len(x) // mesh.size)
        return jax.make_array_from_callback((each * mesh.size, *x.shape[1:]), sharding.by_rows(mesh), part)

    return jax.tree_util.tree_map_with_path(put, sharding.agreed(tree))


def sharding_of(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array of `tree` on `mesh`; what lies nowhere on it is replicated."""

    def of(x) -> NamedSharding:
        found = getattr(x, "sharding", None)
        return found if isinstance(found, NamedSharding) and found.mesh == mesh else sharding.whole(mesh)

    return jax.tree.map(of, tree)


def everywhere(rows: Array) -> Array:
    """Rows of a batch, which lie by rows, on every device of the mesh that is traced for."""
    # Both are said, since only the second would have what `rows` come from computed everywhere too.
    rows = jax.lax.with_sharding_constraint(rows, PartitionSpec(sharding.AXIS))
    return jax.lax.with_sharding_constraint(rows, PartitionSpec())


def largest(x: Array, count: int) -> Array:
    """The classes, int32 (batch, count), of the `count` largest of `x` (batch, classes) in falling order.

    Of equal ones the first, as of `jax.lax.top_k`. Where classes are dealt, every device finds its own largest, and
    the largest of those are the largest of all.
    """
    classes = x.shape[1]
    parts = shards(classes)
    if parts == 1:
        return jax.lax.top_k(x, count)[1]
    width = -(-classes // parts)

    def of_device(own: Array) -> tuple[Array, Array]:
        values, places = jax.lax.top_k(own, min(count, width))
        return values, places + width * jax.lax.axis_index(sharding.AXIS)

    # By hand, since a top_k would have all of its operand gathered.
    by_class = PartitionSpec(None, sharding.AXIS)
    found = jax.shard_map(of_device, in_specs=by_class, out_specs=(by_class, by_class))
    values, places = found(jnp.pad(x, ((0, 0), (0, parts * width - classes)), constant_values=-jnp.inf))
    return jnp.take_along_axis(places, jax.lax.top_k(values, count)[1], axis=1)
