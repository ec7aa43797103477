"""Placement of arrays on the devices of all processes: whole on every device, by rows, or prototypes by class.

All devices form one mesh axis. A batch is sharded by rows and a training state is replicated, except for the
prototypes of a loss over many classes: they are sharded by class, with all that the optimizer keeps of them. Every
device then computes the cosines of the whole batch with its own classes; embeddings, sums over classes and maxima
travel between devices, prototypes and cosines do not. A loss needs to know nothing of this if its parameter is named
`prototypes` and has a row for every class.

The number of classes need not be a multiple of the number of devices. On the devices, sharded arrays are padded with
rows of zeros, which the training step cuts off before it computes anything from them. Their gradient is zero, so they
stay zero and take no part in weight decay or in the norm of the gradient. Checkpoints hold the arrays without them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from redimnet_jax.errors import UserError

Array = jax.Array

AXIS = "data"
# The bytes that a process sends to the others of the message of an error.
MESSAGE_BYTES = 2048
# With fewer classes it takes less time to update all prototypes on every device (docs/guides/train.md).
MIN_SHARDED_CLASSES = 1024


def mesh() -> Mesh:
    """Return the mesh of all devices of all processes, along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps the same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding that divides the rows of an array among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy the arrays of `tree`, which every process has, to the devices of all processes."""

    def place(x: Any) -> Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])

    # Processes may round differently, and replicated arrays must be equal to the bit.
    return jax.tree.map(place, from_first_process(tree))


def from_first_process(tree: Any) -> Any:
    """Return `tree` as the first process has it. All processes must call this together."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Raise a UserError of the block in one process in all of them. All processes must enter this together."""
    if jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    message = b""
    try:
        yield
    except UserError as error:
        message = str(error).encode("utf-8", "surrogateescape")[:MESSAGE_BYTES]
    padded = np.zeros(MESSAGE_BYTES, np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    for row in multihost_utils.process_allgather(padded):
        if row.any():
            raise UserError(row.tobytes().rstrip(b"\0").decode("utf-8", "surrogateescape"))


def shard_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Return the global batch, sharded by rows, of which every process passes its own rows."""
    rows = by_rows(mesh)
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def gather(tree: Any) -> Any:
    """Return `tree` with its sharded arrays whole, in every host's memory. All processes must call this together."""
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda x: x if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True), tree
    )


def to_local(tree: Any) -> Any:
    """Return the arrays of the mesh as arrays of this process alone. All processes must call this together."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, gather(tree))


def class_shards(classes: int, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Return over how many devices prototypes of `classes` classes are sharded: over all of `mesh`, or 1.

    Without `mesh` the answer is for the mesh under which the caller is traced.
    """
    mesh = mesh or jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or classes < MIN_SHARDED_CLASSES else mesh.size


def place_state(tree: Any, mesh: Mesh) -> Any:
    """Put a training state, which every process has, on the devices: prototypes by class, everything else whole.

    The arrays of an optimizer or an average are recognized by the name of the parameter that they belong to.
    """

    def put(path: tuple, x: Any) -> Array:
        x = np.asarray(x)
        name = str(getattr(path[-1], "key", ""))
        if not name.endswith(".prototypes") or class_shards(len(x), mesh) == 1:
            return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])
        rows = -(-len(x) // mesh.size)

        def padded_shard(index: tuple[slice, ...] | None) -> np.ndarray:
            shard = x[index]
            return np.pad(shard, [(0, rows - len(shard)), *[(0, 0)] * (x.ndim - 1)])

        return jax.make_array_from_callback((rows * mesh.size, *x.shape[1:]), by_rows(mesh), padded_shard)

    return jax.tree_util.tree_map_with_path(put, from_first_process(tree))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return the sharding of every array of `tree` on `mesh`; an array that is not on `mesh` gets `replicated`."""

    def sharding_on_mesh(x: Any) -> NamedSharding:
        current = getattr(x, "sharding", None)
        return current if isinstance(current, NamedSharding) and current.mesh == mesh else replicated(mesh)

    return jax.tree.map(sharding_on_mesh, tree)


def replicate_rows(rows: Array) -> Array:
    """Copy a batch that is sharded by rows to every device of the mesh under which the caller is traced."""
    # The first constraint looks redundant. With the second alone XLA would also replicate the computation of `rows`.
    rows = jax.lax.with_sharding_constraint(rows, PartitionSpec(AXIS))
    return jax.lax.with_sharding_constraint(rows, PartitionSpec())


def sums_over_rows(function: Callable[..., Any], rows: tuple[Array, ...], others: Any = None) -> Any:
    """Return `function(*rows, others)`, arrays of sums over the first axis of all `rows`, in their dtypes.

    Under a mesh every device calls `function` with its own rows, and the results are then summed over the devices in
    float32 at least. XLA would sum over the devices as soon as it can: all that `function` selects its result from,
    and in the dtype of the arithmetic. `others` is a tree of arrays that all devices have.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or rows[0].shape[0] % mesh.size:
        return function(*rows, others)

    def local(rows: tuple[Array, ...], others: Any) -> Any:
        def summed(x: Array) -> Array:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            return jax.lax.psum(wide, AXIS).astype(x.dtype)

        return jax.tree.map(summed, function(*rows, others))

    specs = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(local, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(rows, others)


def with_sums_over_rows(function: Callable[[Array, Any], Array]) -> Callable[[Array, Any], Array]:
    """Return `function(x, weights)`, which works on each row of `x` alone, with `sums_over_rows` for its gradient."""

    @jax.custom_vjp
    def value(x: Array, weights: Any) -> Array:
        return function(x, weights)

    def forward(x: Array, weights: Any) -> tuple[Array, tuple[Array, Any]]:
        return function(x, weights), (x, weights)

    def of_weights(x: Array, dy: Array, weights: Any) -> Any:
        return jax.vjp(lambda weights: function(x, weights), weights)[1](dy)[0]

    def backward(operands: tuple[Array, Any], dy: Array) -> tuple[Array, Any]:
        x, weights = operands
        (dx,) = jax.vjp(lambda x: function(x, weights), x)[1](dy)
        return dx, sums_over_rows(of_weights, (x, dy), weights)

    value.defvjp(forward, backward)
    return value


def top_classes(x: Array, count: int) -> Array:
    """Return the classes, int32 (batch, count), of the `count` largest of `x` (batch, classes) in descending order.

    Equal values come in the order of their classes, as with `jax.lax.top_k`. Where the classes are sharded, every
    device finds its own largest values, and the result is chosen from those.
    """
    classes = x.shape[1]
    shards = class_shards(classes)
    if shards == 1:
        return jax.lax.top_k(x, count)[1]
    width = -(-classes // shards)

    def top_of_shard(shard: Array) -> tuple[Array, Array]:
        values, indices = jax.lax.top_k(shard, min(count, width))
        return values, indices + width * jax.lax.axis_index(AXIS)

    # With `top_k` of the whole array XLA would gather its operand, so the shards are written out.
    by_class = PartitionSpec(None, AXIS)
    candidates = jax.shard_map(top_of_shard, in_specs=by_class, out_specs=(by_class, by_class))
    values, indices = candidates(jnp.pad(x, ((0, 0), (0, shards * width - classes)), constant_values=-jnp.inf))
    return jnp.take_along_axis(indices, jax.lax.top_k(values, count)[1], axis=1)
