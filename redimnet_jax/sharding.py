"""Placement of arrays on the devices of all processes: whole on every device, by rows, or prototypes by class.

All devices form one mesh axis. A batch is sharded by rows and a training state is replicated, except for the
prototypes of a loss over many classes: they are sharded by class, with all that the optimizer keeps of them. Every
device then computes the cosines of the whole batch with its own classes (`losses/sharded_heads.py`); embeddings, and
a few numbers for every row, travel between devices, prototypes and cosines do not. A parameter is sharded if it is
named `prototypes` and has a row for every class.

The number of classes need not be a multiple of the number of devices. On the devices, sharded arrays are padded with
rows of zeros, which the training step cuts off before it computes anything from them. Their gradient is zero, so they
stay zero and take no part in weight decay or in the norm of the gradient. Checkpoints hold the arrays without them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from redimnet_jax.errors import UserError

Array = jax.Array

AXIS = "data"
BY_ROWS = PartitionSpec(AXIS)
WHOLE = PartitionSpec()
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


def of_own_rows(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Return function(whole, rows), which every device of `mesh` computes for the rows it has.

    `function` takes arrays that are whole, then arrays by rows, and returns arrays by rows, each of which depends on
    no other row. XLA's partitioner is not asked: of operations that move the batch between axes it makes exchanges.
    """
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=(WHOLE, BY_ROWS), out_specs=BY_ROWS, check_vma=False)


def map_rows(function: Callable[[Any, Any], tuple[Any, Any]], rows: Any, whole: Any) -> tuple[Any, Any]:
    """Return function(rows, whole), which every device of the mesh of the caller computes for the rows it has.

    `function` takes and returns arrays by rows, and arrays that are whole; those it returns must be equal on all
    devices. What depends on the rows of other devices it computes by `sum_over_devices` and `gather_from_devices`. A
    program for one device is made of `function` as it is. With several, XLA compiles what it would for one device
    with as many rows, where its partitioner would write other operations, gather the operands of some, and sum every
    statistic by itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(rows, whole)
    structure = jax.tree.structure(whole)
    leaves: list[Array] = jax.tree.leaves(whole)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    copies = _copies([leaf for leaf, floating in zip(leaves, is_float, strict=True) if floating])
    others = [leaf for leaf, floating in zip(leaves, is_float, strict=True) if not floating]

    def on_device(rows: Any, copies: list[Array], others: list[Array]) -> tuple[Any, Any]:
        own, left = (leaf[0] for leaf in copies), iter(others)
        return function(rows, structure.unflatten([next(own if floating else left) for floating in is_float]))

    # Unchecked, every device differentiates the sum of all devices' results.
    mapped = jax.shard_map(on_device, in_specs=(BY_ROWS, BY_ROWS, WHOLE), out_specs=(BY_ROWS, WHOLE), check_vma=False)
    return mapped(rows, copies, others)


@jax.custom_vjp
def _copies(arrays: list[Array]) -> list[Array]:
    """Return each array with a leading axis of devices, of which each has its copy already.

    The gradients of the copies are summed in one exchange, as one vector. XLA would combine one exchange for each
    array too, but after it has chosen what to compute together, so that it would copy every array out of the vector.
    """
    devices = jax.sharding.get_abstract_mesh().size
    return [jnp.broadcast_to(x, (devices, *x.shape)) for x in arrays]


def _copies_fwd(arrays: list[Any]) -> tuple[list[Array], list[Array | None]]:
    return _copies([x.value for x in arrays]), [jnp.zeros(()) if x.perturbed else None for x in arrays]


def _copies_bwd(perturbed: list[Array | None], cotangents: list[Any]) -> tuple[list[Array | None]]:
    wanted = [dx for dx, marked in zip(cotangents, perturbed, strict=True) if marked is not None]
    wanted = [jnp.zeros(dx.shape, jnp.float32) if isinstance(dx, SymbolicZero) else dx for dx in wanted]

    def summed(gradients: list[Array]) -> Array:
        return jax.lax.psum(jnp.concatenate([dx.ravel() for dx in gradients]), AXIS)

    vector = jax.shard_map(summed, in_specs=BY_ROWS, out_specs=WHOLE, check_vma=False)(wanted)
    shapes = [dx.shape[1:] for dx in wanted]
    parts = jnp.split(vector, np.cumsum([math.prod(shape) for shape in shapes])[:-1].tolist())
    sums = iter([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])
    return ([None if marked is None else next(sums) for marked in perturbed],)


_copies.defvjp(_copies_fwd, _copies_bwd, symbolic_zeros=True)


def map_classes(function: Callable[[Any, Any, Any], Any], rows: Any, by_class: Any, whole: Any) -> Any:
    """Return function(rows, by_class, whole), which every device computes for all rows and the classes it has.

    `rows` is float (batch, ...), which every device gets whole; `by_class` are arrays with a row for every class,
    of which a device gets its own, padded with zeros to the same number on all devices. `function` computes what
    depends on the classes of other devices by `gather_results`, and its results must be equal on all devices.
    """
    shards = jax.sharding.get_abstract_mesh().size

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, -len(x) % shards), *[(0, 0)] * (x.ndim - 1)])

    def on_device(rows: Array, by_class: Any, whole: Any) -> Any:
        return function(jax.lax.all_gather(rows, AXIS, tiled=True), by_class, whole)

    # Unchecked, every device differentiates its share of the result, and one exchange sums the gradient of `rows`.
    mapped = jax.shard_map(on_device, in_specs=(BY_ROWS, BY_ROWS, WHOLE), out_specs=WHOLE, check_vma=False)
    return mapped(rows, jax.tree.map(padded, by_class), whole)


@jax.custom_vjp
def gather_results(x: Array) -> Array:
    """Return (devices, *x.shape), of which every device under `map_classes` must compute the same result.

    What this result's derivative is in its own `x`, a device then knows without another exchange.
    """
    return gather_from_devices(x)


def _gather_results_fwd(x: Array) -> tuple[Array, None]:
    return gather_from_devices(x), None


def _gather_results_bwd(_: None, cotangent: Array) -> tuple[Array]:
    # Each device has a share of the cotangent, and all shares are equal.
    return (devices_with_rows() * jax.lax.dynamic_index_in_dim(cotangent, jax.lax.axis_index(AXIS), keepdims=False),)


gather_results.defvjp(_gather_results_fwd, _gather_results_bwd)


def first_class(width: int) -> Array:
    """Return the number of the first of the `width` classes that this device has under `map_classes`."""
    return width * jax.lax.axis_index(AXIS)


def devices_with_rows() -> int:
    """Return how many devices compute the function under `map_rows` or `map_classes` that is being traced."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.manual_axes else 1


def sum_over_devices(*arrays: Array) -> Sequence[Array]:
    """Return the sums of `arrays`, which have one shape, over the devices under `map_rows`, in one exchange."""
    return list(jax.lax.psum(jnp.stack(arrays), AXIS)) if devices_with_rows() > 1 else arrays


def gather_from_devices(x: Array) -> Array:
    """Return (devices, *x.shape), the small array `x` of every device under `map_rows` or `map_classes`.

    The devices sum arrays that are zero but for their own `x`. XLA has a kernel of its own for small sums between the
    GPUs of a process, while gathering takes a call of NCCL.
    """
    devices = devices_with_rows()
    if devices == 1:
        return x[None]
    padded = jnp.zeros((devices, *x.shape), x.dtype)
    return jax.lax.psum(padded.at[jax.lax.axis_index(AXIS)].set(x), AXIS)


def own_rows(make: Callable[[int], Array], rows: int) -> Array:
    """Return this device's `rows` of the array whose rows of all devices `make(number of rows)` returns."""
    devices = devices_with_rows()
    if devices == 1:
        return make(rows)
    return jax.lax.dynamic_slice_in_dim(make(devices * rows), rows * jax.lax.axis_index(AXIS), rows)


def top_classes(x: Array, count: int) -> Array:
    """Return the classes, int32 (batch, count), of the `count` largest of `x` (batch, classes) in descending order.

    Equal values come in the order of their classes, as with `jax.lax.top_k`. Under `map_classes` these are the
    largest of all devices, counted from this device's first class; `classes` stands for those of other devices.
    """
    if devices_with_rows() == 1:
        return jax.lax.top_k(x, count)[1]
    width = x.shape[1]
    values, indices = jax.lax.top_k(x, min(count, width))
    first = first_class(width)
    values, classes = (jax.lax.all_gather(own, AXIS, axis=1, tiled=True) for own in (values, indices + first))
    top = jnp.take_along_axis(classes, jax.lax.top_k(values, count)[1], axis=1) - first
    return jnp.where((top >= 0) & (top < width), top, width)
